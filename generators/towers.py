"""Frozen image towers of transformers, which read our pictures: image in [-1, 1] of any size.

A source is a directory or a hub id in transformers' format, with a `preprocessor_config.json` that tells mean and
deviation. Nothing else of an image processor applies: pictures are resized by area averages, which have a gradient.

B batch, H W pixels, 3 RGB.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn

from data.errors import InputError
from data.text import quiet_transformers
from generators.registry import place_of

Tower = TypeVar("Tower", bound=nn.Module)

# Pickled weights are left out on purpose: loading them can run code.
HUB_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "model-*.safetensors"] + [
    "model.safetensors.index.json"
]


class Preprocessing(nn.Module):
    """image in [-1, 1] to what a tower was trained on: its size, its mean and deviation of [0, 1]."""

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
            values = json.loads(file.read_text(encoding="utf-8"))
            mean, deviation = ([float(number) for number in values[key]] for key in ("image_mean", "image_std"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} does not tell image_mean and image_std ({error}): give the folder in which a tower was saved "
                "with its image processor"
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
    place = Path(place_of(source))
    if place.is_dir():
        return place
    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # no network, no such repository, not a repository name at all
        raise InputError(
            f"{source} is neither a folder here nor a hub repository within reach, expected an image tower in "
            "transformers' format: check the path, or fetch the repository first where the hub can be reached"
        ) from error


def load(kind: type[Tower], folder: Path, **options: Any) -> Tower:
    """A model of transformers with the weights of a folder: float32, frozen, in evaluation mode.

    options: for the model's constructor. Raises InputError if a weight is missing or the folder holds something else.
    """
    try:
        with quiet_transformers():
            tower, report = kind.from_pretrained(  # type: ignore[attr-defined]
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: another shape
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"{folder} could not be loaded as an image tower: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"{folder} lacks weights of its image tower, {missing[0]} first of {len(missing)}: get the folder again"
        )
    return tower.eval().requires_grad_(False)
