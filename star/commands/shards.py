"""`star data pack | check | synthetic`: captioned pictures to shards, and what is wrong with shards.

The other actions of `star data` have modules of their own.
"""

import argparse
from collections.abc import Sequence

from star.commands import bench, benchmark, complete, encode, hardest, wordings
from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.errors import InputError

# As star.data.packing.sources and star.data.packing.pack have them; not imported from there, since help must be
# instant.
KINDS = ("folder", "table", "shards", "mjhq", "imagefolder", "tables", "dataset")
FORMATS = ("keep", "png", "webp", "jpg")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("data", help="pack, check, encode and time shards, make synthetic ones and benchmarks")
    actions = parser.add_subparsers(metavar="ACTION", title="actions", required=True)

    pack = actions.add_parser(
        "pack",
        help="a folder, table, webdataset or MJHQ layout to shards",
        description="Packs captioned pictures into tar shards with an index. SOURCE is a folder of pictures with .txt "
        "captions beside them, a CSV, TSV, JSONL or parquet table, existing shards, a folder of the MJHQ-30k layout, "
        "or a data set of the Hugging Face hub on the disk: imagefolder with metadata, parquet files, or what "
        "save_to_disk wrote. Pictures of any format that Pillow reads; PNG, JPEG, WebP, BMP, GIF and TIFF are stored "
        "as they are, others as PNG. What is left out is counted and named.",
    )
    pack.add_argument("source", metavar="SOURCE")
    pack.add_argument("out", metavar="OUT", help="folder for the shards")
    pack.add_argument("--kind", choices=KINDS, help="what SOURCE is (default: found out)")
    pack.add_argument("--image-column", metavar="NAME", help="of a table (default: image, file_name or the like)")
    pack.add_argument("--caption-column", metavar="NAME", help="of a table (default: caption, text or prompt)")
    pack.add_argument("--split", metavar="NAME", help="of a data set of several, or all (default: train if there)")
    pack.add_argument("--per-shard", type=int, default=1000, metavar="N", help="samples (default: %(default)s)")
    pack.add_argument(
        "--shorter-side", type=int, metavar="PIXELS", help="reduce larger pictures to this (default: keep)"
    )
    pack.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="KEY=VALUES",
        help="samples alone whose record has one of the values, separated by commas, as style=noto,twemoji",
    )
    pack.add_argument("--format", choices=FORMATS, default="keep", help="of the stored pictures (default: %(default)s)")
    pack.add_argument("--overwrite", action="store_true", help="replace shards that are already in OUT")
    add_allow_pipe(pack)
    pack.set_defaults(work=minding_pipes(pack_work))

    check = actions.add_parser(
        "check",
        help="an integrity report on shards",
        description="Reads every shard to its end and names truncated tars, unreadable pictures, missing captions, "
        "duplicates and what disagrees with the index. Exit code 1 if anything is wrong.",
    )
    check.add_argument("shards", nargs="+", metavar="SHARDS", help="folders, tars, patterns or lists")
    check.add_argument("--fast", action="store_true", help="do not decode pictures")
    add_allow_pipe(check)
    check.set_defaults(work=minding_pipes(check_work))

    synthetic = actions.add_parser(
        "synthetic",
        help="small captioned shards made on the spot",
        description="Writes coloured shapes with captions to OUT/train and OUT/test, so that every training command "
        "can be tried anywhere.",
    )
    synthetic.add_argument("out", metavar="OUT")
    synthetic.add_argument(
        "--count", type=int, default=512, metavar="N", help="training samples (default: %(default)s)"
    )
    synthetic.add_argument("--test", type=int, default=64, metavar="N", help="test samples (default: %(default)s)")
    synthetic.add_argument("--size", type=int, default=64, metavar="PIXELS", help="(default: %(default)s)")
    synthetic.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    synthetic.add_argument("--overwrite", action="store_true", help="replace shards that are already in OUT")
    synthetic.set_defaults(work=synthetic_work)
    for command in (encode, benchmark, wordings, complete, hardest, bench):
        command.add(actions)


def pack_work(args: argparse.Namespace) -> int:
    from star.data.packing.pack import pack

    report = pack(
        args.source,
        args.out,
        kind=args.kind,
        image_column=args.image_column,
        caption_column=args.caption_column,
        split=args.split,
        only=_only(args.only),
        samples_per_shard=args.per_shard,
        shorter_side=args.shorter_side,
        image_format=args.format,
        overwrite=args.overwrite,
        progress=True,
    )
    print(report.text())
    return 0


def _only(words: Sequence[str]) -> dict[str, list[str]]:
    """By key, the values asked for. Raises InputError for a word that is not KEY=VALUES."""
    wrong = [word for word in words if not all(word.partition("=")[::2])]
    if wrong:
        raise InputError(f"--only was given {wrong[0]!r}, expected a key and its values, as style=noto,twemoji")
    return {key: values.split(",") for key, _, values in (word.partition("=") for word in words)}


def check_work(args: argparse.Namespace) -> int:
    from star.data.shards.check import check

    report = check(args.shards, decode_images=not args.fast, progress=True)
    print(report.text())
    return 0 if report.ok else 1


def synthetic_work(args: argparse.Namespace) -> int:
    from star.data.synthetic import write

    out = write(args.out, args.count, args.size, args.seed, args.test, overwrite=args.overwrite)
    print(f"{args.count} training and {args.test} test samples of {args.size} pixels in {out}")
    return 0
