"""Batches, what training is handed, and chunks, the same on their way between processes.

Shapes: B batch, H W pixels, 3 RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from star.data.images import pixels_to_image
from star.data.loader.virtual_workers import Chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B captioned pictures. `prompts` are the captions chosen for this epoch, `captions` all there are.

    Samples that are not pictures have their tensors (B, ...) by name in `extra`, and an image_B3HW without pixels (its
    shape may tell theirs).
    """

    image_B3HW: Tensor
    prompts: list[str]
    keys: list[str]
    captions: list[tuple[str, ...]]
    info: list[dict[str, Any]]
    epochs: list[int]
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def pinned(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies while the host goes on; see `to_device`."""
        extra = {name: tensor.pin_memory() for name, tensor in self.extra.items()}
        return replace(self, image_B3HW=self.image_B3HW.pin_memory(), extra=extra)

    def pick(self, places: Sequence[int]) -> "Batch":
        """The samples at these places, in this order; a place may come more than once."""
        index = torch.tensor(places, dtype=torch.int64)
        return Batch(
            image_B3HW=self.image_B3HW[index],
            prompts=[self.prompts[place] for place in places],
            keys=[self.keys[place] for place in places],
            captions=[self.captions[place] for place in places],
            info=[self.info[place] for place in places],
            epochs=[self.epochs[place] for place in places],
            extra={name: tensor[index] for name, tensor in self.extra.items()},
        )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a batch where it is needed; out of page-locked memory the host does not wait for the copy."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and tensor.is_pinned())


def to_batch(chunk: Chunk) -> Batch:
    return Batch(
        image_B3HW=pixels_to_image(chunk.pixels_B3HW),
        prompts=chunk.prompts,
        keys=chunk.keys,
        captions=chunk.captions,
        info=chunk.info,
        epochs=chunk.epochs,
        extra=chunk.extra,
    )


def cut(chunk: Chunk, first: int, end: int) -> Chunk:
    part = slice(first, end)
    return Chunk(
        pixels_B3HW=chunk.pixels_B3HW[part],
        prompts=chunk.prompts[part],
        keys=chunk.keys[part],
        captions=chunk.captions[part],
        info=chunk.info[part],
        epochs=chunk.epochs[part],
        extra={name: tensor[part] for name, tensor in chunk.extra.items()},
        faults=[],
    )


def joined(chunks: Sequence[Chunk]) -> Chunk:
    chunks = [chunk for chunk in chunks if chunk.keys]
    return Chunk(
        pixels_B3HW=torch.cat([chunk.pixels_B3HW for chunk in chunks]),
        prompts=[prompt for chunk in chunks for prompt in chunk.prompts],
        keys=[key for chunk in chunks for key in chunk.keys],
        captions=[captions for chunk in chunks for captions in chunk.captions],
        info=[info for chunk in chunks for info in chunk.info],
        epochs=[epoch for chunk in chunks for epoch in chunk.epochs],
        extra={name: torch.cat([chunk.extra[name] for chunk in chunks]) for name in chunks[0].extra},
        faults=[],
    )
