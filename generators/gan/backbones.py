"""Frozen image backbones of transformers, which read our pictures: image in [-1, 1] of any size.

A source is a directory or a hub id in transformers' format, with a `preprocessor_config.json` that tells mean and
deviation. Nothing else of an image processor applies: pictures are resized by area averages, which have a gradient.

B batch, H W pixels, 3 RGB.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from star.data.errors import InputError
from star.data.files import read_json, shorten
from star.data.pretrained import VISION_FILES, folder_of, loading
from star.data.transformers_network import read_network
from star.generators.registry import place_of

Tower = TypeVar("Tower", bound=nn.Module)

LARGEST_SIDE = 4096  # pixels that a backbone reads


def round_towers(module: nn.Module) -> None:
    """Turns every frozen backbone of transformers within a module to bfloat16, with its attention written out.

    The written one: torch's fused attention on a CPU takes ten times as long for its gradient in bfloat16.
    """
    for part in module.modules():
        for child in part.children():
            if isinstance(child, PreTrainedModel):
                nn.Module.to(child, torch.bfloat16)  # transformers types its own `to` as one of a model alone
                child.set_attn_implementation("eager")
                if isinstance(projection := getattr(part, "projection", None), nn.Linear):
                    projection.to(torch.bfloat16)


@contextmanager
def as_stored(tower: nn.Module, device: torch.device) -> Iterator[torch.dtype | None]:
    """The type that a backbone is to be given its pictures in; None leaves all as it is, autocast included.

    A backbone in bfloat16 computes in that alone: autocast would only turn norms and sums to and fro.
    """
    dtype = next(tower.parameters()).dtype
    if dtype is not torch.bfloat16:
        yield None
        return
    with torch.autocast(device.type, enabled=False):
        yield dtype


class Preprocessing(nn.Module):
    """image in [-1, 1] to what a backbone was trained on: its size, its mean and deviation of [0, 1]."""

    mean_311: Tensor
    deviation_311: Tensor

    def __init__(self, side: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        """side: pixels. mean, deviation: of red, green, blue."""
        super().__init__()
        self.side = side
        self.register_buffer("mean_311", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation_311", torch.tensor(deviation)[:, None, None], persistent=False)

    @classmethod
    def read(cls, folder: Path, side: int) -> "Preprocessing":
        """Of a folder with a `preprocessor_config.json`. Raises InputError if it does not tell mean and deviation."""
        file = folder / "preprocessor_config.json"
        try:
            values = read_json(file)
            mean, deviation = ([float(number) for number in values[key]] for key in ("image_mean", "image_std"))
            if (len(mean), len(deviation)) != (3, 3) or min(deviation) <= 0:
                raise ValueError("expected three of both, deviations above 0")
            if type(side) is not int or not 1 <= side <= LARGEST_SIDE:
                raise ValueError(f"the backbone reads pictures of {shorten(repr(side), 40)} pixels")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} does not tell image_mean and image_std ({error}): give the folder in which a backbone was "
                "saved with its image processor"
            ) from error
        return cls(side, tuple(mean), tuple(deviation))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """(B, 3, side, side)."""
        if image_B3HW.shape[2:] != (self.side, self.side):
            image_B3HW = F.interpolate(image_B3HW, size=(self.side, self.side), mode="area")
        return ((image_B3HW + 1) / 2 - self.mean_311) / self.deviation_311


def random_crop(image_B3HW: Tensor, side: int) -> Tensor:
    """One square for the whole batch, its place drawn from torch's global generator. (B, 3, side, side)."""
    top, left = (int(torch.randint(size - side + 1, ())) for size in image_B3HW.shape[2:])
    return image_B3HW[:, :, top : top + side, left : left + side]


def find(source: str | Path) -> Path:
    """The folder of a source, fetched from the hub if need be. Raises InputError if there is none within reach."""
    return folder_of(place_of(source), VISION_FILES, "an image backbone")


def load(kind: type[Tower], folder: Path, **options: Any) -> Tower:
    """A model of transformers with the weights of a folder: float32, frozen, in evaluation mode.

    options: for the model's constructor. Raises InputError if a weight is missing or the folder holds something else.
    """
    with loading(folder, "an image backbone"):
        network: Tower = read_network(kind, folder, "its image backbone", dtype=torch.float32, **options)
    return network
