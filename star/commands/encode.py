"""`star data encode`: shards of pictures to shards of codes and text features, which train without either network."""

import argparse

from star.commands.options import within
from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.disk import check_writable

CROPS = ("center", "squash", "pad")  # as star.data.images has them; not imported from there, since help must be instant


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "encode",
        help="pictures to codes and text features, once for all trainings",
        description="Writes each shard anew, with the codes of its pictures and the features of its captions in place "
        "of the pictures; `star train star --data OUT` then loads neither network. An interrupted call goes on when it "
        "is repeated. Under torchrun, processes share the shards.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders, tars, patterns, URLs or lists")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for the encoded shards")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="a tokenizer's model directory")
    parser.add_argument("--text-encoder", required=True, metavar="DIR", help="a directory or hub id")
    parser.add_argument(
        "--latents", action="store_true", help="also keep what training with code noise needs; several times larger"
    )
    parser.add_argument(
        "--aspects", nargs="+", default=[], metavar="W:H", help="bring each picture to the nearest of these, as 1:1 3:2"
    )
    parser.add_argument(
        "--captions",
        action="store_true",
        help="keep captions as they are in place of their features, compressed: less than 1 KB a picture, to travel; "
        "the training then computes the features",
    )
    parser.add_argument("--crop", choices=CROPS, default="center", help="as the training asks (default: %(default)s)")
    parser.add_argument("--half", action="store_true", help="compute codes under bfloat16 autocast")
    parser.add_argument(
        "--batch", type=int, default=64, metavar="N", help="pictures at once, at most (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode pictures")
    add_allow_pipe(parser)
    parser.set_defaults(work=minding_pipes(work))


def work(args: argparse.Namespace) -> int:
    """Encodes and reports."""
    for name, low, high in (("batch", 1, 2**20), ("workers", 0, 1024)):
        within(f"--{name}", getattr(args, name), low, high)
    check_writable(args.out)
    from star.precomputed.encode import encode

    report = encode(
        args.shards,
        args.out,
        tokenizer=args.tokenizer,
        text_encoder=args.text_encoder,
        crop=args.crop,
        latents=args.latents,
        aspects=args.aspects,
        text="captions" if args.captions else "features",
        batch_size=args.batch,
        workers=args.workers,
        half=args.half,
        progress=True,
    )
    print(report.text())
    return 0
