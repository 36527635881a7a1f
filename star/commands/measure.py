"""`star measure`: how good a tokenizer is on shards it has not seen, and what it makes of them at every cut."""

import argparse
import json
from pathlib import Path

from star.commands.options import within
from star.commands.pipes import add_allow_pipe, minding_pipes
from star.data.disk import check_writable, write_text
from star.generators.placement import add_options

PICTURED = 12  # rows of the sheet


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "measure",
        help="score a tokenizer on held-out shards",
        description="Encodes and decodes every picture of the shards named as held out (all shards where none is), "
        "prints PSNR, SSIM, distinct codes and perplexity per scale, and writes scores.json and a sheet of "
        "reconstructions.",
    )
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="model directory, or tokenizer-emoji, which ships")
    parser.add_argument("--data", nargs="+", required=True, metavar="SHARDS", help="folders, tars, patterns or lists")
    parser.add_argument("--out", default="measured", metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pictures at once (default: %(default)s)")
    add_options(parser, dtype="float32")  # figures of two types are two measurements
    add_allow_pipe(parser)
    parser.set_defaults(work=minding_pipes(work))


def work(args: argparse.Namespace) -> int:
    """Measures and writes."""
    within("--batch", args.batch, 1, 2**20)
    check_writable(args.out)
    from star.data.images import save_png
    from star.data.loader.pipeline import DataConfig, Pipeline
    from star.data.shards.splits import held_out_shards
    from star.generators.placement import placed
    from star.generators.registry import place_of
    from star.tokenizer.metrics import cuts_grid, measure
    from star.tokenizer.tokenizer import MultiScaleTokenizer

    place = placed(args.device, args.dtype, place_of(args.tokenizer))
    told = place.told()
    tokenizer = MultiScaleTokenizer.from_directory(place_of(args.tokenizer), device=place.device)
    shards = held_out_shards(args.data) or tuple(args.data)
    data = DataConfig(shards=shards, resolution=tokenizer.resolution, shuffle=False)
    pipeline = Pipeline(data, batch_size=args.batch)
    out = Path(args.out)
    first = next(iter(Pipeline(data, batch_size=PICTURED).one_pass()))
    save_png(cuts_grid(tokenizer, first.image_B3HW, first.prompts), out / "reconstructions.png")
    scores = measure(tokenizer, pipeline.one_pass(), "bf16" if told["dtype"] == "bfloat16" else "no")
    write_text(out / "scores.json", json.dumps(scores.as_dict() | told, indent=1) + "\n")
    print(f"{scores.lines()}\n{pipeline.report.text()}\n{out / 'scores.json'}\n{out / 'reconstructions.png'}")
    return 0
