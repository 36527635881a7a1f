"""Pairs of styles, and the pictures of shards by subject and style.

A pair is written "emojitwo>emojitwo_bw", or with several sources, the preferred one first,
"fluent_flat+fluent_color+fluent_3d>fluent_high_contrast".

3 RGB, H W pixels.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from star.data.errors import InputError
from star.data.images import image_to_pixels
from star.data.loader.pipeline import DataConfig, Pipeline

FORM = "source>target, or source+source>target"


@dataclass(frozen=True, slots=True)
class Pair:
    """The styles that pictures are redrawn from, in the order of preference, and the one they are redrawn in."""

    sources: tuple[str, ...]
    target: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InputError for a text of another form, or a style that is named twice."""
        given, _, target = (part.strip() for part in text.partition(">"))
        sources = tuple(part.strip() for part in given.split("+"))
        if not all((*sources, target)) or ">" in target or "+" in target:
            raise InputError(f"the pair is {text!r}, expected {FORM}, of names of styles: correct it")
        if len({*sources, target}) <= len(sources):
            raise InputError(f"the pair {text!r} names a style twice, expected each once: leave one of them out")
        return cls(sources, target)

    def __str__(self) -> str:
        return f"{'+'.join(self.sources)}>{self.target}"


def parse_pairs(texts: Sequence[str]) -> tuple[Pair, ...]:
    """Raises InputError for none at all, one that `Pair.parse` refuses, or a target of two of them."""
    pairs = tuple(map(Pair.parse, texts))
    if not pairs:
        raise InputError(f"no pairs of styles were given, expected one or more, as {FORM}: give --pairs")
    twice = sorted(target for target, times in Counter(pair.target for pair in pairs).items() if times > 1)
    if twice:
        raise InputError(f"{', '.join(twice)} is the target of two pairs, expected one: join their sources with +")
    return pairs


def styles_of(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """All that are named, by name."""
    return tuple(sorted({style for pair in pairs for style in (*pair.sources, pair.target)}))


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a shard with its record."""

    key: str
    captions: tuple[str, ...]
    info: dict[str, Any]
    pixels_3HW: Tensor

    @property
    def style(self) -> str:
        return str(self.info["style"])

    @property
    def skin_tone(self) -> str | None:
        tone = self.info.get("skin_tone")
        return str(tone) if tone else None


@dataclass(slots=True)
class Collection:
    """Pictures by subject and style, in the order of their shards; and of all that was read, keys and styles."""

    found: dict[str, dict[str, list[Picture]]] = field(default_factory=dict)  # subject, style
    keys: set[str] = field(default_factory=set)
    styles: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, shards: Sequence[str], resolution: int, pairs: Sequence[Pair]) -> Self:
        """All pictures of the pairs' styles whose record names a subject, resized, in memory (3 bytes a pixel)."""
        collection, wanted = cls(), set(styles_of(pairs))
        settings = DataConfig(shards=tuple(shards), resolution=resolution, shuffle=False)
        for batch in Pipeline(settings, batch_size=128).one_pass():
            collection.keys.update(batch.keys)
            collection.styles.update(str(info["style"]) for info in batch.info if info.get("style"))
            places = [place for place, info in enumerate(batch.info) if info.get("style") in wanted]
            batch = batch.pick([place for place in places if batch.info[place].get("subject")])
            pixels_B3HW = image_to_pixels(batch.image_B3HW)
            for key, captions, info, pixels_3HW in zip(
                batch.keys, batch.captions, batch.info, pixels_B3HW, strict=True
            ):
                collection.add(Picture(key, captions, info, pixels_3HW))
        return collection

    def add(self, picture: Picture) -> None:
        """Puts it under its subject and style."""
        self.found.setdefault(str(picture.info["subject"]), {}).setdefault(picture.style, []).append(picture)

    def of(self, subject: str, style: str) -> list[Picture]:
        """Those of a subject in a style; often none."""
        return self.found.get(subject, {}).get(style, [])

    def of_style(self, style: str) -> Iterator[tuple[str, Picture]]:
        """All of a style, with their subjects."""
        for subject, styles in self.found.items():
            for picture in styles.get(style, ()):
                yield subject, picture

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raises InputError for a style of the pairs of which there is no picture."""
        missing = sorted(set(styles_of(pairs)) - self.styles)
        if missing:
            there = ", ".join(sorted(self.styles)) or "none, as no record names a style"
            raise InputError(
                f"the pairs name {', '.join(missing)}, of which the training shards hold no picture; "
                f"there are {there}: correct --pairs, or give more data"
            )


@dataclass(frozen=True, slots=True)
class Example:
    """A picture to redraw as, and those to redraw it from: of each source style that has any, in order."""

    target: Picture
    sources: tuple[tuple[Picture, ...], ...]

    def draw(self, rng: random.Random) -> Picture:
        """One to redraw it from, every style alike."""
        return rng.choice(rng.choice(self.sources))


def examples(pairs: Sequence[Pair], targets: Collection, *sources: Collection) -> list[Example]:
    """Of every picture in a target style whose subject is there in a source style.

    The sources of its own skin tone are taken, or none where it has none; where no such are there, all of the subject.
    """
    found = []
    for pair in pairs:
        for subject, target in targets.of_style(pair.target):
            several = ([one for place in sources for one in place.of(subject, style)] for style in pair.sources)
            alike = (
                tuple(one for one in pictures if one.skin_tone == target.skin_tone) or tuple(pictures)
                for pictures in several
            )
            if given := tuple(pictures for pictures in alike if pictures):
                found.append(Example(target, given))
    return found


def training_examples(pairs: Sequence[Pair], collection: Collection) -> list[Example]:
    """`examples` among the training pictures. Raises InputError for unknown styles, or a pair without any."""
    collection.check(pairs)
    found = examples(pairs, collection, collection)
    taught = {example.target.style for example in found}
    for pair in pairs:
        if pair.target not in taught:
            raise InputError(
                f"no subject has a picture in both styles of {pair}, expected some to learn from; there are "
                f"{', '.join(sorted(collection.styles))}: correct --pairs, or give more data"
            )
    return found
