"""Neighbourhood attention by the kernels of the package natten (Hassani et al. 2024, "Faster neighborhood attention").

They know no bias table (since 0.20), and take heads in steps of 8 channels, windows of 2 and more, on CUDA devices.
Their gradient cannot be differentiated: where somebody does, it is computed by another backend, which can. Without its
compiled library natten is slower than our tiles, and is not used.

B batch, N heads, H W map, E head width.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from star.generators.kernel_choice import trial

DEVICES: tuple[str, ...] = ("cuda",)
DTYPES: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32)
STEP = 8  # channels of a head
TRIED = ((1, 2, 7, 9), 3, 2)  # (B, N, H, W), kernel, dilation of the problem that is tried first

Attend = Callable[[Tensor, Tensor, Tensor, int, int, float], Tensor]  # query, key, value, kernel, dilation, scale


def refusal(
    device: torch.device, dtype: torch.dtype, head_width: int, kernel: int, has_table: bool, rule: Attend
) -> str:
    """Why natten cannot compute such attention; "" if it can. rule: what its numbers are held against, once."""
    if has_table:
        return "natten knows no bias table"
    if device.type not in DEVICES:
        return f"natten knows no {device.type}"
    if dtype not in DTYPES:
        return f"natten knows no {str(dtype).removeprefix('torch.')}"
    if head_width % STEP:
        return f"natten takes heads in steps of {STEP} channels, not {head_width}"
    if kernel < 2:
        return "natten takes windows of 2 and more"
    return missing() or _tried(device, dtype, head_width, rule)


@cache
def missing() -> str:
    """Why natten is not there with its compiled library; "" if it is."""
    try:
        compiled = bool(importlib.import_module("natten").HAS_LIBNATTEN)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # an import that fails half-way, too
        return f"natten is not there ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    return "" if compiled else "natten has no compiled library here"


@cache
def _tried(device: torch.device, dtype: torch.dtype, head_width: int, rule: Attend) -> str:
    """A small problem with gradients."""
    sizes, kernel, dilation = TRIED

    def run() -> tuple[Tensor, Tensor]:
        found = []
        for attend, numbers in ((na2d, dtype), (rule, torch.float32)):
            leaves = []
            for turn in (1, 2, 3):
                count = torch.arange(torch.Size((*sizes, head_width)).numel(), device=device, dtype=torch.float32)
                leaf = (count * turn).sin().view(*sizes, head_width).to(dtype)
                leaves.append(leaf.to(numbers).requires_grad_())
            output = attend(leaves[0], leaves[1], leaves[2], kernel, dilation, 1 / head_width)
            gradients = torch.autograd.grad(output.float().square().sum(), leaves)
            found.append(torch.cat([tensor.float().flatten() for tensor in (output, *gradients)]).detach())
        return found[0], found[1]

    return f"natten {why}" if (why := trial(run)) else ""


def na2d(query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int, scale: float) -> Tensor:
    """(B, N, H, W, E), by natten as it is; its own layout is (B, H, W, N, E)."""
    beside = (tensor.permute(0, 2, 3, 1, 4).contiguous() for tensor in (query, key, value))
    function = importlib.import_module("natten").na2d
    output: Tensor = function(*beside, kernel_size=kernel, dilation=dilation, scale=scale)
    return output.permute(0, 3, 1, 2, 4)


class NattenAttention(torch.autograd.Function):
    """`na2d`, whose gradient comes from `again` where it is to be differentiated itself."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int, scale: float, again: Attend
    ) -> Tensor:
        if not any(ctx.needs_input_grad[:3]):
            return na2d(query, key, value, kernel, dilation, scale)
        ctx.save_for_backward(query, key, value)
        ctx.options, ctx.again = (kernel, dilation, scale), again
        with torch.enable_grad():
            ctx.leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
            ctx.output = na2d(*ctx.leaves, *ctx.options)
        return ctx.output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # somebody goes on to differentiate what is returned here
            needs = ctx.needs_input_grad[:3]
            wanted = [tensor for tensor, needed in zip(ctx.saved_tensors, needs, strict=True) if needed]
            again = ctx.again(*ctx.saved_tensors, *ctx.options)
            some = iter(torch.autograd.grad(again, wanted, gradients[0], create_graph=True))
            return (*(next(some) if needed else None for needed in needs), *(None,) * 4)
        found = torch.autograd.grad(ctx.output, ctx.leaves, gradients[0], retain_graph=True)
        return (*found, *(None,) * 4)
