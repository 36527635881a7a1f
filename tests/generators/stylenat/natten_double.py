"""A stand-in for the package natten: `na2d` by its documented signature (0.21), in plain torch over all pairs.

As strict as its CUDA kernels are. Its windows come from their definition along an axis, written apart from ours.

B batch, X Y map, N heads, E head width.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Once(torch.autograd.Function):
    """The same tensor, whose gradient has no gradient, as with the kernels."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def seen(length: int, kernel: int, dilation: int) -> Tensor:
    """(length, length) bool: who attends to whom along an axis."""
    place = torch.arange(length)
    group, rank = place % dilation, place // dilation
    members = (length - group + dilation - 1) // dilation
    centre = torch.minimum(torch.clamp(rank, min=kernel // 2), members - 1 - (kernel - 1) // 2)
    step = rank - centre[:, None]
    return (group == group[:, None]) & (step >= -(kernel // 2)) & (step <= (kernel - 1) // 2)


@dataclass
class NattenDouble:
    """What `import natten` gives. calls: window and dilation of each call."""

    HAS_LIBNATTEN: bool = True
    calls: list[tuple[int, int]] = field(default_factory=list)

    def na2d(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        is_causal: bool = False,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        backend: str | None = None,
        **_performance: Any,
    ) -> Tensor:
        """(B, X, Y, N, E) each; scale is 1 / sqrt(E) by default."""
        assert query.shape == key.shape == value.shape
        assert query.dtype == key.dtype == value.dtype
        assert query.dtype in (torch.float16, torch.bfloat16, torch.float32)
        assert query.shape[-1] % 8 == 0
        assert (stride, is_causal, additional_keys, additional_values, attention_kwargs) == (1, False, None, None, None)
        assert kernel_size > 1
        assert kernel_size * dilation <= min(query.shape[1:3])
        self.calls.append((kernel_size, dilation))
        rows, columns = (seen(length, kernel_size, dilation) for length in query.shape[1:3])
        seen_nm = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1).flatten(1)
        q, k, v = (tensor.flatten(1, 2).float() for tensor in (query, key, value))
        scores = torch.einsum("bnhe,bmhe->bhnm", q, k) * (query.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~seen_nm, float("-inf")).softmax(dim=-1)
        output = torch.einsum("bhnm,bmhe->bnhe", weights, v)
        once: Tensor = _Once.apply(output.to(query.dtype).unflatten(1, query.shape[1:3]))
        return once
