"""Pairs of an image tower and a text tower in transformers' format: a CLIPModel, or a dual encoder of any two towers.

    model = read_pair(folder)
    image_BD = image_vectors(model, pixels_B3HW)  # projected, not normalised

A dual encoder (VisionTextDualEncoderModel) may have a convolutional image tower, which small pictures need far fewer
examples for. Its pooled state is then (B, C, 1, 1), which transformers' own `get_image_features` cannot project.
Shapes: B pictures or texts, T tokens, D width of both projections, 3HW image.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from star.data.clip_text import PAIRS
from star.data.errors import InputError
from star.data.files import read_json, shorten
from star.data.pretrained import VISION_KINDS, check_folder

if TYPE_CHECKING:
    from transformers import CLIPModel, VisionTextDualEncoderModel

DUAL_TEXTS = ("clip_text_model", "bert")  # text towers that a dual encoder may have


def pair_class(folder: Path) -> Any:
    """transformers' class of the pair in a folder. Raises InputError if it holds none, or unknown kinds of towers."""
    import transformers

    if check_folder(folder, PAIRS) == "clip":
        return transformers.CLIPModel
    values = read_json(folder / "config.json")
    for part, kinds in (("vision_config", VISION_KINDS), ("text_config", DUAL_TEXTS)):
        inner = values.get(part)
        kind = inner.get("model_type") if isinstance(inner, dict) else None
        if kind not in kinds:
            raise InputError(
                f"{folder / 'config.json'} has a {part} of a {shorten(repr(kind), 60)} model, expected one of "
                f"{', '.join(kinds)}: give another folder"
            )
    return transformers.VisionTextDualEncoderModel


def read_pair(folder: Path, *, source: str | Path = "") -> Any:
    """The pair of a folder: float32, frozen, in evaluation mode. source: what was asked for, for messages.

    Raises InputError as `pair_class` does, and where weights are missing.
    """
    from star.data.transformers_network import read_network

    return read_network(pair_class(folder), folder, "its towers", source=source, dtype=torch.float32)


def image_vectors(model: "CLIPModel | VisionTextDualEncoderModel", pixel_values: Tensor) -> Tensor:
    """Projected states of pictures (B, D), not normalised. pixel_values: as the pair's image processor makes them."""
    pooled: Tensor = model.vision_model(pixel_values=pixel_values).pooler_output
    return model.visual_projection(pooled.flatten(1))


def text_vectors(model: "CLIPModel | VisionTextDualEncoderModel", input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Projected states of texts (B, D), not normalised. input_ids, attention_mask: (B, T)."""
    pooled: Tensor = model.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
    return model.text_projection(pooled)
