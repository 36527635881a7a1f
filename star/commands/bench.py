"""`star data bench`: pictures per second by number of workers, and what of a training step goes to data."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from star.commands.options import within
from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.errors import InputError

if TYPE_CHECKING:  # it needs torch, and help must be instant
    from star.training.config import TrainConfig

LOADER = ("workers", "pictures/s", "first batch after")
STEP = ("trained on", "workers", "pictures/s", "waiting for data", "making training_inputs", "network")


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "bench",
        help="throughput of shards, alone and in training",
        description="Prints how many pictures a second the pipeline delivers by number of worker processes. With "
        "--model, also the shares of a training step on the pictures and on codes made of them; fields of "
        "the preset can be changed as in `star train`.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders, tars, patterns, URLs or lists")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="of the loader alone (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="per row (default: %(default)s)")
    parser.add_argument("--model", nargs=2, metavar=("star", "PRESET"), help="time its training steps, too")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="per row (default: %(default)s)")
    add_allow_pipe(parser)
    parser.set_defaults(work=minding_pipes(work), overrides=[])


def work(args: argparse.Namespace) -> int:
    """Measures and prints each table when it is whole."""
    for name, values, low, high in (
        ("workers", args.workers, 0, 1024),
        ("batch", [args.batch], 1, 2**20),
        ("size", [args.size], 1, 2**14),
        ("steps", [args.steps], 1, 10**9),
        ("seconds", [args.seconds], 1e-3, 1e6),
    ):
        for value in values:
            within(f"--{name}", value, low, high)
    from star.data.loader.pipeline import DataConfig
    from star.data.loader.throughput import loader_speeds, table

    if args.model is None and args.overrides:
        raise InputError(f"unknown argument {args.overrides[0]}; fields of a preset need --model star PRESET")
    config = None if args.model is None else _config(args.model, args.overrides)
    data = DataConfig(shards=tuple(args.shards), resolution=args.size)
    rows = [
        (str(speed.workers), f"{speed.per_second:.0f}", f"{speed.first_batch:.2f} s")
        for speed in loader_speeds(data, args.batch, args.workers, seconds=args.seconds)
    ]
    print(f"The pipeline alone, {args.size} px, batches of {args.batch}:\n\n{table(LOADER, rows)}")
    if config is None:
        return 0
    from star.training.step_bench import compare

    steps = [
        (
            "codes" if step.codes else "pictures",
            str(step.workers),
            f"{step.per_second:.1f}",
            *(f"{100 * share:.1f} %" for share in (step.waiting, step.training_inputs, step.network)),
        )
        for step in compare(config, args.shards, args.workers, steps=args.steps)
    ]
    title = f"Training steps of {' '.join(args.model)}, batches of {config.run.batch_size}"
    print(f"\n{title}, {args.steps} steps per row:\n\n{table(STEP, steps)}")
    return 0


def _config(model: Sequence[str], overrides: Sequence[str]) -> "TrainConfig":
    from star.commands.train import configure

    network, preset = model
    if network != "star":
        raise InputError(f"--model begins with {network!r}, expected star, whose training can do without pictures")
    config: TrainConfig = configure("star", preset, overrides)
    return config
