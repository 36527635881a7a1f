"""A stand-in for the package flash-attn: its two functions by their documented signatures (2.8), in plain torch.

It is as strict as the kernels: layouts, types, int32 starts, limits. As with the kernels, the gradient of keys that no
row reads is whatever the memory held; here NaN.

B rows, L tokens, N heads, d channels; of packed rows Q queries and P keys in all.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


class _Unwritten(torch.autograd.Function):
    """The same tensor, whose rows from `count` on get NaN for a gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, count: int) -> Tensor:
        ctx.count = count
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        gradient[ctx.count :] = float("nan")
        return gradient, None


@dataclass
class FlashDouble:
    """What `import flash_attn` gives. calls: the function and the scale of each call."""

    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32)
    calls: list[tuple[str, float]] = field(default_factory=list)

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> Tensor:
        """(B, L, N, d) each, the last axis without gaps; softmax_scale is 1 / sqrt(d) by default."""
        self._check(4, q, k, v)
        assert (len(q), *q.shape[2:]) == (len(k), *k.shape[2:])
        assert (dropout_p, causal, window_size, softcap, alibi_slopes) == (0.0, False, (-1, -1), 0.0, None)
        self.calls.append(("flash_attn_func", self._scale(q, softmax_scale)))
        return self._attend(q, k, v, softmax_scale)

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: Tensor | None = None,
    ) -> Tensor:
        """(Q or P, N, d) each; the starts are int32 (B + 1,)."""
        self._check(3, q, k, v)
        assert q.shape[1:] == k.shape[1:]
        assert (dropout_p, causal, window_size, softcap, alibi_slopes) == (0.0, False, (-1, -1), 0.0, None)
        spans = []
        for starts, tensor, most in ((cu_seqlens_q, q, max_seqlen_q), (cu_seqlens_k, k, max_seqlen_k)):
            assert starts.dtype == torch.int32
            assert starts.is_contiguous()
            ends = starts.tolist()
            assert ends[0] == 0
            assert ends[-1] <= len(tensor)
            assert max(starts.diff().tolist()) <= most
            spans.append([slice(start, stop) for start, stop in pairwise(ends)])
        assert len(spans[0]) == len(spans[1])
        self.calls.append(("flash_attn_varlen_func", self._scale(q, softmax_scale)))
        k, v = (_Unwritten.apply(tensor, int(cu_seqlens_k[-1])) for tensor in (k, v))
        rows = [
            self._attend(q[None, own], k[None, words], v[None, words], softmax_scale)[0]
            for own, words in zip(*spans, strict=True)
        ]
        return torch.cat(rows)

    def varlen_attn(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        seqused_k: Tensor | None = None,
        block_table: Tensor | None = None,
        num_splits: int | None = None,
    ) -> Tensor:
        """torch.nn.attention.varlen's, which means the same."""
        assert (return_aux, window_size, enable_gqa, seqused_k, block_table) == (None, (-1, -1), False, None, None)
        assert cu_seq_k is not None
        return self.flash_attn_varlen_func(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, softmax_scale=scale, window_size=window_size
        )

    def _check(self, dimensions: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        for tensor in (q, k, v):
            assert tensor.dim() == dimensions
            assert tensor.stride(-1) == 1
            assert tensor.dtype == q.dtype
        assert q.dtype in self.dtypes
        assert k.shape == v.shape
        assert q.shape[-1] % 8 == 0
        assert q.shape[-1] <= 256

    def _scale(self, q: Tensor, given: float | None) -> float:
        return q.shape[-1] ** -0.5 if given is None else given

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        scores = torch.einsum("blnd,bmnd->bnlm", q.float(), k.float()) * self._scale(q, scale)
        return torch.einsum("bnlm,bmnd->blnd", scores.softmax(dim=-1), v.float()).to(q.dtype)
