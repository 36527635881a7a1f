"""`star eval`: a model, or a folder of external images, scored on a benchmark by a named protocol."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from star.data.errors import InputError
from star.generators.placement import add_options
from star.generators.renamed import refuse_old_options

if TYPE_CHECKING:
    from star.eval.run.record import Estimate, Record

OPTIONS = {
    "guidance_scale": float,
    "guidance_ramp": float,
    "top_k": int,
    "top_p": float,
    "temperature": float,
    "temperature_decay": float,
    "truncation": float,
}
DESCRIPTION = """\
Draws the prompts of a benchmark, one picture each, scores them by a named protocol, and writes a JSON record. The
benchmark is a folder or zip in the MJHQ-30k layout. Pictures, their scores, and a grid of real and drawn ones lie in
the folder beside the record. A run that was stopped goes on where it was. Several processes share the work when started
by torchrun: torchrun --nproc_per_node 8 -m star.cli eval ...
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("eval", help="score a model on the prompts of a benchmark", description=DESCRIPTION)
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help="name, folder or hub id")
    parser.add_argument("--drawn", type=Path, metavar="DIR", help="instead of MODEL: images of another program")
    parser.add_argument(
        "--benchmark", required=True, type=Path, metavar="DIR", help="folder or zip with meta_data.json"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="RECORD", help="the JSON file to write")
    parser.add_argument("--protocol", metavar="P", help="emoji-64 (default), mjhq-30k, star-table or prompt-rank-20")
    parser.add_argument("--metrics", nargs="+", metavar="M", help="<kind>/<network>, instead of the protocol's")
    parser.add_argument("--pictures", type=int, metavar="N", help="prompts, evenly spread (default: the protocol's)")
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="resamples of an interval: 20 or more, 0: none",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all pictures (default: %(default)s)")
    drawing = parser.add_argument_group("drawing", "what is not given is as the model recommends")
    for name, kind in OPTIONS.items():
        drawing.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X")
    refuse_old_options(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count what is wrong with the benchmark")
    parser.add_argument("--allow-missing", action="store_true", help="leave out and count prompts that --drawn lacks")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="features of the real pictures, shared among evaluations"
    )
    parser.add_argument("--speed", action="store_true", help="also measure what star bench measures")
    parser.add_argument("--sheet", type=int, default=32, metavar="N", help="pictures on the grid (default: 32)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once (default: %(default)s)")
    add_options(parser, dtype="float32")  # as the records that ship: numbers of two types are two measurements
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws, scores, writes, tells."""
    from star.eval.run.benchmark import GRID_FILE, PROTOCOL, EvaluationRequest, evaluate
    from star.eval.run.processes import join, leave
    from star.eval.run.record import folder_of, write
    from star.generators.placement import placed

    if args.speed and not args.model:
        raise InputError("--speed was given without a model, expected one to measure: leave --speed out")
    place = placed(args.device, args.dtype, args.model) if args.model else None
    request = EvaluationRequest(
        benchmark=args.benchmark,
        out=args.out,
        model=args.model,
        external=args.drawn,
        protocol=args.protocol or PROTOCOL,
        metrics=tuple(args.metrics or ()),
        pictures=args.pictures,
        bootstrap=args.bootstrap,
        seed=args.seed,
        options={name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None},
        batch=args.batch,
        dtype=place.told()["dtype"] if place else "float32",
        skip_bad=args.skip_bad,
        allow_missing=args.allow_missing,
        cache=args.cache,
        grid=args.sheet,
    )
    try:
        record = evaluate(request, join(args.device))
    finally:
        leave()
    if record is None:
        return 0
    if args.speed:
        record = with_speed(record)
        write(record, args.out)
    print("\n".join(summary(record)))
    print(args.out)
    if args.sheet:
        print(folder_of(args.out) / GRID_FILE)
    return 0


def with_speed(record: "Record") -> "Record":
    """The record with what `star bench` measures, at the record's options, type and device, in its own process."""
    from multiprocessing import get_context

    from star.eval.commands.bench import measure
    from star.generators.config import from_dict
    from star.generators.protocol import SampleOptions

    options = from_dict(SampleOptions, record.measured.options)
    with get_context("spawn").Pool(1) as pool:  # a peak of memory that counts nothing of the scoring
        speed = pool.apply(
            measure, (record.measured.name, (1, 8), 5, record.measured.device, record.measured.dtype, None, options)
        )
    return replace(record, speed=speed)


def summary(record: "Record") -> list[str]:
    """What was measured overall, a line for each metric, notes on them, and what was left out or converted."""
    from star.eval.metrics.registry import metric, sentences
    from star.eval.metrics.resampling import FEWEST
    from star.eval.run.record import OVERALL

    lines = [f"{record.measured.name} on {record.protocol.benchmark}, {record.protocol.pictures} pictures"]
    if record.measured.dtype not in ("", "float32"):
        lines[0] += f", drawn in {record.measured.dtype}"
    real = record.references.get(OVERALL, {})
    for name, estimate in record.metrics[OVERALL].items():
        digits, (_, _, network) = metric(name).digits, name.partition("/")
        label = f"{metric(name).title} by {network}"
        beside = f"; the real pictures {_formatted(real[name], digits)}" if name in real else ""
        lines.append(f"  {label:<44} {_formatted(estimate, digits)}{beside}")
    lines += [f"  {sentence}" for sentence in sentences(record.notes)]
    if record.measured.remark:
        lines.append(f"  {record.measured.remark}")
    if record.bootstrap is not None and 0 < record.bootstrap < FEWEST:
        lines.append(f"  no intervals: {record.bootstrap} resamples, and fewer than {FEWEST} tell none")
    for reason, places in (record.skipped | record.converted).items():
        lines.append(f"  {len(places)} {reason}")
    return lines


def _formatted(estimate: "Estimate", digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f} (no interval)"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"
