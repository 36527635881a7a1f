"""`--allow-pipe`: whether text lists of shards may name commands, which are then run."""

import argparse
from collections.abc import Callable

Work = Callable[[argparse.Namespace], int]


def add_allow_pipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pipe", action="store_true", help="run commands (pipe:...) that text lists of shards name"
    )


def minding_pipes(work: Work) -> Work:
    """The work of a command that reads shards, done under its `--allow-pipe`."""

    def minded(args: argparse.Namespace) -> int:
        from star.data.shards.listing import pipes_allowed

        with pipes_allowed(args.allow_pipe):
            return work(args)

    return minded
