"""Time and memory of neighbourhood attention by its backends, as `python -m star.generators.stylenat.neighborhood`
prints them.

Time is the processor's own on a CPU, so that other programs disturb it little, and the device's elsewhere; the least of
a few runs. Memory is what a forward and a backward pass take beyond what was there before them, at their peak.

B batch, N heads, H W map, E head width.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from star.generators.stylenat.neighborhood import choose, neighborhood_attention

# (B, N, H, W, E), kernel, dilation: the groups of heads of a StyleNAT of 64 pixels, and of one of 256 for one picture
SIZES = (
    ((4, 2, 16, 16, 32), 7, 2),
    ((4, 2, 32, 32, 32), 7, 1),
    ((4, 2, 64, 64, 16), 7, 1),
    ((4, 2, 64, 64, 16), 7, 8),
    ((1, 2, 128, 128, 32), 7, 16),
)
LARGEST_DENSE = 64**2  # places, beyond which all pairs would fill the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    forward: float  # milliseconds, without a gradient
    both: float  # milliseconds, forward and backward
    memory: float  # MB


def measure(
    backend: str,
    shape: tuple[int, int, int, int, int],
    *,
    kernel: int,
    dilation: int,
    bias: bool = True,
    device: str = "cpu",
    repeats: int = 1,
) -> Measured:
    """One backend at one size, float32, with a bias table where the backend knows one."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(shape, device=device, requires_grad=True) for _ in range(3))
    side = 2 * kernel - 1
    table = torch.randn(shape[1], side, side, device=device, requires_grad=True) if bias else None

    def forward() -> torch.Tensor:
        return neighborhood_attention(
            query, key, value, kernel=kernel, dilation=dilation, table_Nbb=table, backend=backend
        )

    def without_gradient() -> None:
        with torch.no_grad():
            forward()

    def both() -> None:
        forward().sum().backward()

    memory = _peak(both, device)
    return Measured(
        forward=_least(without_gradient, device, repeats), both=_least(both, device, repeats), memory=memory
    )


def _least(work: Callable[[], None], device: str, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        if device == "cpu":
            start = time.process_time()
            work()
            times.append(1e3 * (time.process_time() - start))
        else:
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def _peak(work: Callable[[], None], device: str) -> float:
    """MB: on a CPU the peak of the running sum of what was allocated and freed, in the order it happened."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m star.generators.stylenat.neighborhood", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the fastest counts (default: 3)")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    chosen = {choose(device, torch.float32, shape[-1], kernel, False) for shape, kernel, _ in SIZES}
    backends = ["tiled", "gather", "dense", *(["natten"] if any(one.kernel == "natten" for one in chosen) else [])]
    print(f"float32, torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    for one in sorted(chosen | {choose(device, torch.float32, 32, 7, True)}, key=str):
        print(f"auto: {one}")
    print()
    print("| B N H W E | kernel, dilation | backend | forward, ms | forward and backward, ms | peak, MB |")
    print("|---|---|---|---|---|---|")
    for shape, kernel, dilation in SIZES:
        for backend in backends:
            if backend == "dense" and shape[2] * shape[3] > LARGEST_DENSE:
                continue
            found = measure(
                backend,
                shape,
                kernel=kernel,
                dilation=dilation,
                bias=backend != "natten",
                device=options.device,
                repeats=options.repeats,
            )
            size = " ".join(str(length) for length in shape)
            print(
                f"| {size} | {kernel}, {dilation} | {backend} | {found.forward:.1f} | {found.both:.1f} | "
                f"{found.memory:.0f} |",
                flush=True,
            )
