"""Attention in several ways that give the same numbers: softmax(q k) v, plain or causal over scales.

B batch, N heads, l tokens of the queries, L of the keys, d channels of a head.

Under teacher forcing, a token sees its own scale and the coarser ones. Ways to have that:

| backend   | how                                                                       | scores computed | trains on |
|-----------|---------------------------------------------------------------------------|-----------------|-----------|
| eager     | products and softmax written out, under a mask                            | L x L           | anything  |
| sdpa      | torch's fused kernel, under a mask                                        | L x L           | anything  |
| scalewise | the fused kernel once for each scale, whose keys are all so far: no mask  | those seen      | anything  |
| flash     | the same by a kernel that knows no mask                                   | those seen      | anything  |
| flex      | FlexAttention: blocks of 128 x 128 scores that nobody sees are skipped    | few more        | GPU       |
| auto      | flash on CUDA devices, else sdpa                                          | as these        | anything  |

More than a third of L x L is never seen. Elsewhere (drawing, text) nothing is causal. Which kernel that comes to on a
device is decided in kernels/choice.py.
"""

from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.model.kernels import flash
from star.model.kernels.choice import BLOCKS, SCALEWISE, Use, asked, causal_form, kernel_of


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    backend: str,
    use: Use = "drawing",
) -> Tensor:
    """softmax(scale * q k + mask) v for (B, N, l, d) tensors; mask is additive in the queries' type.

    use: what it serves, where the backend leaves the kernel open.
    """
    if backend in ("flash", "auto") and mask is None:
        kernel = kernel_of(use, backend, queries.device, queries.dtype, queries.shape[-1])
        if kernel in flash.NAMES:
            return flash.WHOLE_ROWS[kernel](queries, keys, values, scale)
    if backend != "eager":
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    scores = queries @ keys.transpose(-2, -1) * scale
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ values


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean attention mask (True: attended to) as 0 and -inf."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


class ScaleCausality:
    """Who sees whom among the tokens of all scales, prepared for one backend; the same for every block and batch."""

    def __init__(self, lengths: tuple[int, ...], backend: str, dtype: torch.dtype, device: torch.device) -> None:
        """lengths: tokens of each scale, coarse to fine. dtype, device: what the queries will have."""
        backend = asked(backend)
        self.lengths, self.backend, self.form = lengths, backend, causal_form(backend, device)
        level_L = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
        self._mask_LL: Tensor | None = None
        self._blocks: Any = None
        if self.form == BLOCKS:
            self._blocks = _block_mask(level_L)
        elif self.form != SCALEWISE:
            self._mask_LL = additive(level_L[:, None] >= level_L[None, :], dtype)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """(B, N, L, d) tensors; every token of a scale reads its own scale and the coarser ones."""
        if self.form == BLOCKS:
            if queries.requires_grad:
                refuse_untrainable(self.backend, queries.device)
            return _flex(queries, keys, values, self._blocks, scale)
        if self.form != SCALEWISE:
            return attend(queries, keys, values, self._mask_LL, scale, self.backend)
        stops = tuple(accumulate(self.lengths))
        seen_keys, seen_values = _beginnings(keys, stops), _beginnings(values, stops)
        parts = zip(queries.split(self.lengths, dim=2), seen_keys, seen_values, strict=True)
        return torch.cat([attend(*part, None, scale, self.backend, "training") for part in parts], dim=2)


def _beginnings(tensor: Tensor, stops: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The first tokens of (B, N, L, d), up to each stop; the last one is L."""
    if torch.compiler.is_compiling():  # the compiler joins the sums of slices' gradients by itself
        return tuple(tensor[:, :, :stop] for stop in stops)
    beginnings: tuple[Tensor, ...] = _Beginnings.apply(tensor, stops)
    return beginnings


class _Beginnings(torch.autograd.Function):
    """Slices whose gradients are added up in one tensor. By torch's own each would fill a tensor of all L tokens, most
    of it with zeros, to the same sums."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, stops: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.stops = stops
        return tuple(tensor[:, :, :stop] for stop in stops)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[-1].clone()
        for stop, gradient in zip(reversed(ctx.stops[:-1]), reversed(gradients[:-1]), strict=True):
            total[:, :, :stop] += gradient
        return total, None


def refuse_untrainable(backend: str, device: torch.device) -> None:
    """Raises InputError for a backend that has no gradient on this device."""
    if asked(backend) == "flex" and device.type == "cpu":
        raise InputError(
            "attention is flex, which has no gradient on a CPU, expected sdpa, eager, scalewise, flash or auto there: "
            "choose one, or train on a GPU"
        )


def _block_mask(level_L: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return level_L[query] >= level_L[key]

    length = len(level_L)
    return create_block_mask(seen, None, None, length, length, device=level_L.device)


def _flex(queries: Tensor, keys: Tensor, values: Tensor, blocks: Any, scale: float) -> Tensor:
    """FlexAttention, one kernel once compiled: with the block around it, or else alone. A CPU is spared that."""
    from torch.nn.attention.flex_attention import flex_attention

    plain = queries.device.type == "cpu" or torch.compiler.is_compiling()
    function: Any = flex_attention if plain else _compiled(flex_attention)
    return function(queries, keys, values, block_mask=blocks, scale=scale)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)
