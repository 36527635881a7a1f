"""`star inpaint` and `star outpaint`: a part of a picture, or what is around it, drawn anew."""

import argparse
import re
from typing import TYPE_CHECKING

from star.commands import pictures
from star.commands.options import within
from star.data.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MOST = 64


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the arguments of both commands."""
    for name, help, description in (
        (
            "inpaint",
            "draw a part of a picture anew (STAR)",
            "Draws what the mask covers anew from the prompt; the pixels outside do not change. Without a prompt, the "
            "picture's own where it says it.",
        ),
        (
            "outpaint",
            "draw what is around a picture (STAR)",
            "Puts the picture into the middle and draws what is around it from the prompt. Without a prompt, the "
            "picture's own where it says it.",
        ),
    ):
        parser = pictures.add_parser(commands, name, help, description)
        parser.add_argument("picture", metavar="PICTURE")
        parser.add_argument("prompt", nargs="?", metavar="PROMPT")
        if name == "inpaint":
            which = parser.add_mutually_exclusive_group(required=True)
            which.add_argument("--mask", metavar="PICTURE", help="white where it is to be drawn anew, black elsewhere")
            which.add_argument("--box", metavar="X,Y,W,H", help="or a rectangle: left, top, width, height in pixels")
        else:
            parser.add_argument(
                "--margin", type=float, default=0.25, help="share of the side left on each side (default: %(default)s)"
            )
        parser.add_argument("--count", type=int, default=1, metavar="N", help="pictures (default: %(default)s)")
        pictures.add_seed(parser)
        pictures.add_output(parser, films=False)
        parser.set_defaults(work=work, name=name)


def work(args: argparse.Namespace) -> int:
    """Draws and writes one picture, or a sheet of several."""
    pictures.check(args, films=False)
    within("--count", args.count, 1, MOST)
    from star.editing import to_pixels

    pixels_3HW = to_pixels(args.picture)
    mask_3HW = None
    if args.name == "inpaint":
        mask_3HW = to_pixels(args.mask) if args.mask else box(args.box, pixels_3HW)
    prompt = pictures.prompt_of(args.prompt, args.picture)
    opened = pictures.open_pipeline(args)
    if mask_3HW is None:
        drawn = opened.pipe.outpaint(pixels_3HW, prompt, margin=args.margin, num_images=args.count, seed=args.seed)
        more = {"picture": args.picture, "margin": args.margin}
    else:
        drawn = opened.pipe.inpaint(pixels_3HW, mask_3HW, prompt, num_images=args.count, seed=args.seed)
        more = {"picture": args.picture, "mask": args.mask or args.box}
    text = opened.text(args.name, prompt, args.seed, **more)
    pictures.write_frames(args, drawn.images, f"{args.name}ed", text, kinds=(".png",))
    return 0


def box(given: str, pixels_3HW: "Tensor") -> "Tensor":
    """A mask (3, H, W), uint8, of a rectangle "x,y,w,h" of a picture. Raises InputError if it is none, or outside."""
    import torch

    _, H, W = pixels_3HW.shape
    numbers = [int(n) for n in given.split(",")] if re.fullmatch(r"\d+(,\d+){3}", given) else []
    if not numbers or numbers[2] < 1 or numbers[3] < 1 or numbers[0] >= W or numbers[1] >= H:
        raise InputError(
            f"--box is {given!r}, expected left, top, width and height in pixels of a picture of {W} x {H}, as "
            f"0,0,{W},{H // 2}: correct it"
        )
    x, y, w, h = numbers
    mask_3HW = torch.zeros_like(pixels_3HW)
    mask_3HW[:, y : y + h, x : x + w] = 255
    return mask_3HW
