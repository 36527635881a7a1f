"""`star data wordings`: what people call the subjects of captioned shards, so that prompts can be said as captions."""

import argparse
from pathlib import Path
from typing import Any

# Styles whose pictures tell the colours of a subject; all where none of them is there.
PREFERRED = ("fluent_flat", "noto", "twemoji")
ABOUT = (
    "Names: emojibase, Copyright Miles Johnson, MIT (from Unicode CLDR, Unicode License); emojilib, Copyright Mu-An "
    "Chiou, MIT."
)


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "wordings",
        help="what people call the subjects of captioned shards",
        description="Gathers names, short codes and search tags of every subject that the records of SHARDS name with "
        "its code points, and colours from its pictures. Beside a model's weights, as wordings.json, it lets the model "
        "draw what people call the things that captions name otherwise. `npm install emojibase-data emojilib` brings "
        "the sources.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders, tars, patterns or lists")
    parser.add_argument("--emojibase", required=True, metavar="DIR", help="node_modules/emojibase-data/en")
    parser.add_argument("--emojilib", required=True, metavar="FILE", help="node_modules/emojilib/dist/emoji-en-US.json")
    parser.add_argument("--out", default="wordings.json", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument(
        "--styles",
        nargs="*",
        default=[],
        metavar="S",
        help="of the records, which a prompt without a style means, in order",
    )
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from star.clip.gathering import gather
    from star.data.disk import check_writable

    check_writable(Path(args.out).absolute().parent)
    captions, infos, colours, nearest = read(args.shards)
    found = gather(captions, infos, colours, args.emojibase, args.emojilib, args.styles, nearest)
    found = replace(found, about=ABOUT)
    found.save(args.out)
    phrases = {phrase for subject in found.subjects.values() for phrase in subject.names}
    print(f"{len(found.subjects)} subjects by {len(phrases)} names in {len(found.styles)} styles")
    return 0


def read(
    shards: list[str],
) -> tuple[list[list[str]], list[dict[str, Any]], dict[str, dict[str, float]], dict[str, list[str]]]:
    """Captions and records of the training shards, of each subject the mean shares of its colours, and of each style
    those that are most like it."""
    from star.clip.colours import shares
    from star.clip.styles import StyleLikeness
    from star.data.images import image_to_pixels
    from star.data.loader.pipeline import DataConfig, Pipeline
    from star.data.shards.splits import training_shards

    settings = DataConfig(shards=training_shards(shards), resolution=32, shuffle=False)
    captions: list[list[str]] = []
    infos: list[dict[str, Any]] = []
    found: dict[str, list[tuple[bool, dict[str, float]]]] = {}
    likeness = StyleLikeness()
    for batch in Pipeline(settings, batch_size=64).one_pass():
        captions += [list(several) for several in batch.captions]
        infos += batch.info
        pixels_B3HW = image_to_pixels(batch.image_B3HW)
        likeness.add(pixels_B3HW, batch.info)
        for info, share in zip(batch.info, shares(pixels_B3HW), strict=True):
            if "subject" in info and share:
                found.setdefault(str(info["subject"]), []).append((info.get("style") in PREFERRED, share))
    means = {}
    for subject, several in found.items():
        chosen = [share for preferred, share in several if preferred] or [share for _, share in several]
        names = {name for share in chosen for name in share}
        means[subject] = {name: sum(share.get(name, 0.0) for share in chosen) / len(chosen) for name in names}
    return captions, infos, means, likeness.nearest()
