"""The command `star`. Nothing heavy is imported before a subcommand runs, so that `star --help` is instant.

Each command is a module with `add(commands)`, which describes its arguments, and a function that does the work.

Exit codes: 0; 1 where a command looked for faults and found some; 2 after one sentence on what the user got wrong, what
the disk refused or a training that diverged; 128 + signal where one ended it (Ctrl-C 130, SIGTERM 143, SIGHUP 129); 141
where nobody reads the output any more. Anything else is our own defect and keeps its traceback.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from star import terminal
from star.commands import (
    attend,
    catalogue,
    convert,
    demo,
    directions,
    finetune,
    grow,
    inpaint,
    measure,
    mix,
    morph,
    plan,
    sample,
    shards,
    train,
    vary,
)
from star.commands.parsing import Parser
from star.data.disk import refusal
from star.data.errors import DivergenceError, InputError
from star.eval.commands import bench as bench_command
from star.eval.commands import compare as compare_command
from star.eval.commands import evaluate as evaluate
from star.eval.commands import rank as rank_command
from star.generators.training.signals import interruptible, told

DESCRIPTION = "Pictures from prompts: draw, train, and prepare data."
COMMANDS = (
    sample,
    demo,
    vary,
    inpaint,
    morph,
    grow,
    attend,
    mix,
    directions,
    catalogue,
    shards,
    train,
    finetune,
    plan,
    measure,
    evaluate,
    compare_command,
    rank_command,
    bench_command,
    convert,
)


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
    if arguments is None:
        terminal.use_utf8()
    terminal.tolerate_any_text()
    with interruptible():
        try:
            return _run(arguments)
        except BrokenPipeError:
            if not terminal.nobody_reads():
                raise
            terminal.silence(sys.stdout, sys.stderr)
            return terminal.BROKEN_PIPE
        except OSError as error:
            sentence = refusal(error, error.filename or "an output of this command", "cannot be read or written")
            if sentence is None:
                raise
            try:
                terminal.flush()
            except OSError:
                terminal.silence(sys.stdout)
            print(f"star: {sentence}", file=sys.stderr)
            return 2


def _run(arguments: Sequence[str] | None) -> int:
    try:
        top = parser()
        return _work(top, *top.parse_known_args(arguments))
    except (InputError, DivergenceError) as error:
        print(f"star: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print("star: this needs more memory than there is: give a smaller --batch or network", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        sentence, code = told(error)
        print(f"star: {sentence}", file=sys.stderr)
        return code
    finally:
        terminal.flush()


def _work(top: Parser, args: argparse.Namespace, rest: Sequence[str]) -> int:
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
    return work(args)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Python's own, and torch's on a GPU and on a CPU."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _prepare_logging() -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="star: %(message)s")


if __name__ == "__main__":
    sys.exit(main())
