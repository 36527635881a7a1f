"""`star plan`: what a training would need and how long it would take, before anything is bought or begun."""

import argparse

from star.commands.train import configure
from star.data.errors import InputError

MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "plan",
        help="memory, arithmetic, days and stored bytes of a training",
        description="Counts from a preset of `star train star` what it needs on given devices, without computing or "
        "reading anything. Where a step does not fit it lists what does, with the time for each, and ends with code 2. "
        "Every field of the preset can be changed by its dotted name, as in --run.batch_size=256.",
    )
    parser.add_argument("--preset", required=True, metavar="P", help="of `star train star`")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="devices in all (default: %(default)s)")
    parser.add_argument("--gpu", default="h100", metavar="KIND", help="which; an unknown one is answered with the list")
    parser.add_argument(
        "--images", default="0", metavar="N", help="seen in all, as 2000000, 100M or 1.5B (default: the preset's)"
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the FLOP/s stated by the maker that training reaches (default: %(default)s)",
    )
    parser.set_defaults(work=work, overrides=[])


def work(args: argparse.Namespace) -> int:
    """Plans and prints."""
    images = number(args.images)
    if not 0 < args.utilisation <= 1:
        raise InputError(f"--utilisation is {args.utilisation}, expected a share above 0 and up to 1: correct it")
    config = configure("star", args.preset, args.overrides)
    from star.planning.plan import Shapes, TooLargeError, plan
    from star.planning.propose import proposals, table

    shapes, asked = Shapes.of(config), {"gpus": args.gpus, "gpu": args.gpu, "images": images}
    try:
        print(plan(config, shapes, **asked, utilisation=args.utilisation).text())
    except TooLargeError as error:
        found = proposals(config, shapes, **asked, utilisation=args.utilisation)
        if not found:
            raise InputError(f"{error.what}, and nothing makes it fit: take larger or more devices") from error
        print(f"what fits on {args.gpus} x {args.gpu}, {config.run.batch_size} pictures in a step:\n{table(found)}")
        raise InputError(f"{error.what}: take one of the settings above") from error
    return 0


def number(text: str) -> int:
    """A count with or without K, M, B. Raises InputError for anything else."""
    digits, multiple = (text[:-1], MULTIPLES[text[-1].upper()]) if text[-1:].upper() in MULTIPLES else (text, 1)
    try:
        count = float(digits) * multiple
    except ValueError:
        count = -1.0
    if not 0 <= count < float("inf"):
        raise InputError(f"--images is {text!r}, expected a number such as 2000000, 100M or 1.5B: correct it")
    return round(count)
