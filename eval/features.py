"""Pixels to features: frozen networks that own their resize and range, so that a metric sees nothing but rows.

    judge = extractor("judge-emoji")                 # ships with this project; so does "clip-emoji"
    features_BD = judge(pixels_B3HW)                 # uint8 of any size -> float32 on the CPU

    "clip:DIR or hub id"    CLIP's image embedding, unit length; `texts(prompts)` gives the matching rows of prompts
    "dino:DIR or hub id"    DINOv2, the normalised class token
    "pick:DIR or hub id"    PickScore's CLIP; its text rows carry the temperature, so that a product is the score
    "hps:DIR or hub id"     HPS v2's CLIP
    "inception"             FID's Inception, with its own resize; "inception-pytorch-fid" with that of pytorch-fid

A network that ends in torch-fidelity's resize inside the network is told apart from one that we resize for. `resize`
says how a picture reaches the network, and belongs into a protocol together with `digest`.
Shapes: B pictures, D feature width, H W pixels, 3 RGB.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Extractor(Protocol):
    """A frozen network. `digest`: sha256 of weights and of what happens before them."""

    name: str
    digest: str
    width: int
    resize: str  # e.g. "lanczos-antialias 64x64"

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """features_BD float32 on the CPU. A picture's row does not depend on its batch beyond rounding."""
        ...


@runtime_checkable
class TextExtractor(Protocol):
    """What an extractor of a contrastive model has beside: rows of prompts in the same space."""

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """text_BD float32 on the CPU; prompts longer than the model reads are cut."""
        ...


def extractor(name: str, device: str | torch.device = "cpu") -> Extractor:
    """The extractor of a name, see the module's text. Raises InputError for an unknown name or missing weights."""
    raise NotImplementedError


def shipped(name: str) -> Path:
    """The folder of weights that the package carries."""
    raise NotImplementedError
