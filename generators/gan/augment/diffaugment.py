"""Augmentations with a gradient, of what a discriminator sees: colour, translation, cutout (Zhao et al. 2020, §3.3).

    augmented_B3HW = augment(image_B3HW, "color,translation,cutout")

Real and drawn pictures pass through the same distribution, so the generator never learns to draw augmentations.

B batch, H W pixels, 3 RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from star.data.errors import InputError

SHIFT, HOLE = 0.125, 0.2  # largest translation and side of the hole, as shares of the picture's side


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentDraws:
    """The random numbers of one batch."""

    brightness_B: Tensor  # uniform in [0, 1), like the next two
    saturation_B: Tensor
    contrast_B: Tensor
    shift_down_B: Tensor  # pixels, int64, up to `SHIFT` of the height up or down
    shift_right_B: Tensor
    hole_row_B: Tensor  # pixels, int64: the hole's middle, which may lie on the border
    hole_column_B: Tensor

    @classmethod
    def of(cls, image_B3HW: Tensor, hole: float = HOLE) -> Self:
        """Drawn for a batch from torch's global generator of its device. hole: see `cutout`."""
        batch, device = len(image_B3HW), image_B3HW.device
        height, width = image_B3HW.shape[2:]

        def uniform() -> Tensor:
            return torch.rand(batch, device=device, dtype=image_B3HW.dtype)

        def shift(size: int) -> Tensor:
            most = _part(SHIFT, size)
            return torch.randint(-most, most + 1, (batch,), device=device)

        def middle(size: int) -> Tensor:
            # A hole of even side has its middle between two pixels: one place more.
            return torch.randint(size + 1 - _part(hole, size) % 2, (batch,), device=device)

        return cls(
            brightness_B=uniform(),
            saturation_B=uniform(),
            contrast_B=uniform(),
            shift_down_B=shift(height),
            shift_right_B=shift(width),
            hole_row_B=middle(height),
            hole_column_B=middle(width),
        )


def color(image_B3HW: Tensor, draws: AugmentDraws) -> Tensor:
    """Brightness by -0.5 to 0.5, then saturation times 0 to 2, then contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = (
        draw_B[:, None, None, None].to(image_B3HW.dtype)
        for draw_B in (draws.brightness_B, draws.saturation_B, draws.contrast_B)
    )
    image_B3HW = image_B3HW + (brightness - 0.5)
    grey_B1HW = image_B3HW.mean(dim=1, keepdim=True)
    image_B3HW = grey_B1HW + (image_B3HW - grey_B1HW) * (2 * saturation)
    mean_B111 = image_B3HW.mean(dim=(1, 2, 3), keepdim=True)
    return mean_B111 + (image_B3HW - mean_B111) * (contrast + 0.5)


def translation(image_B3HW: Tensor, draws: AugmentDraws) -> Tensor:
    """Each picture moved by whole pixels; 0, a mid-grey, where nothing moves in."""
    for dim, shift_B in ((2, draws.shift_down_B), (3, draws.shift_right_B)):
        size = image_B3HW.shape[dim]
        source_BN = torch.arange(size, device=image_B3HW.device) - shift_B[:, None]
        inside_BN = (source_BN >= 0) & (source_BN < size)
        shape = (-1, 1, size, 1) if dim == 2 else (-1, 1, 1, size)
        index = source_BN.clamp(0, size - 1).reshape(shape).expand_as(image_B3HW)
        image_B3HW = image_B3HW.gather(dim, index) * inside_BN.reshape(shape)
    return image_B3HW


def cutout(image_B3HW: Tensor, draws: AugmentDraws, hole: float = HOLE) -> Tensor:
    """A hole of 0 in each picture, smaller where its middle is near the border; `hole`: its side, as `HOLE`."""
    covered = []
    for size, middle_B in zip(image_B3HW.shape[2:], (draws.hole_row_B, draws.hole_column_B), strict=True):
        side = _part(hole, size)
        place_BN = torch.arange(size, device=image_B3HW.device) - (middle_B[:, None] - side // 2)
        covered.append((place_BN >= 0) & (place_BN < side))
    hole_BHW = covered[0][:, :, None] & covered[1][:, None, :]
    return image_B3HW * ~hole_BHW[:, None]


OPERATIONS: dict[str, Callable[[Tensor, AugmentDraws], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


def operations(policy: str) -> list[Callable[[Tensor, AugmentDraws], Tensor]]:
    """What a policy names, in its order; "" is nothing. Raises InputError for an unknown name."""
    names = [name.strip() for name in policy.split(",")] if policy.strip() else []
    for name in names:
        if name not in OPERATIONS:
            raise InputError(
                f"the augmentation {name!r} was given, expected some of {', '.join(OPERATIONS)}, separated by commas: "
                "correct it"
            )
    return [OPERATIONS[name] for name in names]


def augment(image_B3HW: Tensor, policy: str, draws: AugmentDraws | None = None) -> Tensor:
    """A batch in [-1, 1], which it may leave, after the operations of a policy; `draws` are made if not given."""
    if not (steps := operations(policy)):
        return image_B3HW
    draws = draws or AugmentDraws.of(image_B3HW)
    for step in steps:
        image_B3HW = step(image_B3HW, draws)
    return image_B3HW


def _part(share: float, size: int) -> int:
    return int(share * size + 0.5)
