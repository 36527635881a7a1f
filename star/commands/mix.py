"""`star mix`: the coarse layers of a GAN in the style of one picture, the fine ones in that of another."""

import argparse

from star.commands import pictures
from star.commands.drawing import LARGEST_SEED
from star.commands.options import within
from star.terminal import as_text

MOST = 32


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = pictures.add_parser(
        commands,
        "mix",
        "a sheet of mixed styles (style-based GANs)",
        "A row for each coarse seed, a column for each fine one: style slots before SLOT come from the first, the "
        "others from the second. The first row and column show the pictures that are mixed.",
    )
    parser.set_defaults(model="stylegan-t-emoji")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default="")
    parser.add_argument("--fine-prompt", metavar="PROMPT", help="of the fine layers, where it is another one")
    parser.add_argument("--coarse", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="(default: 0 1 2)")
    parser.add_argument("--fine", type=int, nargs="+", default=[3, 4, 5, 6], metavar="SEED", help="(default: 3 4 5 6)")
    parser.add_argument("--slot", type=int, metavar="N", help="the first fine one (default: half of them)")
    pictures.add_output(parser, films=False)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws the sheet and writes it."""
    pictures.check(args, films=False)
    for name in ("coarse", "fine"):
        within(f"the number of --{name} seeds", len(getattr(args, name)), 1, MOST)
        for seed in getattr(args, name):
            within(f"--{name}", seed, 0, LARGEST_SEED)
    from PIL import Image

    prompts = [as_text(args.prompt), as_text(args.prompt if args.fine_prompt is None else args.fine_prompt)]
    opened = pictures.open_pipeline(args)
    slots = opened.pipe._gan("mix").network.slots
    slot = slots // 2 if args.slot is None else args.slot

    def mixed(coarse: int, fine: int, first: int) -> Image.Image:
        return opened.pipe.mix(prompts, coarse_seed=coarse, fine_seed=fine, slot=first)

    corner = Image.new("RGB", opened.pipe.resolution[::-1], "white")
    frames = [corner, *(mixed(args.coarse[0], fine, 0) for fine in args.fine)]
    for coarse in args.coarse:
        frames += [mixed(coarse, args.fine[0], slots), *(mixed(coarse, fine, slot) for fine in args.fine)]
    more = {"coarse": args.coarse, "fine": args.fine, "slot": slot, "fine_prompt": prompts[1]}
    text = opened.text("mix", prompts[0], args.coarse[0], **more)
    pictures.write_frames(args, frames, "mixed", text, columns=1 + len(args.fine), kinds=(".png",))
    return 0
