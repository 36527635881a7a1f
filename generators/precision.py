"""How exactly float32 multiplies on a GPU: the one place that says so.

Training allows TF32 there: products of matrices round what goes in to 10 bits of mantissa and add up in float32, seven
times as fast as full float32 on an H100 by its data sheet. What must not be rounded says `full_float32`: the choice of
codes, which a last bit decides. CPUs are left alone. NVIDIA_TF32_OVERRIDE=0 in the environment turns TF32 off.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def allow_tf32(device: torch.device) -> None:
    """For products and convolutions in float32 of this process, if its device is a GPU."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices in full float32, whatever was allowed before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
