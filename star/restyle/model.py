"""Restyler: a trained network in a model directory, that redraws pictures in another style.

    restyler = Restyler.from_directory("RUN/model")
    pixels_B3HW = restyler.redraw(pixels_B3HW, ["emojitwo"] * B, "emojitwo_bw")

B pictures, 3 RGB, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pixels_to_image, resize_pixels, rounded
from star.data.unfilled import unfilled
from star.generators.config import check_ranges, from_dict, to_dict
from star.generators.pretrained import ModelDirectory, digest, load_into, write
from star.restyle.network import RestyleConfig, RestyleNetwork
from star.restyle.pairs import Pair, parse_pairs, styles_of

FAMILY = "restyler"
SHARPNESS = 2.0  # of 1, 1.5, 2, 3 and 5 the least difference to the true pictures in black and white


@dataclass(frozen=True, kw_only=True, slots=True)
class RestylerConfig:
    """The network, what it was taught, and the side of its pictures in pixels."""

    pairs: tuple[str, ...]  # see star.restyle.pairs
    network: RestyleConfig = field(default_factory=RestyleConfig)
    resolution: int = 64

    def __post_init__(self) -> None:
        check_ranges(self, resolution=(1, 2**14))
        step = 2 ** (len(self.network.widths) - 1)
        if self.resolution % step:
            raise InputError(f"resolution is {self.resolution}, expected a multiple of {step}: correct it")
        if unknown := sorted(set(styles_of(parse_pairs(self.pairs))) - set(self.network.styles)):
            raise InputError(
                f"network.styles lacks {', '.join(unknown)}, expected all styles of the pairs: correct one of them"
            )


class Restyler:
    """Redraws pictures from the source styles of its pairs in their target styles."""

    def __init__(self, config: RestylerConfig, network: RestyleNetwork) -> None:
        self.config, self.network = config, network
        self.pairs: tuple[Pair, ...] = parse_pairs(config.pairs)
        self._places = {style: place for place, style in enumerate(config.network.styles)}

    @property
    def resolution(self) -> int:
        """Side of what it draws, in pixels."""
        return self.config.resolution

    @cached_property
    def digest(self) -> str:
        """sha256 of config and weights, see `star.generators.pretrained.digest`."""
        return digest(to_dict(self.config), self.network.state_dict())

    @torch.no_grad()
    def redraw(self, pixels_B3HW: Tensor, given: Sequence[str], wanted: str, *, sharpness: float = SHARPNESS) -> Tensor:
        """pixels_B3HW uint8 RGB of any size to pixels_B3HW of its resolution, on the CPU, in the wanted style.

        given: the style of each picture. sharpness: factor of the logits; 1 is what the network believes, which is grey
        where it is in doubt, more decides for black or white. On the CPU each is drawn alone, so that its bits depend
        on no other. Raises InputError for styles that are no pair of its own or a sharpness that is none, ValueError
        for pixels of another type or number.
        """
        if pixels_B3HW.dtype != torch.uint8 or pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3:
            raise ValueError(
                f"pixels are {pixels_B3HW.dtype} {tuple(pixels_B3HW.shape)}, expected torch.uint8 (B, 3, H, W)"
            )
        if not 0 < sharpness <= 100:
            raise InputError(f"sharpness is {sharpness}, expected more than 0 and at most 100: correct it")
        if len(given) != len(pixels_B3HW):
            raise ValueError(f"{len(given)} styles of {len(pixels_B3HW)} pictures were given, expected one of each")
        self._check(given, wanted)
        device = next(self.network.parameters()).device
        size = 1 if device.type == "cpu" else 64
        image_B3HW = pixels_to_image(self._resized(pixels_B3HW))
        given_B = torch.tensor([self._places[style] for style in given], dtype=torch.int64)
        drawn = [torch.empty((0, 3, self.resolution, self.resolution), dtype=torch.uint8)]
        for some_B3HW, some_B in zip(image_B3HW.split(size), given_B.split(size), strict=True):
            wanted_B = torch.full_like(some_B, self._places[wanted])
            logits_B3HW = self.network(some_B3HW.to(device), some_B.to(device), wanted_B.to(device))
            drawn.append(rounded(2 * (sharpness * logits_B3HW.float()).sigmoid() - 1).cpu())
        return torch.cat(drawn)

    def _check(self, given: Sequence[str], wanted: str) -> None:
        known = {pair.target: pair.sources for pair in self.pairs}
        if unknown := sorted(set(given) - set(known.get(wanted, ()))):
            raise InputError(
                f"pictures of style {', '.join(unknown)} were to be redrawn in style {wanted}, expected one of "
                f"{', '.join(map(str, self.pairs))}: choose among these, or train with another pair"
            )

    def _resized(self, pixels_B3HW: Tensor) -> Tensor:
        size = (self.resolution, self.resolution)
        if tuple(pixels_B3HW.shape[2:]) == size:
            return pixels_B3HW.cpu()
        pictures = [resize_pixels(pixels_3HW, size) for pixels_3HW in pixels_B3HW]
        return torch.stack(pictures) if pictures else pixels_B3HW.new_empty((0, 3, *size), device="cpu")

    def save(self, path: str | Path, *, card: str) -> ModelDirectory:
        """Writes a model directory. Raises InputError if the disk refuses."""
        about = {
            "resolution": [self.resolution, self.resolution],
            "parameters": sum(p.numel() for p in self.network.parameters()),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        return write(path, family=FAMILY, config=to_dict(self.config), tensors=tensors, card=card, about=about)

    @classmethod
    def from_directory(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "Restyler":
        """Reads a model directory, frozen and in eval mode. Raises InputError if it is damaged or of another family."""
        directory = ModelDirectory.read(path, family=FAMILY)
        config = from_dict(RestylerConfig, directory.config, f"{path} config")
        directory.check_fits(lambda: RestyleNetwork(config.network))
        with unfilled():
            network = RestyleNetwork(config.network)
        load_into(network, directory.tensors(), path)
        return cls(config, network.to(device).eval().requires_grad_(False))
