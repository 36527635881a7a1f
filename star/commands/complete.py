"""`star data complete`: pictures that styles lack, redrawn from other styles by a trained restyler."""

import argparse

from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.disk import check_writable


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "complete",
        help="make the pictures that a style lacks from those of another style",
        description="For every subject of the training shards among SHARDS that has a picture in a source style of the "
        "model and none in its target style, redraws it and writes shards of the same format to OUT. These pictures "
        "are made by a network that `star train restyle` trained, not drawn by the artist; their records say so as "
        "made_from and made_by. Held-out shards are not redrawn; how many of the made pictures stand for one that is "
        "held out is printed.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders, tars, patterns or lists")
    parser.add_argument("--model", required=True, metavar="DIR", help="of star train restyle, as RUN/model")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for the shards")
    parser.add_argument(
        "--without-held-out",
        action="store_true",
        help="make none for a subject whose picture in that style is held out among SHARDS, so that measures on these "
        "still ask for combinations never seen",
    )
    parser.add_argument(
        "--sharpness",
        type=float,
        default=2.0,  # as star.restyle.model has it, which is not imported: help must be instant
        metavar="S",
        help="1 leaves grey what the model doubts, more decides for black or white (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are already in OUT")
    add_allow_pipe(parser)
    parser.set_defaults(work=minding_pipes(work))


def work(args: argparse.Namespace) -> int:
    """Redraws and reports."""
    check_writable(args.out)
    from star.restyle.complete import complete

    report = complete(
        args.shards,
        args.model,
        args.out,
        without_held_out=args.without_held_out,
        sharpness=args.sharpness,
        overwrite=args.overwrite,
        progress=True,
    )
    print(report.text())
    return 0
