"""`star bench`: seconds per picture and peak memory of models, each measured in a process of its own."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.data.disk import check_writable, write_text
from star.data.errors import InputError
from star.generators.placement import UNTRAINED, add_options, dtype_of
from star.generators.registration import load

if TYPE_CHECKING:
    from star.eval.run.record import Speed
    from star.eval.run.versus import Contender, Versus
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
SETTINGS = ("float32", "bfloat16", "baseline", "eager")  # as star.eval.run.versus has them
TRAINING = "star.commands.step:work"  # `--training`; imported on use, like everything of another room
HEAD = ("model", "batch", "total", "text", "generator", "decoder", "peak MiB", "device", "type")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the speed and memory of models",
        description="Draws pictures and prints milliseconds per picture, in total and by part, and peak memory (MiB): "
        "medians over repetitions, after one warm-up call at each batch size, with the device synchronised at every "
        "reading. Each model runs in a process of its own, so that no peak counts the memory of another.",
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="name, folder or hub id, or untrained:d16-256 for random weights"
    )
    parser.add_argument(
        "--training",
        metavar="PRESET",
        help="instead of models: a training step of a preset of star against the released arithmetic, in turn; "
        "--dtype auto is then the preset's precision, and fields of the preset can be changed as in `star train`",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], metavar="N", help="sizes (default: 1 8)")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add_options(parser)
    parser.add_argument(
        "--graphs",
        choices=("auto", "off"),
        default="auto",
        help="CUDA graphs of next-scale models, where there is a GPU (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU (default: what torch takes)")
    parser.add_argument(
        "--against",
        metavar="B",
        help="draw with each MODEL and with B in turn, in one process, and tell the ratio: a setting of the model "
        f"({', '.join(SETTINGS)}), or another model; either may be written MODEL@SETTING. With --training: baseline, "
        "or baseline-eager, whose attention is written out",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="the growth over batch size and resolution")
    parser.add_argument("--out", metavar="FILE", help="JSON file for the figures")
    parser.set_defaults(work=work, overrides=[])


def work(args: argparse.Namespace) -> int:
    """Measures, prints a table, writes JSON where asked."""
    if min(*args.batch, args.repetitions) < 1 or (args.threads is not None and args.threads < 1):
        raise InputError(
            f"--batch {' '.join(map(str, args.batch))}, --repetitions {args.repetitions} and --threads {args.threads} "
            "were given, expected at least 1 each: correct them"
        )
    if args.out:
        check_writable(Path(args.out).parent)
    if args.training:
        return int(load(TRAINING)(args))
    if args.overrides:
        raise InputError(f"unknown argument {args.overrides[0]}; fields of a preset need --training PRESET")
    if not args.models:
        raise InputError("no MODEL was given, expected one or more, or --training PRESET: add it")
    if args.against:
        return _against(args)
    from multiprocessing import get_context

    from star.generators import registry
    from star.generators.config import to_dict
    from star.generators.devices import usable
    from star.generators.placement import placed

    usable(args.device)  # a missing device is reported before models are looked for
    for model in args.models:
        if not model.startswith(UNTRAINED):
            registry.recommended(model)  # a missing model is reported before the others are measured
    places = {model: placed(args.device, args.dtype, model).told() for model in args.models}
    measured: dict[str, tuple[Speed, ...]] = {}
    resolutions: dict[str, tuple[int, int]] = {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # each model in a fresh process
        for model in args.models:
            place = places[model]
            request = (tuple(args.batch), args.repetitions, place["device"], place["dtype"], args.threads)
            resolutions[model], measured[model] = pool.apply(
                measure_with_resolution, (model, *request, None, args.graphs)
            )
    rows = [HEAD, *(_row(model, speed) for model, speeds in measured.items() for speed in speeds)]
    print("\n".join(_aligned(rows)))
    for model, speeds in measured.items():
        for kernel in speeds[0].kernels:
            print(f"{model}: {kernel}")
    if args.plot:
        from star.eval.report.growth import write_growth

        write_growth(measured, resolutions, args.plot)
        print(args.plot)
    if args.out:
        figures = {model: to_dict(speeds) for model, speeds in measured.items()}
        write_text(Path(args.out), json.dumps(figures, indent=1) + "\n")
        print(args.out)
    return 0


def _against(args: argparse.Namespace) -> int:
    """Each model and its rival in turn, in this process."""
    import torch

    from star.eval.run.launches import launches
    from star.eval.run.versus import alternate, contender, rival, without_graphs
    from star.generators.config import to_dict
    from star.generators.measuring import copy_ceiling, matmul_ceiling

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    found = []
    for model in args.models:
        first = contender(model, args.device, args.dtype)
        second = contender(rival(model, args.against), args.device, args.dtype)
        for one in (first, second):
            if args.graphs == "off":
                without_graphs(one.generator)
        prompts = prompts_for(first.generator.conditioning)
        for batch in args.batch:
            versus = alternate(first, second, prompts, batch=batch, repetitions=args.repetitions)
            found.append(to_dict(versus) | {"ratios": versus.ratios})
            print("\n".join(lines(versus)))
            if first.device.type == "cuda":
                for one in (first, second):
                    print(
                        f"  {one.name}: {launches(one, batch, prompts[0]):,} launches of kernels and graphs for a batch"
                    )
        for one in (first, second):
            ceiling = matmul_ceiling(one.device, one.dtype)
            print(f"{one.dtype} products: {ceiling / 1e9:,.0f} GFLOP/s at best{share_of(one, versus, ceiling)}")
        print(f"copies: {copy_ceiling(first.device) / 1e9:,.1f} GB/s read and written")
    if args.out:
        write_text(Path(args.out), json.dumps(found, indent=1) + "\n")
        print(args.out)
    return 0


def lines(versus: "Versus") -> list[str]:
    """What people read of two contenders."""
    low, high = min(versus.ratios), max(versus.ratios)
    told = [f"batch {versus.batch} on {versus.device}, {len(versus.ratios)} of each in turn"]
    for side in (versus.first, versus.second):
        scales = ", ".join(f"{1000 * seconds:.1f}" for seconds in side.scales)
        told.append(f"  {side.name} ({side.dtype}): {1000 * side.median:,.1f} ms a picture")
        told += [f"    transformer by scale, ms: {scales}"] if scales else []
    return [*told, f"  ratio {versus.ratio:.2f} ({low:.2f} to {high:.2f})"]


def share_of(one: "Contender", versus: "Versus", ceiling: float) -> str:
    """How much of the ceiling the transformer's blocks reach, where its arithmetic is known."""
    generator: Any = getattr(one.generator, "generator", one.generator)  # a baseline stands around its generator
    side = versus.first if one.name == versus.first.name else versus.second
    if not hasattr(generator, "flops") or not side.scales:
        return ""
    guided = one.options.guidance_scale != 1
    return f", of which {one.name} reaches {generator.flops(guided=guided) / sum(side.scales) / ceiling:.0%}"


def prompts_for(conditioning: str) -> tuple[str, ...]:
    """What is drawn to be timed."""
    return {"text": PROMPTS, "class": tuple(map(str, range(5))), "none": ("",)}[conditioning]


def measure(*request: Any) -> "tuple[Speed, ...]":
    """Speeds alone, of a `measure_with_resolution`."""
    return measure_with_resolution(*request)[1]


def measure_with_resolution(
    model: str,
    batch: tuple[int, ...],
    repetitions: int,
    device: str,
    dtype: str,
    threads: int | None,
    options: "SampleOptions | None" = None,
    graphs: str = "auto",
) -> "tuple[tuple[int, int], tuple[Speed, ...]]":
    """Builds a model and measures it; what the process of a model runs. options: those it recommends if not given.

    graphs: see star.sampling.graphs.
    """
    import logging

    import torch

    from star.eval.run.latency import measure_speed
    from star.eval.run.versus import load as loaded
    from star.eval.run.versus import warmups, without_graphs
    from star.generators import registry
    from star.generators.protocol import SampleOptions

    logging.disable(logging.WARNING)  # that a prompt was cut is no news here, and telling it takes time
    if threads is not None:
        torch.set_num_threads(threads)
    generator: Any = loaded(model, device, dtype_of(dtype))
    if graphs == "off":
        without_graphs(generator)
    if options is None:
        options = SampleOptions() if model.startswith(UNTRAINED) else registry.recommended(model)
    prompts, warmup = prompts_for(generator.conditioning), warmups(generator)
    speeds = measure_speed(generator, prompts, batch, repetitions, warmup, options=options)
    return generator.resolution, tuple(replace(speed, dtype=dtype) for speed in speeds)


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
