"""Small captioned pictures made on the spot: coloured shapes in simple arrangements and five drawing styles.

Every picture is a pure function of (seed, split, number). The shards look like those of a real set (`<key>.webp` and
`<key>.json` with caption, captions, subject, style, category, tags), so whatever trains on these trains on those. As
in a serious set, the test split asks for known subjects in known styles, in combinations that training never shows.
"""

import colorsys
import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from star.data.errors import InputError
from star.data.shards.write import ShardWriter

COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 204, 21),
    "green": (42, 157, 74),
    "blue": (37, 99, 235),
    "purple": (126, 58, 190),
    "pink": (244, 114, 182),
    "brown": (121, 76, 44),
    "black": (28, 28, 30),
    "grey": (140, 145, 152),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "hexagon", "cross", "ring")
STYLES = {
    "flat": "drawn in flat colours",
    "outline": "drawn as an outline",
    "striped": "filled with stripes",
    "shaded": "with soft shading",
    "pixel": "in coarse pixels",
}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
HELD_OUT = 8
"""One in this many (subject, style) combinations belongs to the test split."""
OVERSAMPLING = 3


@dataclass(frozen=True, slots=True)
class Thing:
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing, or two and how the first lies to the second."""

    things: tuple[Thing, ...]
    relation: str | None
    style: str

    @property
    def subject(self) -> str:
        if self.relation is None:
            return self.things[0].name
        return f"{self.things[0].name} {self.relation} {_article(self.things[1].name)}"


def write(
    out: str | Path, count: int = 512, size: int = 64, seed: int = 0, test: int = 64, *, overwrite: bool = False
) -> Path:
    """Writes `count` training and `test` test samples of `size` pixels to out/train and out/test, and returns `out`.

    Raises InputError for impossible numbers, or if the folders cannot be written or are not empty.
    """
    if count < 1 or test < 0 or not 8 <= size <= 4096:
        raise InputError(
            f"Cannot draw {count} training and {test} test pictures of {size} pixels; "
            "give at least 1, at least 0, and 8 to 4096 pixels."
        )
    out = Path(out)
    for split, number in (("train", count), ("test", test)):
        if not number:
            continue
        per_shard = min(1000, max(1, -(-number // 4)))  # several shards even of a small set, as training expects
        with ShardWriter(out / split, prefix=split, per_shard=per_shard, overwrite=overwrite) as writer:
            for index in range(number):
                key, members = sample(split, index, size, seed)
                writer.add(key, members)
    return out


def sample(split: str, index: int, size: int, seed: int) -> tuple[str, dict[str, bytes]]:
    """Key and members of one sample."""
    random = Random(f"{seed}/{split}/{index}")
    scene = _scene(random)
    while _held_out(scene) != (split == "test"):
        scene = _scene(random)
    target = io.BytesIO()
    picture = draw(scene, size, random)
    if index % 8 == 7:
        extension = "png"
        picture.save(target, "PNG")
    else:
        extension = "webp"
        picture.save(target, "WEBP", lossless=True, method=0)
    record = describe(scene)
    return f"{split}-{index:06d}", {extension: target.getvalue(), "json": json.dumps(record).encode()}


def describe(scene: Scene) -> dict[str, Any]:
    """The record of a sample; the second caption is made of tags, as in the emoji shards."""
    subject = _article(scene.subject)
    words = [word for thing in scene.things for word in (thing.shape, thing.colour)]
    tags = list(dict.fromkeys(words))
    caption = f"{subject}, {scene.style} style"
    return {
        "caption": caption,
        "captions": [caption, f"{', '.join(tags)}, {scene.style} style", f"{subject}, {STYLES[scene.style]}"],
        "subject": scene.subject,
        "style": scene.style,
        "category": "single" if scene.relation is None else "pair",
        "tags": tags,
    }


def draw(scene: Scene, size: int, random: Random) -> Image.Image:
    """The scene on white, with a little freedom of place and size."""
    side = size * OVERSAMPLING
    canvas = Image.new("RGB", (side, side), "white")
    alone = scene.relation is None
    across, down = RELATIONS[scene.relation] if scene.relation is not None else (0, 0)
    for thing, sign in zip(scene.things, (1, -1), strict=False):
        radius = side * random.uniform(0.32, 0.4) if alone else side * random.uniform(0.17, 0.21)
        x = side * (0.5 + 0.24 * sign * across + random.uniform(-0.03, 0.03))
        y = side * (0.5 + 0.24 * sign * down + random.uniform(-0.03, 0.03))
        _paint(canvas, thing, scene.style, x, y, radius)
    small = canvas.resize((size, size), Image.Resampling.LANCZOS)
    if scene.style == "pixel":
        small = small.resize((16, 16), Image.Resampling.BOX).resize((size, size), Image.Resampling.NEAREST)
    return small


def _paint(canvas: Image.Image, thing: Thing, style: str, x: float, y: float, radius: float) -> None:
    mask = Image.new("L", canvas.size)
    _stencil(ImageDraw.Draw(mask), thing.shape, x, y, radius)
    colour = COLOURS[thing.colour]
    if style == "outline":
        inner = Image.new("L", canvas.size)
        _stencil(ImageDraw.Draw(inner), thing.shape, x, y, radius * 0.84, hole=1.57)
        canvas.paste(colour, mask=mask)
        canvas.paste("white", mask=inner)
        return
    fill = Image.new("RGB", canvas.size, colour)
    brush = ImageDraw.Draw(fill)
    if style == "striped":
        step = max(2, round(radius / 4))
        for line in range(-canvas.width, canvas.width * 2, 2 * step):
            brush.line((line, 0, line + canvas.width, canvas.width), fill=_lighter(colour, 0.55), width=step)
    elif style == "shaded":
        for ring in range(20, 0, -1):
            reach, lift = radius * 1.5 * ring / 20, 0.75 * (1 - ring / 20)
            centre_x, centre_y = x - radius * 0.35, y - radius * 0.35
            box = (centre_x - reach, centre_y - reach, centre_x + reach, centre_y + reach)
            brush.ellipse(box, fill=_lighter(colour, lift))
    canvas.paste(fill, mask=mask)


def _stencil(brush: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, hole: float = 1.0) -> None:
    if shape in ("circle", "ring"):
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            inside = radius * 0.5 * hole
            brush.ellipse((x - inside, y - inside, x + inside, y + inside), fill=0)
        return
    brush.polygon([(x + radius * across, y + radius * down) for across, down in _corners(shape)], fill=255)


def _corners(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit circle or so, y pointing down."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "diamond":
        return [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]
    if shape == "cross":
        inner, outer = 0.33, 0.95
        quarter = [(inner, -outer), (inner, -inner), (outer, -inner)]
        corners = []
        for _ in range(4):
            corners.extend(quarter)
            quarter = [(-down, across) for across, down in quarter]
        return corners
    count, radii = {"triangle": (3, (1.0,)), "hexagon": (6, (1.0,)), "star": (10, (1.0, 0.42))}[shape]
    return [
        (radii[corner % len(radii)] * math.sin(angle), -radii[corner % len(radii)] * math.cos(angle))
        for corner in range(count)
        for angle in (2 * math.pi * corner / count,)
    ]


def _scene(random: Random) -> Scene:
    first = Thing(random.choice(list(COLOURS)), random.choice(SHAPES))
    style = random.choice(list(STYLES))
    if random.random() < 0.5:
        return Scene((first,), None, style)
    second = first
    while second.shape == first.shape or second.colour == first.colour:
        second = Thing(random.choice(list(COLOURS)), random.choice(SHAPES))
    return Scene((first, second), random.choice(list(RELATIONS)), style)


def _held_out(scene: Scene) -> bool:
    digest = hashlib.blake2b(f"{scene.subject}/{scene.style}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def _lighter(colour: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    hue, light, saturation = colorsys.rgb_to_hls(*(part / 255 for part in colour))
    red, green, blue = colorsys.hls_to_rgb(hue, light + (1 - light) * amount, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
