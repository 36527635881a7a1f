"""Subjects drawn in colour, paler, and in the colours' negatives, as captioned shards in the form of the emoji ones."""

import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from star.data.images import pil_to_pixels, pixels_to_pil
from star.data.shards.write import write_shard

SIDE = 16
WORDS = {"colour": "colour style", "pale": "pale style", "negative": "negative emoji style"}
PAIR = "colour+pale>negative"


def draw(subject: str, style: str, tone: str = "") -> Tensor:
    """pixels_3HW: three rectangles on white, a pure function of all three."""
    rng = random.Random(subject + tone)
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    for _ in range(3):
        left, top = rng.randrange(SIDE - 4), rng.randrange(SIDE - 4)
        colour = tuple(rng.randrange(256) for _ in range(3))
        box = (left, top, left + rng.randrange(3, SIDE), top + rng.randrange(3, SIDE))
        ImageDraw.Draw(picture).rectangle(box, fill=colour)
    pixels_3HW = pil_to_pixels(picture)
    return {"colour": pixels_3HW, "pale": 128 + pixels_3HW // 2, "negative": 255 - pixels_3HW}[style]


def record(subject: str, style: str, tone: str = "") -> dict[str, Any]:
    """As the emoji shards have them: the last caption does not end in the words of the style."""
    said = f"{subject}, {tone}" if tone else subject
    captions = [f"a {said}, {WORDS[style]}", f"{said}, tag, {WORDS[style]}", f"a {said}, drawn somehow"]
    found = {"caption": captions[0], "captions": captions, "subject": subject, "style": style, "category": "things"}
    found |= {"tags": ["tag"], "codepoints": subject.upper(), "license": "CC0-1.0", "source": f"the {style} set"}
    return found | ({"skin_tone": tone} if tone else {})


def sample(subject: str, style: str, tone: str = "", **changes: Any) -> tuple[str, dict[str, bytes]]:
    """Key and members; changes: of the record."""
    target = io.BytesIO()
    pixels_to_pil(draw(subject, style, tone)).save(target, "PNG")
    key = "-".join(filter(None, (style, subject.replace(" ", "_"), tone)))
    described = record(subject, style, tone) | changes
    return key, {"png": target.getvalue(), "json": json.dumps(described).encode()}


def write(folder: Path, split: str, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Path:
    """One shard of a split; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / f"drawings-{split}-0000.tar", samples)
    return folder


def write_both(folder: Path, count: int = 24, held_out: int = 4) -> Path:
    """Subjects in all three styles to learn from, and some whose negative alone is held out; returns the folder."""
    taught = [sample(f"thing {n}", style) for n in range(count) for style in WORDS]
    known = [sample(f"other {n}", style) for n in range(held_out) for style in ("colour", "pale")]
    write(folder, "train", [*taught, *known])
    return write(folder, "test", [sample(f"other {n}", "negative") for n in range(held_out)])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
