"""`star directions`: ways to change a GAN's pictures, found without labels."""

import argparse
import re

from star.commands import pictures
from star.commands.options import within
from star.data.errors import InputError
from star.terminal import as_text

METHODS = ("pca", "sefa")  # as star.generators.gan.editing has them
MOST = 64


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = pictures.add_parser(
        commands,
        "directions",
        "directions in latent space found without labels (style-based GANs)",
        "A sheet with a row for each direction, the picture moved from -STRENGTH to STRENGTH standard deviations; and "
        "how much of the styles' variance each explains. With --direction, the picture moved by STRENGTH along that "
        "one alone; a strength of 0 is the picture itself.",
    )
    parser.set_defaults(model="stylegan-t-emoji")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default="")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="pca",
        help="pca of many styles (Härkönen et al. 2020), or sefa, from the weights alone (Shen & Zhou 2021)",
    )
    parser.add_argument("--count", type=int, default=5, metavar="N", help="directions to show (default: %(default)s)")
    parser.add_argument("--direction", type=int, metavar="K", help="one alone, from 0")
    parser.add_argument("--strength", type=float, default=3.0, metavar="S", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=7, metavar="N", help="pictures in a row (default: %(default)s)")
    parser.add_argument("--slots", metavar="A:B", help="move these style slots alone, coarse to fine, as 0:4")
    pictures.add_seed(parser)
    pictures.add_output(parser, films=False)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws the sheet, or the one picture, and writes it."""
    pictures.check(args, films=False)
    within("--count", args.count, 1, MOST)
    within("--steps", args.steps, 2, MOST)
    within("--strength", args.strength, -100, 100)
    if args.direction is not None:
        within("--direction", args.direction, 0, MOST - 1)
    slots, prompt = slots_of(args.slots), as_text(args.prompt)
    opened = pictures.open_pipeline(args)
    count = args.count if args.direction is None else args.direction + 1
    found = opened.pipe.directions(prompt, method=args.method, count=count)
    strengths, numbers = [args.strength], [args.direction]
    if args.direction is None:
        strengths = [args.strength * (2 * i / (args.steps - 1) - 1) for i in range(args.steps)]
        numbers = list(range(count))
    frames = []
    for number in numbers:
        frames += opened.pipe.move(prompt, found, number, strengths, seed=args.seed, slots=slots)
        print(f"direction {number}: {100 * float(found.shares_D[number]):.1f} % ({args.method})")
    more = {name: getattr(args, name) for name in ("method", "count", "direction", "strength", "steps", "slots")}
    text = opened.text("directions", prompt, args.seed, **more)
    pictures.write_frames(args, frames, "directions", text, columns=len(strengths), kinds=(".png",))
    return 0


def slots_of(given: str | None) -> slice:
    """ "0:4" as a slice; all where nothing is given. Raises InputError for anything else."""
    if given is None:
        return slice(None)
    match = re.fullmatch(r"(\d{0,4}):(\d{0,4})", given)
    if match is None:
        raise InputError(f"--slots is {given!r}, expected the first and the one behind the last, as 0:4: correct it")
    first, behind = match.groups()
    return slice(int(first) if first else None, int(behind) if behind else None)
