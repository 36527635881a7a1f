"""Averaged weights, kept beside the learnt ones: of whole networks, and of networks in pieces (sharding.py)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Blend = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def blend(decay: Callable[[], float]) -> Blend:
    """mean = decay mean + (1 - decay) value, for `AveragedModel(multi_avg_fn=...)`; asks for the decay each time."""

    def move(means: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_([_here(mean) for mean in means], [_here(value) for value in values], 1 - decay())

    return move


def _here(tensor: Tensor) -> Tensor:
    """This process's piece of a DTensor, sharing its memory; an undivided tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
