"""What the networks of a GAN are told about each picture: its caption as a unit vector, its class, or nothing.

B batch, P condition width, D text width, T text tokens.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.tensor_cache import TensorCache
from star.data.text import TextEncoder, text_projection
from star.generators.gan.generator import GanNetwork, embed
from star.generators.registry import place_of

KEPT = 2**28  # bytes of captions' vectors on the device: 131,072 captions at 512 numbers


class Conditioner:
    """Conditions of batches for a network; vectors of captions are cached, in `KEPT` bytes those used last."""

    def __init__(self, network: GanNetwork, clip: str, labels: Sequence[str], device: torch.device) -> None:
        """Raises InputError if the CLIP or the labels do not fit the network."""
        self.kind, self.width, self.device = network.conditioning, network.condition_width, device
        self.labels = tuple(labels)
        self.text_encoder: TextEncoder | None = None
        self.projection: Tensor | None = None
        self._known = TensorCache(KEPT)
        if self.kind == "text":
            self.text_encoder = TextEncoder.from_pretrained(place_of(clip), device=device)
            projection_PD = text_projection(place_of(clip))
            self.projection = None if projection_PD is None else projection_PD.to(device)
            width = self.text_encoder.width if self.projection is None else len(self.projection)
            if width != self.width:
                raise InputError(
                    f"network.condition_width is {self.width}, expected {width}, as {clip} gives: correct it"
                )
        if self.kind == "class" and self.labels and len(self.labels) != self.width:
            raise InputError(f"{len(self.labels)} labels are given for {self.width} classes: give one for each")

    def of(self, prompts: Sequence[str], info: Sequence[dict[str, Any]]) -> Tensor | None:
        """condition_BP on the device. Raises InputError for a sample without a class where classes are learnt."""
        if self.kind == "none":
            return None
        if self.kind == "class":
            classes = [self._class(about) for about in info]
            return F.one_hot(torch.tensor(classes, device=self.device), self.width).float()
        vectors = self._known.of(prompts, self._embedded)
        return torch.stack([vectors[prompt][0] for prompt in prompts])

    def _embedded(self, prompts: list[str]) -> list[tuple[Tensor]]:
        assert self.text_encoder is not None
        return [(vector_P,) for vector_P in embed(self.text_encoder, self.projection, prompts)]

    def _class(self, about: dict[str, Any]) -> int:
        label = about.get("label")
        if not isinstance(label, int) or not 0 <= label < self.width:
            raise InputError(
                f"a sample's label is {label!r}, expected a number from 0 to {self.width - 1} in its json: give shards "
                "with labels, or train without classes"
            )
        return label


class TrainableTextEncoder(nn.Module):
    """A copy of the text encoder that learns with the generator (Sauer et al. 2023, the text-encoder phase)."""

    def __init__(self, text_encoder: TextEncoder, projection_PD: Tensor | None) -> None:
        super().__init__()
        self.tower = copy.deepcopy(text_encoder.tower).requires_grad_(True)
        self.tokenize = text_encoder.tokenize
        self.tokenizer = text_encoder.tokenizer
        self.projection_PD = projection_PD

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """condition_BP of unit length, with gradients."""
        ids_BT, mask_BT = self.tokenize(prompts)
        device = self.tower.device
        pooled_BD = self.tower(input_ids=ids_BT.to(device), attention_mask=mask_BT.long().to(device)).pooler_output
        vectors_BP = pooled_BD if self.projection_PD is None else F.linear(pooled_BD, self.projection_PD)
        return F.normalize(vectors_BP, dim=1)

    def encoder(self) -> TextEncoder:
        """A frozen copy as a text encoder of its own, to draw and to save with."""
        return TextEncoder(copy.deepcopy(self.tower), self.tokenizer)
