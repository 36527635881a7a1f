"""The operations of StyleGAN2-ADA's augmentation, each as a matrix of random strength (Karras et al. 2020, §B.1).

B batch, H W pixels, 3 RGB.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.gan.augment.ada_images import matrix, rotation, scaling, translation

SHIFT, SCALE, STRETCH, JITTER = 0.125, 0.2, 0.2, 0.125  # share of the side; octaves; octaves; share of the side
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # standard deviations; the last two in octaves


class Chance:
    """Random numbers for a batch; where a quantile is given, that of each distribution instead, and every gate open."""

    def __init__(self, image_B3HW: Tensor, probability: Tensor, quantile: float | None = None) -> None:
        self.image, self.probability, self.quantile = image_B3HW, probability, quantile

    def uniform(self, low: float, high: float) -> Tensor:
        """(B,)."""
        share = self._unit() if self.quantile is None else self.image.new_full((len(self.image),), self.quantile)
        return low + (high - low) * share

    def normal(self, deviation: float) -> Tensor:
        """(B,). The quantile is as the released code takes it, short of a factor sqrt(2)."""
        if self.quantile is None:
            return deviation * torch.randn(len(self.image), dtype=self.image.dtype, device=self.image.device)
        return deviation * torch.erfinv(2 * self.uniform(0, 1) - 1)

    def strikes(self, probability: Tensor | None = None) -> Tensor:
        """(B,) 1 for each picture that is struck, else 0."""
        if self.quantile is not None:
            return self.image.new_ones(len(self.image))
        return (self._unit() < (self.probability if probability is None else probability)).to(self.image.dtype)

    def _unit(self) -> Tensor:
        return torch.rand(len(self.image), dtype=self.image.dtype, device=self.image.device)


# Each gives the inverse of what it does to the plane, in pixels from the centre, (B, 3, 3).


def _xflip(chance: Chance) -> Tensor:
    mirrored = chance.uniform(0, 2).floor() * chance.strikes()
    return scaling(1 - 2 * mirrored, 1, like=chance.image)


def _rotate90(chance: Chance) -> Tensor:
    quarters = chance.uniform(0, 4).floor() * chance.strikes()
    return rotation(quarters * math.pi / 2, like=chance.image)


def _xint(chance: Chance) -> Tensor:
    height, width = chance.image.shape[2:]
    x, y, struck = chance.uniform(-SHIFT, SHIFT), chance.uniform(-SHIFT, SHIFT), chance.strikes()
    return translation(-(x * struck * width).round(), -(y * struck * height).round(), like=chance.image)


def _scale(chance: Chance) -> Tensor:
    factor = 2 ** (chance.normal(SCALE) * chance.strikes())
    return scaling(1 / factor, 1 / factor, like=chance.image)


def _rotate(chance: Chance) -> Tensor:
    """One of two, before and after stretching: together they strike with the probability."""
    struck = chance.strikes(1 - (1 - chance.probability).sqrt())
    return rotation(chance.uniform(-math.pi, math.pi) * struck, like=chance.image)


def _rotate_again(chance: Chance) -> Tensor:
    """In the quantile mode of the released code this one rests."""
    return _rotate(chance) if chance.quantile is None else scaling(1, 1, like=chance.image)


def _aniso(chance: Chance) -> Tensor:
    factor = 2 ** (chance.normal(STRETCH) * chance.strikes())
    return scaling(1 / factor, factor, like=chance.image)


def _xfrac(chance: Chance) -> Tensor:
    height, width = chance.image.shape[2:]
    x, y, struck = chance.normal(JITTER), chance.normal(JITTER), chance.strikes()
    return translation(-x * struck * width, -y * struck * height, like=chance.image)


# Each gives an affine map of colours, (B, 4, 4). The luma axis is that of greys.


def _brightness(chance: Chance) -> Tensor:
    b = chance.normal(BRIGHTNESS) * chance.strikes()
    return matrix([[1, 0, 0, b], [0, 1, 0, b], [0, 0, 1, b], [0, 0, 0, 1]], like=chance.image)


def _contrast(chance: Chance) -> Tensor:
    c = 2 ** (chance.normal(CONTRAST) * chance.strikes())
    return _mixing(c, 0.0, chance)


def _lumaflip(chance: Chance) -> Tensor:
    mirrored = chance.uniform(0, 2).floor() * chance.strikes()
    return _mixing(1 - 2 * mirrored / 3, -2 * mirrored / 3, chance)


def _hue(chance: Chance) -> Tensor:
    """A rotation about the luma axis (Rodrigues)."""
    angle = chance.uniform(-math.pi, math.pi) * chance.strikes()
    along, across = (1 - angle.cos()) / 3, angle.sin() / math.sqrt(3)
    near, far = along - across, along + across
    own = along + angle.cos()
    return matrix([[own, near, far, 0], [far, own, near, 0], [near, far, own, 0], [0, 0, 0, 1]], like=chance.image)


def _saturation(chance: Chance) -> Tensor:
    factor = 2 ** (chance.normal(SATURATION) * chance.strikes())
    grey = (1 - factor) / 3
    return _mixing(factor + grey, grey, chance)


def _mixing(own: Tensor, other: Tensor | float, chance: Chance) -> Tensor:
    """Each channel from itself and from both others alike."""
    return matrix(
        [[own, other, other, 0], [other, own, other, 0], [other, other, own, 0], [0, 0, 0, 1]], like=chance.image
    )


Operation = Callable[[Chance], Tensor]
# In the order in which they are applied.
MOVES: tuple[tuple[str, Operation], ...] = (
    ("xflip", _xflip),
    ("rotate90", _rotate90),
    ("xint", _xint),
    ("scale", _scale),
    ("rotate", _rotate),
    ("aniso", _aniso),
    ("rotate", _rotate_again),
    ("xfrac", _xfrac),
)
COLOURS: tuple[tuple[str, Operation], ...] = (
    ("brightness", _brightness),
    ("contrast", _contrast),
    ("lumaflip", _lumaflip),
    ("hue", _hue),
    ("saturation", _saturation),
)
NAMES = tuple(dict.fromkeys(name for name, _ in MOVES + COLOURS))
# Names for several: "bgc" is what the papers of StyleGAN2-ADA and Styleformer use.
GROUPS: dict[str, tuple[str, ...]] = {
    "b": ("xflip", "rotate90", "xint"),
    "bg": ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac"),
    "bgc": NAMES,
    "text": ("xint", "scale", "xfrac"),  # no caption speaks of them
}


def operations_of(names: Sequence[str]) -> tuple[str, ...]:
    """Names of operations and groups to operations. Raises InputError for an unknown one."""
    asked = {operation for name in names for operation in GROUPS.get(name, (name,))}
    if unknown := sorted(asked.difference(NAMES)):
        raise InputError(
            f"there is no augmentation {', '.join(unknown)}, expected some of {', '.join(NAMES)}, or of the groups "
            f"{', '.join(GROUPS)}: correct it"
        )
    return tuple(name for name in NAMES if name in asked)
