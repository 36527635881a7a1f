"""Networks that are built to be loaded: no random numbers are drawn for weights that would only be overwritten.

    with unfilled():
        network = Network(config)          # on the meta device: shapes alone
    fill(network, tensors, torch.float32)  # its weights are these tensors from now on

Initialisation on the meta device makes torch load its compiler and sympy, which takes a second of a start.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

STARTS = ("uniform", "normal", "trunc_normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")
IN_PLACE = ("normal_", "uniform_", "erfinv_", "bernoulli_", "fill_", "zero_", "mul_", "div_", "add_", "clamp_", "copy_")
SKIPPED = frozenset({*(getattr(nn.init, f"{name}_") for name in STARTS), *(getattr(Tensor, name) for name in IN_PLACE)})


class _NoValues(TorchFunctionMode):
    """Functions that give a tensor other values do nothing to one that has none."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in SKIPPED:
            tensor: Tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """What is built inside lies on the meta device unless it names a device, and draws no random numbers."""
    with torch.device("meta"), _NoValues():
        yield


def fill(network: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Makes tensors, of the names and shapes of its state dict, the weights of a network that was built `unfilled`.

    dtype: of all floating ones; as stored if None. Each is a copy in memory of its own.
    """
    own = {
        name: tensor.to(dtype or tensor.dtype, copy=True) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in tensors.items()
    }
    network.load_state_dict(own, assign=True)
    left = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    assert not left, f"{left} have no values"
