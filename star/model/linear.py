"""Linear layers, on a CPU by the kernels that are fastest there while pictures are drawn.

torch multiplies float32 matrices on x86 by MKL, which leaves the widest units of some processors unused. oneDNN, which
comes with torch, too, and does its bfloat16 anyway, uses them, and applies the GELU of an MLP on the way. Only in
inference mode: training keeps the kernels that its losses are known by. Sums round differently in the last bit.
"""

import math
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "gelu"]
TWICE_ROOT = 2 * math.sqrt(2 / math.pi)
TYPES = (torch.float32, torch.bfloat16)


def dense(layer: nn.Module, x: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """A linear layer, whose own bias may be replaced, and tanh-GELU behind it if asked for: (..., C) -> (..., C').

    A layer that an adapter stands around computes by itself.
    """
    if type(layer) is nn.Linear and by_onednn(x):
        own = layer.bias if bias is None else bias
        return onednn()(x, layer.weight, own, activation, [], "tanh" if activation == "gelu" else "")
    if activation == "gelu" and bias is None and type(layer) is nn.Linear and by_cublas(layer, x):
        return torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.T, use_gelu=True).unflatten(
            0, x.shape[:-1]
        )
    if bias is None:
        y = layer(x)
    else:
        y = F.linear(x, layer.weight, bias) if type(layer) is nn.Linear else layer(x) + bias
    return gelu(y) if activation == "gelu" else y


def gelu(y: Tensor) -> Tensor:
    """tanh-GELU (Hendrycks & Gimpel 2016), in the type given.

    A compiler of CPU code gets it for bfloat16 by a sigmoid, 1 + tanh(u) = 2 sigmoid(2u): that is an exponential,
    which takes a third of the time of a hyperbolic tangent there. The last bit of a bfloat16 may round differently.
    """
    if y.dtype != torch.bfloat16 or y.device.type != "cpu" or not torch.compiler.is_compiling():
        return F.gelu(y, approximate="tanh")
    x = y.float()
    return (x * torch.sigmoid(TWICE_ROOT * (x + 0.044715 * x**3))).to(y.dtype)


def by_onednn(x: Tensor) -> bool:
    """Whether a product is oneDNN's: of a picture that is drawn on a CPU, outside of autocast and of compilers."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_inference_mode_enabled()
        and x.device.type == "cpu"
        and x.dtype in TYPES
        and not torch.is_autocast_enabled("cpu")
        and onednn() is not None
    )


def by_cublas(layer: nn.Linear, x: Tensor) -> bool:
    """Whether a product with tanh-GELU behind it is one kernel of cuBLASLt: of a picture that is drawn on a GPU."""
    return (
        x.device.type == "cuda"
        and torch.version.hip is None
        and torch.is_inference_mode_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cuda")
        and layer.bias is not None
    )


@cache
def onednn() -> Any:
    """torch's call of oneDNN's linear layer with something behind it; None where this torch has none."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
