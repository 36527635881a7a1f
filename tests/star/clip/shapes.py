"""Colours, shapes and styles as captioned shards in the form of the emoji ones: what the small CLIPs learn in tests."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 40), "blue": (30, 60, 220), "yellow": (230, 200, 20)}
TAGS = {"red": ["crimson"], "green": ["grassy"], "blue": ["azure"], "yellow": ["lemon"]}
SHAPES = ("circle", "square")
STYLES = {"solid": "solid style", "outline": "outline drawing style"}


def records() -> list[dict]:
    """Every colour, shape and style once, in the form of the emoji shards."""
    found = []
    for colour in COLOURS:
        for shape in SHAPES:
            for style, words in STYLES.items():
                subject = f"{colour} {shape}"
                captions = [f"a {subject}, {words}", f"{subject}, {TAGS[colour][0]}, {words}"]
                record = {"caption": captions[0], "captions": captions, "subject": subject}
                found.append(record | {"style": style, "tags": TAGS[colour]})
    return found


def draw(record: dict, shift: int) -> Image.Image:
    picture = Image.new("RGB", (32, 32), "white")
    colour, shape = record["subject"].split()
    fill, outline = (COLOURS[colour], None) if record["style"] == "solid" else (None, COLOURS[colour])
    box = (6 + shift, 6, 25 + shift, 25)
    pencil = ImageDraw.Draw(picture)
    (pencil.ellipse if shape == "circle" else pencil.rectangle)(box, fill=fill, outline=outline, width=3)
    return picture


def write_shards(folder: Path) -> Path:
    """One shard to learn from and one held out, whose pictures are moved by two pixels; returns the folder."""
    for name, shift in (("shapes-train-0000.tar", 0), ("shapes-test-0000.tar", 2)):
        with tarfile.open(folder / name, "w") as tar:
            for index, record in enumerate(records()):
                buffer = io.BytesIO()
                draw(record, shift).save(buffer, "PNG")
                for suffix, data in ((".png", buffer.getvalue()), (".json", json.dumps(record).encode())):
                    member = tarfile.TarInfo(f"{index:04d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder
