"""What a device takes and can do: a clock, peak memory, its name, and the ceilings that speeds are held against."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from star.generators.placement import dtype_of

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def matmul_ceiling(device: torch.device, dtype: str, side: int = 1024, repetitions: int = 8) -> float:
    """FLOP/s of a product of two square matrices by the kernel that drawing uses, the best of some."""
    with torch.inference_mode():
        layer = torch.nn.Linear(side, side, device=device, dtype=dtype_of(dtype))
        x = torch.randn(side, side, device=device, dtype=dtype_of(dtype))
        product: Any = torch.nn.functional.linear
        if device.type == "cpu" and (fused := getattr(torch.ops.mkldnn, "_linear_pointwise", None)) is not None:

            def product(x: Any, weight: Any, bias: Any) -> Any:
                return fused(x, weight, bias, "none", [], "")

        times = []
        for _ in range(repetitions):
            start = now(device)
            product(x, layer.weight, layer.bias)
            times.append(now(device) - start)
    return 2 * side**3 / min(times)


def copy_ceiling(device: torch.device, mebibytes: int = 256, repetitions: int = 5) -> float:
    """Bytes per second that are read and written when memory is copied, the best of some."""
    source = torch.zeros(mebibytes * 2**20, dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(repetitions):
        start = now(device)
        target.copy_(source)
        times.append(now(device) - start)
    return 2 * source.numel() / min(times)


def now(device: torch.device) -> float:
    """The wall clock, when a GPU has done all it was asked; with one thread of a CPU, the time the process had it.

    On a core of its own that is the same; on one that is shared, what others take of it does not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Starts `peak` anew from what is in use now; not possible for a CPU on systems other than Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # then the peak stays that of the whole life of the process
        RESET.write_text("5", encoding="utf-8")


def peak(device: torch.device) -> int:
    """Bytes at most in use since `reset_peak`.

    On a GPU what torch allocated for tensors. On a CPU the resident set of the whole process, with Python, libraries
    and the weights of everything loaded: measure each model in a process of its own.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # Windows has none

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def device_name(device: torch.device) -> str:
    """What a table calls the device: the GPU's product name, or "CPU" with the processor's name where it is known."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"CPU ({line.partition(':')[2].strip()})"
    return device.type.upper()
