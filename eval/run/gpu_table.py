"""What a GPU reaches, within five minutes: python -m star.eval.run.gpu_table [--tests] [--out FILE].

Networks of the released shapes with random weights, d16 and d30 at 256, 512 and 1024 pixels, batches of 1 and 8: the
way pictures are drawn (bfloat16) in turn with the released way (float32), kernels launched for a picture, the share of
the roofline that the transformer reaches; then training steps, tokens per second and MFU; with --tests the tests marked
gpu. `--device cpu --shapes d2-64 --batch 1` rehearses it. The roofline is the longer of the time for all products at
the ceiling that this device was measured to have, and for reading the weights once per scale at that of copies.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from star.eval.run.versus import Contender, alternate, load
from star.generators.measuring import copy_ceiling, matmul_ceiling, now
from star.generators.placement import UNTRAINED, dtype_of
from star.generators.protocol import SampleOptions

SHAPES = ("d16-256", "d30-256", "d16-512", "d30-512", "d16-1024", "d30-1024")
OPTIONS = SampleOptions(guidance_scale=5.0, top_k=900, top_p=0.95)
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
DOES_NOT_FIT = "does not fit into memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """FLOP/s of bfloat16 products, and bytes per second read and written by a copy."""

    products: float
    copies: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingRow:
    """Milliseconds a picture; ratio: the released way's over ours, median over pairs. launches: of a whole batch."""

    shape: str
    batch: int
    ours_ms: float
    released_ms: float
    ratio: float
    launches: int
    roofline: float  # share of it


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRow:
    """Of whole steps with AdamW, bfloat16 by autocast. mfu: FLOPs of products, backward twice forward, per ceiling."""

    shape: str
    batch: int
    tokens_per_second: float
    mfu: float


def ceilings(device: torch.device, side: int = 8192) -> Ceilings:
    """Of this device."""
    return Ceilings(
        products=matmul_ceiling(device, "bfloat16", side), copies=copy_ceiling(device, 1024 if side > 1024 else 64)
    )


def drawing(shape: str, batch: int, device: torch.device, top: Ceilings, repetitions: int) -> DrawingRow:
    """Both ways in turn."""
    ours: Any = load(UNTRAINED + shape, str(device), torch.bfloat16)
    released: Any = load(UNTRAINED + shape, str(device), torch.float32)
    sides = [
        Contender(name=name, generator=generator, options=OPTIONS, dtype=dtype, device=device)
        for name, generator, dtype in (("ours", ours, "bfloat16"), ("released", released.baseline(), "float32"))
    ]
    versus = alternate(sides[0], sides[1], ["a red apple"], batch=batch, repetitions=repetitions)
    weights = sum(weight.numel() * weight.itemsize for weight in ours.transformer.parameters())
    products = ours.flops(guided=True) * batch / top.products
    reading = weights * ours.transformer.schedule.count / (top.copies / 2)
    return DrawingRow(
        shape=shape,
        batch=batch,
        ours_ms=1000 * versus.first.median,
        released_ms=1000 * versus.second.median,
        ratio=versus.ratio,
        launches=launches(sides[0], batch),
        roofline=max(products, reading) / (sum(versus.first.scales) * batch),
    )


def launches(side: Contender, batch: int) -> int:
    """Kernels that one batch launches on a GPU; on a CPU the calls of operators."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if side.device.type == "cuda" else [])
    with profile(activities=kinds) as profiler:
        side.generator.generate(["a red apple"] * batch, seeds=range(batch), options=side.options)
    events = profiler.key_averages()
    wanted = LAUNCHES if side.device.type == "cuda" else None
    return sum(event.count for event in events if (event.key in wanted if wanted else event.key.startswith("aten::")))


def training(shape: str, batch: int, device: torch.device, top: Ceilings, steps: int) -> TrainingRow:
    """Steps on random codes, after two that do not count; blocks compiled on a GPU."""
    generator: Any = load(UNTRAINED + shape, str(device), torch.float32)
    network = generator.transformer.train().requires_grad_(True)
    text, _ = generator.conditions(["a red apple"] * batch, OPTIONS)
    length, first = network.schedule.length, network.schedule.lengths[0]
    codes_BL = torch.randint(network.config.vocabulary, (batch, length), device=device)
    input_BlE = torch.randn(batch, length - first, network.config.code_width, device=device)
    if device.type == "cuda":
        for block in network.blocks:
            block.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    times = []
    for _ in range(2 + steps):
        start = now(device)
        with torch.autocast(device.type, dtype_of("bfloat16")):
            loss = network(input_BlE, text, codes_BL=codes_BL).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(now(device) - start)
    seconds = sorted(times[2:])[steps // 2]
    mfu = 3 * generator.flops(guided=False) * batch / seconds / top.products
    return TrainingRow(shape=shape, batch=batch, tokens_per_second=batch * length / seconds, mfu=mfu)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints each row when it is known; begins none after --seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=5, help="of each picture and training step")
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=240.0, help="after which no row begins")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices that the ceiling is measured with")
    parser.add_argument("--tests", action="store_true", help="also run the tests marked gpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    device, began = torch.device(args.device), time.monotonic()
    top = ceilings(device, args.side)
    print(f"{device}: products {top.products / 1e12:.2f} TFLOP/s, copies {top.copies / 1e9:,.0f} GB/s", flush=True)
    rows: list[dict[str, Any]] = [asdict(top)]
    smallest = min(_side(shape) for shape in args.shapes)
    train = [shape for shape in args.shapes if _side(shape) == smallest]
    jobs: list[tuple[Callable[..., DrawingRow | TrainingRow], str, int]] = [
        (drawing, shape, batch) for shape in args.shapes for batch in args.batch
    ]
    jobs += [(training, shape, args.train_batch) for shape in train]
    for work, shape, batch in jobs:
        if time.monotonic() - began > args.seconds:
            print(f"{shape}, batch {batch}, {work.__name__}: not measured, {args.seconds:g} s were over", flush=True)
            continue
        try:
            row: dict[str, Any] = {"kind": work.__name__} | asdict(work(shape, batch, device, top, args.repetitions))
        except torch.OutOfMemoryError:
            row = {"kind": work.__name__, "shape": shape, "batch": batch, "failure": DOES_NOT_FIT}
        rows.append(row)
        print(", ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if args.tests:
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], check=False).returncode
    return 0


def _side(shape: str) -> int:
    return int(shape.rpartition("-")[2])


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
