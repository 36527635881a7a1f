"""`star data benchmark`: captioned shards to a benchmark that `star eval` draws and scores."""

import argparse

from star.commands.pipes import add_allow_pipe, minding_pipes

SPLITS = ("train", "test")  # as star.data.benchmark has them; not imported from there, since help must be instant


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "benchmark",
        help="captioned shards to a benchmark for star eval",
        description="Writes a folder in the MJHQ-30k layout: meta_data.json (id to category and prompt, and subject "
        "and style where the samples' records have them), and each picture as a lossless PNG. A model scored on its "
        "training shards and on held-out ones shows what it learnt and what it generalises to.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders, tars, patterns, URLs or lists")
    parser.add_argument("out", metavar="OUT", help="folder to write, empty or not there yet")
    parser.add_argument(
        "--split", choices=SPLITS, help="only shards named as training or as held-out ones (default: all)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="pictures, evenly spread over the shards (default: all)")
    add_allow_pipe(parser)
    parser.set_defaults(work=minding_pipes(work))


def work(args: argparse.Namespace) -> int:
    """Writes and reports."""
    from star.data.benchmark import write_benchmark

    report = write_benchmark(args.shards, args.out, split=args.split, count=args.count, progress=True)
    print(report.text())
    return 0
