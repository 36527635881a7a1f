"""`star morph`: the way from one picture to another, through prompts, seeds or both."""

import argparse

from star.commands import pictures
from star.commands.drawing import LARGEST_SEED
from star.commands.options import within
from star.data.errors import InputError
from star.terminal import as_text

MOST_FRAMES = 1000


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = pictures.add_parser(
        commands,
        "morph",
        "pictures between prompts or seeds, as a strip and a film",
        "Draws the way through the prompts and the seeds: as many of both, or one of either for all. Encoded words, "
        "and latents or noise, are interpolated along arcs; the ends are what `star sample` draws of them. For STAR "
        "models and style-based GANs.",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="(default: 0)")
    parser.add_argument(
        "--frames", type=int, default=8, metavar="N", help="of each stretch between two (default: %(default)s)"
    )
    parser.add_argument("--back", action="store_true", help="and the same way back, so that a film has no end")
    parser.add_argument("--columns", type=int, default=0, metavar="N", help="frames in a row of a strip (default: all)")
    pictures.add_output(parser, films=True)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws the frames and writes them."""
    pictures.check(args, films=True)
    within("--frames", args.frames, 2, MOST_FRAMES)
    within("--columns", args.columns, 0, MOST_FRAMES)
    for seed in args.seeds:
        within("--seeds", seed, 0, LARGEST_SEED)
    prompts = [as_text(prompt) for prompt in args.prompts] or [""]
    if max(len(prompts), len(args.seeds)) < 2:
        raise InputError(
            f"{len(args.prompts)} prompts and {len(args.seeds)} seeds were given, expected at least two of either: "
            "give two prompts, or --seeds with two"
        )
    opened = pictures.open_pipeline(args)
    frames = opened.pipe.morph(prompts, seeds=args.seeds, frames=args.frames)
    if args.back:
        frames += frames[-2:0:-1]
    more = {"prompts": prompts, "seeds": args.seeds, "frames": args.frames}
    text = opened.text("morph", prompts[0], args.seeds[0], **more)
    pictures.write_frames(args, frames, "morph", text, columns=args.columns)
    return 0
