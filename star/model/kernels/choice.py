"""The one dispatch of attention: which kernel computes it, in which form, and why.

    choose("drawing", "auto", device, torch.bfloat16, 64)
    # drawing: whole rows, flash-attn (takes bfloat16 heads of 64 channels on cuda)

| backend   | training: causal over scales    | drawing: all keys so far | text: prompts of several lengths      |
|-----------|---------------------------------|--------------------------|---------------------------------------|
| eager     | written out, under a mask       | written out              | written out, under a mask             |
| sdpa      | torch's choice, under a mask    | torch's choice           | torch's choice, under a mask          |
| scalewise | torch's choice, scale by scale  | torch's choice           | torch's choice, under a mask          |
| flex      | FlexAttention, by blocks        | torch's choice           | torch's choice, under a mask          |
| flash     | flash, scale by scale           | flash                    | flash, on words one behind the other  |
| auto      | on CUDA as flash, else as sdpa  | as flash, or as sdpa     | as flash, or as sdpa                  |

The backend is what a network's config says, unless the environment variable STAR_ATTENTION names another. "flash" is
the package flash-attn where it is there and takes the device, the type and the head, else torch's own flash
kernel (see flash.py), else what sdpa does. "torch's choice" is scaled_dot_product_attention.
"""

import os
from functools import cache
from typing import Literal, get_args

import torch

from star.data.errors import InputError
from star.generators.kernel_choice import Choice, announce
from star.model.kernels import flash

Attention = Literal["sdpa", "eager", "scalewise", "flex", "flash", "auto"]
BACKENDS: tuple[str, ...] = get_args(Attention)
Use = Literal["training", "drawing", "text"]
USES: tuple[Use, ...] = get_args(Use)
MASKED, SCALEWISE, BLOCKS, WHOLE, PACKED = "under a mask", "scale by scale", "by blocks", "whole rows", "packed rows"


def asked(configured: str) -> str:
    """The backend to use where a config names this one. Raises InputError if STAR_ATTENTION names none."""
    backend = os.environ.get("STAR_ATTENTION") or configured
    if backend not in BACKENDS:
        raise InputError(
            f"STAR_ATTENTION is {backend!r}, expected one of {', '.join(BACKENDS)}: choose one, or unset it"
        )
    return backend


def causal_form(backend: str, device: torch.device) -> str:
    """How a backend keeps tokens from finer scales while training."""
    if backend == "auto":
        backend = "flash" if device.type in flash.DEVICES else "sdpa"
    return {"scalewise": SCALEWISE, "flash": SCALEWISE, "flex": BLOCKS}.get(backend, MASKED)


@cache
def choose(use: Use, backend: str, device: torch.device, dtype: torch.dtype, head_width: int) -> Choice:
    """The kernel for a use, tried once on this device; logged when it is chosen first."""
    form = {"training": causal_form(backend, device), "drawing": WHOLE, "text": MASKED}[use]
    if backend not in ("flash", "auto"):
        kernel = {"eager": "eager", "flex": "flex" if use == "training" else "sdpa"}.get(backend, "sdpa")
        return Choice(use, form, kernel, f"attention is {backend}")
    refusals: list[str] = []
    for name in flash.NAMES:
        why = flash.refusal(name, device, dtype, head_width, packed=use == "text")
        if not why:
            kind = f"takes {str(dtype).removeprefix('torch.')} heads of {head_width} channels on {device.type}"
            chosen = Choice(use, PACKED if use == "text" else form, name, "; ".join((kind, *refusals)))
            announce(chosen)
            return chosen
        refusals.append(why)
    chosen = Choice(use, form, "sdpa", "; ".join(refusals))
    announce(chosen, asked=backend == "flash")
    return chosen


def kernel_of(use: Use, backend: str, device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """The name alone, which torch.compile asks for once, while it reads the code."""
    return choose(use, backend, device, dtype, head_width).kernel


# What torch.compiler.assume_constant_result does, which would load the compiler for those who only draw.
kernel_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choices(backend: str, device: torch.device, dtype: torch.dtype, head_width: int) -> tuple[Choice, ...]:
    """For every use."""
    return tuple(choose(use, backend, device, dtype, head_width) for use in USES)
