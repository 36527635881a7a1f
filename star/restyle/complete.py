"""Styles filled in: shards of made pictures, for subjects that have one in a source style and none in the target's.

What is made says so: its record has `made_from`, the key of the picture it was redrawn from, and `made_by`, the
restyler's digest. Category, tags, code points, licence and source are those of that picture.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.data.errors import InputError
from star.data.images import pixels_to_pil
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.packing.pack import SAVE_OPTIONS
from star.data.progress import Progress
from star.data.shards.splits import held_out_shards, training_shards
from star.data.shards.write import ShardWriter
from star.restyle.model import SHARPNESS, Restyler
from star.restyle.pairs import Collection, Pair, Picture


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture to be made: of which one, in which style, under which captions."""

    source: Picture
    target: str
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompleteReport:
    """What was written where, by style; of these, how many combinations held-out shards hold; what was left out."""

    out: Path
    shards: int
    bytes: int
    written: dict[str, int]
    held_out: dict[str, int]
    without_caption: int

    def text(self) -> str:
        """For people."""
        styles = ", ".join(f"{count} of style {style}" for style, count in self.written.items())
        lines = [f"{styles}, made and not drawn, in {self.shards} shards, {self.bytes / 2**20:.1f} MiB, in {self.out}"]
        if sum(self.held_out.values()):
            held_out = ", ".join(f"{count} of {style}" for style, count in self.held_out.items() if count)
            lines.append(
                f"{held_out} are of subjects whose picture in that style is held out; a model trained on them has seen "
                "these combinations, --without-held-out leaves them out"
            )
        if self.without_caption:
            lines.append(f"{self.without_caption} subjects left out: no caption ends in the words of the style")
        return "\n".join(lines)


def complete(
    shards: Sequence[str],
    model: str | Path,
    out: str | Path,
    *,
    without_held_out: bool = False,
    sharpness: float = SHARPNESS,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = False,
) -> CompleteReport:
    """Redraws what the training shards lack and writes shards in their format to `out`, with an index.

    Only training shards are read for pictures. without_held_out: leaves out a subject whose picture in the target style
    is in a held-out shard of the same data. sharpness: see Restyler.redraw. Raises InputError for unusable shards, a
    model that does not suit them, an unusable folder, or if nothing is missing.
    """
    restyler = Restyler.from_directory(model, device=device)
    collection = Collection.read(training_shards(shards), restyler.resolution, restyler.pairs)
    collection.check(restyler.pairs)
    held_out = _combinations(held_out_shards(shards))
    found = {pair.target: missing(pair, collection) for pair in restyler.pairs}
    if without_held_out:
        found = {
            target: {subject: one for subject, one in several.items() if (subject, target) not in held_out}
            for target, several in found.items()
        }
    pictures = [one for several in found.values() for one in several.values() if one.captions]
    if not pictures:
        raise InputError(
            f"nothing is missing in {', '.join(shards)} that {model} could redraw "
            f"({', '.join(map(str, restyler.pairs))}): give other shards"
        )
    with (
        ShardWriter(out, prefix="completed", overwrite=overwrite) as writer,
        Progress(len(pictures), unit="images", title="redraw", enabled=progress) as bar,
    ):
        for one in pictures:
            writer.add(*_sample(one, restyler, collection.keys, sharpness))
            bar.update()
    return CompleteReport(
        out=Path(out),
        shards=len(writer.entries),
        bytes=writer.size,
        written={target: sum(bool(one.captions) for one in several.values()) for target, several in found.items()},
        held_out={
            target: sum((subject, target) in held_out for subject, one in several.items() if one.captions)
            for target, several in found.items()
        },
        without_caption=sum(not one.captions for several in found.values() for one in several.values()),
    )


def missing(pair: Pair, collection: Collection) -> dict[str, Missing]:
    """By subject, what there is in a source style and not in the target's; without captions where none suits.

    The first source style is taken that has a picture without a skin tone. Where there are only others, the first of
    them is taken if pictures in the target style have tones too, else none.
    """
    toned = any(picture.skin_tone for _, picture in collection.of_style(pair.target))
    words = style_words(collection, pair.target)
    found = {}
    for subject, styles in collection.found.items():
        if pair.target in styles:
            continue
        several = [picture for style in pair.sources for picture in styles.get(style, ())]
        several.sort(key=lambda picture: picture.skin_tone is not None)
        if several and (toned or several[0].skin_tone is None):
            source = several[0]
            captions = _reworded(source.captions, style_words(collection, source.style), words)
            found[subject] = Missing(source, pair.target, captions)
    return found


def style_words(collection: Collection, style: str) -> str:
    """What the most first captions of a style end in, after the last ", ". Raises InputError if none has such words."""
    endings = Counter(
        picture.captions[0].rpartition(", ")[2]
        for _, picture in collection.of_style(style)
        if ", " in picture.captions[0]
    )
    if not endings:
        raise InputError(
            f'no first caption of style {style} ends in words for it after ", ", as "a tent, black and white style": '
            "give shards with such captions"
        )
    return endings.most_common(1)[0][0]


def _reworded(captions: Sequence[str], old: str, new: str) -> tuple[str, ...]:
    """Those that end in the words for a style, with the words for another."""
    kept = (caption.removesuffix(f", {old}") for caption in captions if caption.endswith(f", {old}"))
    return tuple(f"{caption}, {new}" for caption in kept)


def _sample(one: Missing, restyler: Restyler, keys: set[str], sharpness: float) -> tuple[str, dict[str, bytes]]:
    """Key, which joins the others, and members."""
    pixels_3HW = restyler.redraw(one.source.pixels_3HW[None], [one.source.style], one.target, sharpness=sharpness)[0]
    target = io.BytesIO()
    pixels_to_pil(pixels_3HW).save(target, **SAVE_OPTIONS["webp"])
    record: dict[str, Any] = {**one.source.info, "caption": one.captions[0], "captions": list(one.captions)}
    record |= {
        "style": one.target,
        "made_from": one.source.key,
        "made_by": f"restyle {restyler.digest} sharpness {sharpness:g}",
    }
    key = name = f"{one.target}-of-{one.source.key}"
    number = 1
    while key in keys:
        number += 1
        key = f"{name}-{number}"
    keys.add(key)
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return key, {"webp": target.getvalue(), "json": text.encode()}


def _combinations(shards: Sequence[str]) -> set[tuple[str, str]]:
    """(subject, style) of all records; no picture is decoded."""
    if not shards:
        return set()
    records = Pipeline(DataConfig(shards=tuple(shards), shuffle=False), batch_size=128).records()
    return {(str(info.get("subject", "")), str(info.get("style", ""))) for _, info in records}
