"""`star demo`: a web page on this machine that draws, varies and paints over."""

import argparse

from star.commands.options import within
from star.data.errors import InputError
from star.generators import placement


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = commands.add_parser(
        "demo",
        help="a web page to draw with",
        description="Serves a page on which pictures grow scale by scale, models stand side by side, and what was "
        "drawn is varied and painted over. It listens on this machine alone, sends nothing anywhere, and keeps "
        "pictures until it ends. Needs gradio (the extra demo).",
    )
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="names, folders or hub ids (default: all that ship)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--queue", type=int, default=10, metavar="N", help="requests that may wait (default: %(default)s)"
    )
    placement.add_options(parser)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    within("--port", args.port, 1, 65535)
    within("--queue", args.queue, 1, 10_000)
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from star.demo.server import application, prepare, serve
    from star.generators import registry

    models = args.models or [name for name, entry in registry.entries().items() if entry.weights.folder()]
    if not models:
        raise InputError("no models ship with this installation, expected --models with some: name them")
    with TemporaryDirectory(prefix="star-demo-") as folder:
        prepare(Path(folder))
        app = application(models, Path(folder), limit=args.queue, device=args.device, dtype=args.dtype)
        serve(app, args.host, args.port)
    return 0
