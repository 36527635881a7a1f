"""What a GPU reaches, within five minutes: python -m star.eval.run.gpu_table [--tests] [--out FILE].

| kind          | what is measured, networks of the released shapes with random weights                              |
|---------------|----------------------------------------------------------------------------------------------------|
| packages      | which of flash-attn, natten and triton are there                                                   |
| training      | a step in turn with the released one: ratio, tokens per second, MFU; d16 and d30 at 256 pixels     |
| attention     | forward and backward by every backend at 680, 2,240 and 9,451 tokens                               |
| neighbourhood | StyleNAT's, by its own tiles and by natten                                                         |
| in_pieces     | a step by FSDP2 in a world of one process                                                          |
| drawing       | d16 and d30 at 256, 512 and 1,024 pixels in turn with the released way, launches, roofline |

Each row is told when it is known, all of them in one table with goals at the end, and as JSON with --out; with --tests
the tests marked gpu follow. `--device cpu --shapes d1-64 --batch 1` rehearses it. The roofline of
drawing is the longer of the time for all products at the ceiling that this device was measured to have, and for reading
the weights once per scale at that of copies.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from star.eval.run import gpu_rows
from star.eval.run.launches import launches
from star.eval.run.versus import Contender, alternate, load
from star.generators.measuring import copy_ceiling, matmul_ceiling
from star.generators.placement import UNTRAINED
from star.generators.protocol import SampleOptions

SHAPES = ("d16-256", "d30-256", "d16-512", "d30-512", "d16-1024", "d30-1024")
OPTIONS = SampleOptions(guidance_scale=5.0, top_k=900, top_p=0.95)
DOES_NOT_FIT = "does not fit into memory"
GOALS = {  # kind of row: figure that has a goal, its least value, and for which shapes
    "training": (("ratio", 1.25, ""), ("mfu", 0.5, "d16")),
    "drawing": (("ratio", 1.0, ""),),
}
SHOWN = {  # kind of row: what the table at the end tells of it
    "training": ("ours_ms", "released_ms", "ratio", "mfu", "released_mfu", "tokens_per_second"),
    "drawing": ("ours_ms", "released_ms", "ratio", "roofline", "launches", "launches_eager"),
    "attention": ("ms", "reach"),
    "in_pieces": ("ms",),
    "neighbourhood": ("forward_ms", "ms"),
    "packages": ("torch", "flash-attn", "natten", "natten's library", "triton"),
}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """FLOP/s of bfloat16 products, and bytes per second read and written by a copy."""

    products: float
    copies: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingRow:
    """Milliseconds a picture; ratio: the released way's over ours, median over pairs.

    launches: of a whole batch; launches_eager: without CUDA graphs.
    """

    shape: str
    batch: int
    ours_ms: float
    released_ms: float
    ratio: float
    launches: int
    launches_eager: int
    roofline: float  # share of it


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
        launches_eager=_without_graphs(sides[0], batch),
        roofline=max(products, reading) / (sum(versus.first.scales) * batch),
    )


def jobs(args: argparse.Namespace, device: torch.device, top: Ceilings) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Kind, name and work of every row, what matters most first."""
    steps, products = args.repetitions, top.products
    yield "packages", "", gpu_rows.installed
    smallest = min(_side(shape) for shape in args.shapes)
    train = [(shape, _train_batch(shape, args.train_batch)) for shape in args.shapes if _side(shape) == smallest]
    for shape, batch in train:
        yield (
            "training",
            f"{shape}, batch {batch}",
            partial(_as_row, gpu_rows.training, shape, batch, device, products, steps),
        )
    for side in args.attention or ([256, 512, 1024] if device.type == "cuda" else [smallest]):
        for backend in gpu_rows.backends():
            batch = max(1, args.train_batch * 256**2 // side**2 // 4)
            work = partial(_as_row, gpu_rows.attention, side, backend, batch, device, products, steps)
            yield "attention", f"{side} px, {backend}", work
    for backend in ("tiled", "natten"):
        yield "neighbourhood", backend, partial(gpu_rows.neighbourhood, backend, device, steps)
    shape, batch = train[0]
    yield "in_pieces", f"{shape}, batch {batch}", partial(gpu_rows.in_pieces, shape, batch, device, steps)
    for shape in args.shapes:
        for batch in args.batch:
            yield "drawing", f"{shape}, batch {batch}", partial(_as_row, drawing, shape, batch, device, top, steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints each row when it is known; begins none after --seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=5, help="of each picture and training step")
    parser.add_argument("--train-batch", type=int, default=32, help="of d16; deeper networks get a quarter")
    parser.add_argument(
        "--attention",
        nargs="+",
        type=int,
        metavar="PIXELS",
        help="sides whose tokens attention is timed at (default: 256 512 1024; on a CPU the least of the shapes)",
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="after which no row begins")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices that the ceiling is measured with")
    parser.add_argument("--tests", action="store_true", help="also run the tests marked gpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    device, began = torch.device(args.device), time.monotonic()
    top = ceilings(device, args.side)
    print(f"{device}: products {top.products / 1e12:.2f} TFLOP/s, copies {top.copies / 1e9:,.0f} GB/s", flush=True)
    rows: list[Row] = []
    for kind, name, work in jobs(args, device, top):
        if time.monotonic() - began > args.seconds:
            print(f"{kind} {name}: not measured, {args.seconds:g} s were over", flush=True)
            rows.append({"kind": kind, "shape": name, "failure": "not measured: no time was left"})
            continue
        try:
            rows.append({"kind": kind} | work())
        except torch.OutOfMemoryError:
            rows.append({"kind": kind, "shape": name, "failure": DOES_NOT_FIT})
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(", ".join(f"{key} {_short(value)}" for key, value in rows[-1].items() if value != ""), flush=True)
    print("\n" + "\n".join(summary(rows)), flush=True)
    if args.out:
        args.out.write_text(json.dumps([asdict(top), *rows], indent=1) + "\n", encoding="utf-8")
    if args.tests:
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], check=False).returncode
    return 0


def _without_graphs(side: Contender, batch: int) -> int:
    generator: Any = side.generator
    mode, generator.graphs = generator.graphs, "off"
    counted = launches(side, batch)
    generator.graphs = mode
    return counted


def summary(rows: Sequence[Row]) -> list[str]:
    """All rows as one table with columns under each other; behind a figure that has a goal, whether it is reached."""
    cells = [("kind", "of what", "figures")]
    for row in rows:
        kind, what = row["kind"], str(row["shape"])
        what += f", {row['backend']}" if row.get("backend") else ""
        what += f", batch {row['batch']}" if "batch" in row else ""
        goals = {name: least for name, least, start in GOALS.get(kind, ()) if what.startswith(start)}
        figures = row.get("failure") or "; ".join(
            f"{name} {_short(row[name])}" + (_verdict(row[name], goals[name]) if name in goals else "")
            for name in SHOWN[kind]
        )
        cells.append((kind, what, figures))
    widths = [max(len(cell[column]) for cell in cells) for column in (0, 1)]
    return [f"{kind:<{widths[0]}}  {what:<{widths[1]}}  {figures}" for kind, what, figures in cells]


def _verdict(value: float, least: float) -> str:
    return f" (goal {least:g}: {'reached' if value >= least else 'NOT reached'})"


def _as_row(work: Callable[..., Any], *given: Any) -> Row:
    return asdict(work(*given))


def _train_batch(shape: str, batch: int) -> int:
    """Pictures of a training step that both sides' networks have room for beside each other in 80 GB."""
    depth = int(shape[1:].partition("-")[0])
    return max(1, batch if depth <= 16 else batch // 4)


def _side(shape: str) -> int:
    return int(shape.rpartition("-")[2])


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
