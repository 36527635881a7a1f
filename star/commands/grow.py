"""`star grow`: a picture as it grows over its scales."""

import argparse

from star.commands import pictures
from star.terminal import as_text


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = pictures.add_parser(
        commands,
        "grow",
        "a picture growing over its scales, as a strip and a film (STAR)",
        "Draws a picture and shows what is known of it after each scale.",
    )
    parser.add_argument("prompt", metavar="PROMPT")
    pictures.add_seed(parser)
    pictures.add_output(parser, films=True)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws the frames and writes them."""
    pictures.check(args, films=True)
    prompt = as_text(args.prompt)
    opened = pictures.open_pipeline(args)
    frames = opened.pipe.grow(prompt, seed=args.seed)
    text = opened.text("grow", prompt, args.seed)
    pictures.write_frames(args, frames, "growing", text)
    return 0
