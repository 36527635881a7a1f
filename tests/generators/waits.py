"""Counts what makes the host wait for a device: reading a number off a tensor, or asking how many elements are true."""

import traceback
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# On a CPU nothing waits, but the operations are the same.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}


class Waits(TorchDispatchMode):
    """A context that counts them by the place in our code that they come from: "file:function"."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITING:
            frames = [frame for frame in traceback.extract_stack()[:-1] if "site-packages" not in frame.filename]
            self.places[f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].name}"] += 1
        return function(*args, **(kwargs or {}))
