"""`star bench`: seconds per picture and peak memory of models, each measured in a process of its own."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from star.data.disk import check_writable, write_text
from star.data.errors import InputError
from star.generators.placement import add_options, dtype_of

if TYPE_CHECKING:
    from star.eval.run.record import Speed
    from star.generators.protocol import SampleOptions

PROMPTS = (
    "a red apple, noto emoji style",
    "a rocket, fluent 3d emoji style",
    "a sleeping cat, twemoji style",
    "a house with a garden, blob emoji style",
    "a slice of pizza, noto emoji style",
    "a person riding a bicycle, twemoji style",
    "a snow-capped mountain, emojitwo style",
    "a green dragon, fluent flat emoji style",
)
HEAD = ("model", "batch", "total", "text", "generator", "decoder", "peak MiB", "device", "type")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the speed and memory of models",
        description="Draws pictures and prints milliseconds per picture, in total and by part, and peak memory (MiB): "
        "medians over repetitions, after one warm-up call at each batch size, with the device synchronised at every "
        "reading. Each model runs in a process of its own, so that no peak counts the memory of another.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name, folder or hub id")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], metavar="N", help="sizes (default: 1 8)")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add_options(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU (default: what torch takes)")
    parser.add_argument("--out", metavar="FILE", help="JSON file for the figures")
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Measures, prints a table, writes JSON where asked."""
    if min(*args.batch, args.repetitions) < 1 or (args.threads is not None and args.threads < 1):
        raise InputError(
            f"--batch {' '.join(map(str, args.batch))}, --repetitions {args.repetitions} and --threads {args.threads} "
            "were given, expected at least 1 each: correct them"
        )
    if args.out:
        check_writable(Path(args.out).parent)
    from multiprocessing import get_context

    from star.generators import registry
    from star.generators.config import to_dict
    from star.generators.placement import placed

    places = {model: placed(args.device, args.dtype, model).told() for model in args.models}
    for model in args.models:
        registry.recommended(model)  # a missing model is reported before the others are measured
    measured: dict[str, tuple[Speed, ...]] = {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # each model in a fresh process
        for model in args.models:
            place = places[model]
            request = (tuple(args.batch), args.repetitions, place["device"], place["dtype"], args.threads)
            measured[model] = pool.apply(measure, (model, *request))
    rows = [HEAD, *(_row(model, speed) for model, speeds in measured.items() for speed in speeds)]
    print("\n".join(_aligned(rows)))
    if args.out:
        figures = {model: to_dict(speeds) for model, speeds in measured.items()}
        write_text(Path(args.out), json.dumps(figures, indent=1) + "\n")
        print(args.out)
    return 0


def measure(
    model: str,
    batch: tuple[int, ...],
    repetitions: int,
    device: str,
    dtype: str,
    threads: int | None,
    options: "SampleOptions | None" = None,
) -> "tuple[Speed, ...]":
    """Builds a model and measures it; what the process of a model runs. options: those it recommends if not given."""
    import logging

    import torch

    from star.eval.run.latency import measure_speed
    from star.generators import registry

    logging.disable(logging.WARNING)  # that a prompt was cut is no news here, and telling it takes time
    if threads is not None:
        torch.set_num_threads(threads)
    generator = registry.build(model, device=device, dtype=dtype_of(dtype))
    prompts = {"text": PROMPTS, "class": [str(index) for index in range(5)], "none": [""]}[generator.conditioning]
    options = options or registry.recommended(model)
    return tuple(
        replace(speed, dtype=dtype) for speed in measure_speed(generator, prompts, batch, repetitions, options=options)
    )


def _row(model: str, speed: "Speed") -> tuple[str, ...]:
    times = (f"{1000 * seconds:,.1f}" for seconds in (speed.total, speed.text, speed.generator, speed.decoder))
    threads = f", {speed.threads} thread{'s' * (speed.threads > 1)}" if speed.threads else ""
    return (
        model,
        str(speed.batch),
        *times,
        f"{speed.peak_bytes / 2**20:,.0f}",
        f"{speed.device}{threads}",
        speed.dtype,
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns under each other, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            text.ljust(width) if place in (0, last) else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
