"""The command `star`. Nothing heavy is imported before a subcommand runs, so that `star --help` is instant.

Each command is a module with `add(commands)`, which describes its arguments, and a function that does the work. What
the user got wrong ends with one sentence and exit code 2; anything else keeps its traceback.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from data.errors import InputError
from eval import bench_command, compare_command
from eval import command as evaluate
from star.commands import catalogue, convert, finetune, measure, plan, sample, shards, train

DESCRIPTION = "Pictures from prompts: draw, train, and prepare data."
COMMANDS = (
    sample,
    catalogue,
    shards,
    train,
    finetune,
    plan,
    measure,
    evaluate,
    compare_command,
    bench_command,
    convert,
)


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line, and takes no option for a longer one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"allow_abbrev": False} | options))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` tells more\n")


def parser() -> Parser:
    """The whole command line; every leaf sets `work`, a function from arguments to an exit code."""
    top = Parser(prog="star", description=DESCRIPTION)
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    if args.version:
        from importlib.metadata import version

        print(f"star-t2i {version('star-t2i')}")
        return 0
    work: Callable[[argparse.Namespace], int] | None = getattr(args, "work", None)
    if work is None:
        top.print_help()
        return 0
    if hasattr(args, "overrides"):
        args.overrides = rest  # of preset fields; the command checks them
    elif rest:
        top.error(f"unknown argument {rest[0]}")
    _prepare_logging()
    try:
        return work(args)
    except InputError as error:
        print(f"star: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("star: interrupted", file=sys.stderr)
        return 130


def _prepare_logging() -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="star: %(message)s")


if __name__ == "__main__":
    sys.exit(main())
