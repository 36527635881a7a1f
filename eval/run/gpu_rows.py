"""Rows of gpu_table.py beside drawing: training steps, attention, steps in pieces, and what is installed for a GPU.

L tokens of all scales, N heads, d channels of a head.
"""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any

import torch

from star.data.errors import InputError
from star.generators.measuring import now
from star.generators.registration import load
from star.generators.stylenat.neighborhood import has_natten
from star.generators.stylenat.neighborhood_bench import measure

HEADS, HEAD_WIDTH = 16, 64  # of the released d16
WINDOWS = ((8, 8, 64, 64, 32), 7)  # B N H W E of StyleNAT's maps at 64 pixels, and the side of a window


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRow:
    """Whole steps with AdamW, bfloat16 by autocast, in turn with the released arithmetic; blocks compiled on a GPU.

    ratio: the released step's time over ours, median over pairs. mfu: FLOPs no step can do without, over the ceiling.
    """

    shape: str
    batch: int
    ours_ms: float
    released_ms: float
    ratio: float
    tokens_per_second: float
    mfu: float
    released_mfu: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRow:
    """Forward and backward of one attention of L tokens, bfloat16. reach: FLOPs of pairs seen, over the ceiling."""

    shape: str
    backend: str
    batch: int
    ms: float = 0.0
    reach: float = 0.0
    failure: str = ""


def training(shape: str, batch: int, device: torch.device, products: float, steps: int) -> TrainingRow:
    """Both steps in turn, see star/training/step_versus.py. products: FLOP/s at best."""
    steps_of: Any = load("star.training.step_versus:RepeatedStep")
    task = load("star.training.step_versus:StepTask").of_shape(shape, batch=batch, device=device)
    versus = load("star.training.step_versus:alternate")(steps_of(task, "ours"), steps_of(task, "baseline"), steps)
    ours, released = versus.median(0), versus.median(1)
    return TrainingRow(
        shape=shape,
        batch=batch,
        ours_ms=1000 * ours,
        released_ms=1000 * released,
        ratio=versus.ratio,
        tokens_per_second=versus.tokens / ours,
        mfu=versus.flops / ours / products,
        released_mfu=versus.flops / released / products,
    )


def backends() -> tuple[str, ...]:
    """Names of the ways to compute attention."""
    names: tuple[str, ...] = load("star.model.attention_backends:BACKENDS")
    return names


def attention(side: int, backend: str, batch: int, device: torch.device, products: float, steps: int) -> AttentionRow:
    """Of the scales of pictures with so many pixels on a side. A backend that is not there is a failure in words."""
    lengths = tuple(size * size for size in load("star.untrained:SIZES")[side])
    name = f"{sum(lengths)} tokens"
    shape = (batch, HEADS, sum(lengths), HEAD_WIDTH)
    try:
        causality = load("star.model.attention_backends:ScaleCausality")(lengths, backend, torch.bfloat16, device)
        heads = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        times = []
        for _ in range(2 + steps):
            start = now(device)
            causality.attend(*heads, HEAD_WIDTH**-0.5).sum().backward()
            times.append(now(device) - start)
    except (InputError, RuntimeError, ImportError, ValueError) as error:  # out of memory is a RuntimeError, too
        return AttentionRow(shape=name, backend=backend, batch=batch, failure=first_line(error))
    seconds = median(times[2:])
    pairs = sum(length * end for length, end in zip(lengths, accumulate(lengths), strict=True))
    flops = 3 * 4 * batch * HEADS * HEAD_WIDTH * pairs
    return AttentionRow(shape=name, backend=backend, batch=batch, ms=1000 * seconds, reach=flops / seconds / products)


def in_pieces(shape: str, batch: int, device: torch.device, steps: int) -> dict[str, Any]:
    """A training step by FSDP2 in a world of one, in a process of its own, which torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m"]
    command += ["star.training.fsdp_step", shape, "--batch", str(batch), "--device", device.type]
    row: dict[str, Any] = {"shape": shape, "batch": batch}
    try:
        done = subprocess.run(
            [*command, "--repetitions", str(steps)], capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        return row | {"failure": "took more than 300 s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if "Error" in line] or ["no figure"]
        return row | {"failure": said[0][:200]}
    told = json.loads(lines[-1])
    return row | {"ms": 1000 * told["seconds"], "processes": told["processes"]}


def installed() -> dict[str, Any]:
    """Versions of torch, flash-attn and natten; "absent", or why a package that is there cannot be used."""
    found: dict[str, Any] = {"shape": "packages", "torch": torch.__version__}
    for package, module in (("flash-attn", "flash_attn"), ("natten", "natten"), ("triton", "triton")):
        try:
            version = importlib.metadata.version(package)
            importlib.import_module(module)
        except importlib.metadata.PackageNotFoundError:
            version = "absent"
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            version = f"{version}, unusable: {first_line(error)}"
        found[package] = version
    return found | {"natten's library": "there" if has_natten() else "absent"}


def neighbourhood(backend: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """StyleNAT's neighbourhood attention, forward and backward, float32, without a bias; smaller maps on a CPU."""
    shape, kernel = WINDOWS if device.type == "cuda" else ((1, 2, 16, 16, 8), 3)
    row: dict[str, Any] = {"shape": " ".join(map(str, shape)), "backend": backend}
    try:
        found = measure(backend, shape, kernel=kernel, dilation=1, bias=False, device=device.type, repeats=repeats)
    except (InputError, RuntimeError) as error:
        return row | {"failure": first_line(error)}
    return row | {"forward_ms": found.forward, "ms": found.both}


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
