"""`star vary`: variations of a picture, from its codes of the coarse scales."""

import argparse

from star.commands import pictures
from star.commands.options import within

MOST = 64


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = pictures.add_parser(
        commands,
        "vary",
        "variations of a picture (STAR)",
        "Keeps the codes of a picture's coarse scales and draws the finer ones anew. With several --keep, a row of the "
        "sheet for each. Without a prompt, the picture's own where it says it.",
    )
    parser.add_argument("picture", metavar="PICTURE")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT")
    parser.add_argument(
        "--keep",
        nargs="+",
        metavar="GRID",
        help="scales that stay, up to this grid, as 4x4, or their number as 3; all: a row for each",
    )
    parser.add_argument(
        "--strength", type=float, help="the same as a share: 0 keeps all, 1 none (default: half of the scales)"
    )
    parser.add_argument("--count", type=int, default=1, metavar="N", help="variations of each (default: %(default)s)")
    pictures.add_seed(parser)
    pictures.add_output(parser, films=False)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws the variations and writes one picture, or a sheet of them."""
    pictures.check(args, films=False)
    within("--count", args.count, 1, MOST)
    within("the number of --keep", len(args.keep or [1]), 1, MOST)
    from star.editing import scales_of, to_pixels

    pixels_3HW = to_pixels(args.picture)
    prompt = pictures.prompt_of(args.prompt, args.picture)
    opened = pictures.open_pipeline(args)
    schedule = opened.pipe._next_scale("vary").tokenizer.schedule
    frames = []
    grids = [f"{size}x{size}" for size in schedule.sizes]
    keeps = grids if args.keep == ["all"] else args.keep or [None]
    for keep in keeps:
        scales_of(schedule, keep, args.strength)  # all are looked at before the first is drawn
    for keep in keeps:
        drawn = opened.pipe.vary(
            pixels_3HW, prompt, keep=keep, strength=args.strength, num_images=args.count, seed=args.seed
        )
        frames += drawn.images
    more = {"picture": args.picture, "keep": args.keep, "strength": args.strength, "count": args.count}
    text = opened.text("vary", prompt, args.seed, **more)
    pictures.write_frames(args, frames, "variation", text, columns=args.count, kinds=(".png",))
    return 0
