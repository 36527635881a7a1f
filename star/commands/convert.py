"""`star convert KIND FILE OUT`: a released checkpoint to a model directory."""

import argparse

from star.convert.published import KINDS, RELEASED, TOKENIZER_FILE
from star.data.disk import check_writable
from star.data.errors import InputError
from star.generators import registry
from star.generators.registration import load

# Converters called with the file, the folder and the options named here: shapes tell them everything else.
CONVERTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (gan.converter, gan.converter_options) for name, gan in registry.gans().items()},
    "lpips": ("star.tokenizer.lpips:convert_lpips", ("linear",)),
}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "convert",
        help="a released checkpoint of VAR, STAR or a style-based GAN to a model directory",
        description="Reads a released file without running anything in it, checks every tensor, and writes a model "
        "directory for --model. The state of an optimiser in the file is not read. What the file cannot tell, such as "
        "its resolution, a preset says.",
        epilog=f"presets: {', '.join(RELEASED)}",
    )
    kinds = (*KINDS, *CONVERTERS, *(name for name in registry.others() if name not in CONVERTERS))
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=f"one of {', '.join(kinds)}")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("out", metavar="OUT", help="folder for the model directory")
    parser.add_argument("--preset", metavar="NAME", help="the release (default: the only one that fits the file)")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help=f"{TOKENIZER_FILE}, or what was made of it (default: the file's own, or that one beside it)",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="PATH",
        help="folder or hub id to be remembered by its digest (default: the released); for a stylegan-t the CLIP that "
        "it was trained with, whose tokenizer it needs",
    )
    parser.add_argument(
        "--linear",
        metavar="PATH",
        help="for lpips: the weights by channel (default: the file's own, or those that come with torchmetrics)",
    )
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    check_writable(args.out)
    if args.kind not in KINDS:
        return _convert_by_file(args)
    if args.linear is not None:
        raise InputError(f"--linear {args.linear} was given for a {args.kind}, which has no such weights: leave it out")
    from star.convert.convert import convert
    from star.generators.registry import place_of

    made = convert(
        args.kind,
        args.file,
        args.out,
        preset=args.preset,
        tokenizer=args.tokenizer and place_of(args.tokenizer),
        text_encoder=args.text_encoder and place_of(args.text_encoder),
    )
    print(made.path)
    return 0


def _convert_by_file(args: argparse.Namespace) -> int:
    if args.kind in CONVERTERS:
        converter, options = CONVERTERS[args.kind]
    else:
        family = registry.registration(args.kind)
        converter, options = family.converter, family.converter_options
    if not converter:
        raise InputError(
            f"the package of {args.kind} registers no converter, expected one in its Registration: convert {args.file} "
            "with its own program"
        )
    told = {option: getattr(args, option) for option in options}
    for option in ("preset", "tokenizer", "text_encoder", "linear"):
        if option not in told and (value := getattr(args, option)) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} {value} was given for a {args.kind}, whose file is enough: leave it out"
            )
    print(load(converter)(args.file, args.out, **told).path)
    return 0
