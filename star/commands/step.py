"""`star bench --training PRESET`: a training step of ours against the released arithmetic, time and memory."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from star.commands.train import configure
from star.data.disk import write_text
from star.data.errors import InputError

if TYPE_CHECKING:  # it needs torch, and help must be instant
    from star.training.step_versus import StepTask, StepVersus


def work(args: argparse.Namespace) -> int:
    """Measures each batch size, prints it, writes JSON where asked. The arguments are those of `star bench`."""
    import torch

    from star.generators.config import to_dict
    from star.generators.devices import usable
    from star.generators.measuring import matmul_ceiling
    from star.training.config import TrainConfig
    from star.training.step_versus import SIDES, RepeatedStep, StepTask, alternate

    if args.models or args.plot:
        raise InputError("--training was given with a MODEL or --plot, expected it alone: leave the others out")
    against = args.against or SIDES[1]
    if against not in SIDES[1:]:
        raise InputError(f"--against is {against!r}, expected {' or '.join(SIDES[1:])} with --training: correct it")
    config = configure("star", args.training, args.overrides)
    assert isinstance(config, TrainConfig)
    device = torch.device(usable(args.device))
    half = config.run.precision == "bf16" if args.dtype == "auto" else args.dtype == "bfloat16"
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    found = []
    for batch in args.batch:
        task = StepTask.of(config, batch=batch, device=device, half=half)
        steps = [RepeatedStep(task, "ours"), RepeatedStep(task, against)]
        versus = alternate(steps[0], steps[1], args.repetitions)
        del steps
        ceiling = matmul_ceiling(device, "bfloat16" if half else "float32")
        peaks = (peak(task, "ours", args.threads), peak(task, against, args.threads))
        print("\n".join(lines(args.training, task, versus, ceiling, peaks)), flush=True)
        row = to_dict(versus) | {"ratios": versus.ratios, "ceiling": ceiling, "peak_bytes": peaks}
        found.append(
            row | {"preset": args.training, "half": half, "device": str(device), "network": to_dict(task.network)}
        )
    if args.out:
        write_text(Path(args.out), json.dumps(found, indent=1) + "\n")
        print(args.out)
    return 0


def peak(task: "StepTask", side: str, threads: int | None) -> int:
    """Bytes at most in use in a step of one side, measured in a process of its own."""
    from multiprocessing import get_context

    from star.training.step_versus import peak_of

    with get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, (task, side, threads))


def lines(preset: str, task: "StepTask", versus: "StepVersus", ceiling: float, peaks: tuple[int, int]) -> list[str]:
    """What people read. ceiling: FLOP/s of products. peaks: bytes of each side."""
    network, compiled = task.network, ", compiled blocks" * task.config.compile
    recomputed = ", checkpointing" * network.checkpointing
    told = [
        f"{preset}: width {network.width}, depth {network.depth}, {network.schedule.length} tokens; batch {task.batch} "
        f"on {task.device}, {'bfloat16' if task.half else 'float32'}, {len(versus.ratios)} steps of each in turn"
    ]
    for number, side in enumerate(versus.sides):
        seconds = versus.median(number)
        how = f" ({network.attention}{compiled}{recomputed})" if side == "ours" else ""
        told.append(
            f"  {side}{how}: {1000 * seconds:,.1f} ms a step, {task.batch / seconds:,.2f} pictures/s, "
            f"{versus.tokens / seconds:,.0f} tokens/s, MFU {versus.flops / seconds / ceiling:.1%}, "
            f"peak {peaks[number] / 2**20:,.0f} MiB"
        )
    low, high = min(versus.ratios), max(versus.ratios)
    left_out = "" if task.config.optimizer == "adamw" else f", not by the preset's {task.config.optimizer}"
    return [
        *told,
        f"  ratio {versus.ratio:.2f} ({low:.2f} to {high:.2f}); memory {peaks[0] / peaks[1]:.2f} of the baseline's",
        f"  products: {ceiling / 1e9:,.0f} GFLOP/s at best; both sides move weights by AdamW{left_out}",
    ]
