"""`star data hardest`: of some shards, the pictures that a STAR model knows least."""

import argparse

from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.disk import check_writable
from star.generators.placement import add_options


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "hardest",
        help="the pictures that a model knows least, to train it on further",
        description="Measures every picture of SHARDS under its first caption and writes those that cost a STAR model "
        "most on its coarse scales, which decide what a picture shows, to shards of the same format in OUT; losses of "
        "all, hardest first, to OUT/losses.jsonl. For `star finetune`.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders, tars, patterns or lists")
    parser.add_argument("--model", required=True, metavar="MODEL", help="name, folder or hub id of a STAR model")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="pictures to keep")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for the shards")
    parser.add_argument("--scales", type=int, metavar="K", help="the coarsest K are counted (default: half of them)")
    parser.add_argument(
        "--together",
        nargs="+",
        default=(),
        metavar="KEY",
        help="pictures whose records agree in these, as subject style, are kept or left together, by their mean loss",
    )
    parser.add_argument(
        "--without-style",
        action="store_true",
        help="only pictures that a prompt without a style means, by the model's wordings",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are already in OUT")
    add_options(parser, dtype="float32")
    add_allow_pipe(parser)
    parser.set_defaults(work=minding_pipes(work))


def work(args: argparse.Namespace) -> int:
    """Measures, writes and reports."""
    check_writable(args.out)
    from star.generators.placement import dtype_name, placed
    from star.training.hardest import hardest

    place = placed(args.device, args.dtype, args.model)
    report = hardest(
        args.shards,
        args.model,
        args.out,
        count=args.count,
        scales=args.scales,
        together=args.together,
        without_style=args.without_style,
        half=dtype_name(place.dtype) == "bfloat16",
        overwrite=args.overwrite,
        device=place.device,
        progress=True,
    )
    print(report.text())
    return 0
