"""Pictures for a page that stands alone: chosen by key or by score, made small, and written into the page as data.

A picture larger than SIDE is resized to it; one that is small in bytes stays lossless, any other becomes a good WebP.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from PIL import Image

from star.data.errors import InputError
from star.data.files import READ_ERRORS
from star.data.images import resize
from star.eval.metrics.registry import metric
from star.eval.report.comparison import Comparison, Entry
from star.eval.report.tables import label_of, number
from star.eval.run.layout import on_disk, spread, survey
from star.eval.run.pictures import decode_bounded, read_encoded
from star.eval.run.record import Picture, folder_of

SIDE = 128  # pixels, the longer side in the page
LOSSLESS = 8192  # bytes up to which a picture is kept as it is
EXTREMES = 6  # pictures at either end, per model


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One picture of the page. data: a data URI, empty where the file is gone."""

    data: str
    caption: str = ""
    prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The same prompts in rows, models in columns, the real picture first where it is known."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Picture, tuple[Shown, ...]], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extremes:
    """The pictures of one model that a metric likes best and least, best first, worst first."""

    label: str
    metric: str
    best: tuple[Shown, ...]
    worst: tuple[Shown, ...]


def side_by_side(comparison: Comparison, count: int, benchmark: str | Path | None = None) -> Gallery | None:
    """`count` prompts that all records share, evenly spread; None where no record brought its pictures.

    benchmark: the folder or zip that the real pictures come from. Raises InputError if it lacks one of them.
    """
    entries = [entry for entry in comparison.entries if entry.pictures]
    if not entries:
        return None
    shared = set.intersection(*({picture.key for picture in entry.pictures} for entry in entries))
    chosen = spread([picture for picture in entries[0].pictures if picture.key in shared], count)
    real = _real(benchmark, chosen) if benchmark else None
    return Gallery(
        columns=(*(["real"] if real else []), *(entry.label for entry in entries)),
        rows=tuple(
            (
                picture,
                (
                    *([Shown(data=real[picture.key], prompt=picture.prompt)] if real else []),
                    *(Shown(data=_generated(entry, picture.key), prompt=picture.prompt) for entry in entries),
                ),
            )
            for picture in chosen
        ),
    )


def extremes(comparison: Comparison) -> list[Extremes]:
    """Best and worst pictures of every model by the first metric that orders single pictures; none without one."""
    found = []
    for name in comparison.names():
        if not metric(name).per_picture:
            continue
        for entry in comparison.entries:
            scored = [picture for picture in entry.pictures if name in picture.scores]
            if len({picture.scores[name] for picture in scored}) > 2:  # ranks of 0 and 1 order nothing
                found.append(_extremes(entry, scored, name))
        if found:
            break
    return found


def _extremes(entry: Entry, scored: Sequence[Picture], name: str) -> Extremes:
    sign = 1 if metric(name).direction == "lower" else -1
    order = sorted(scored, key=lambda picture: (sign * picture.scores[name], picture.key))
    count = min(EXTREMES, len(order) // 2)

    def show(pictures: Iterable[Picture]) -> tuple[Shown, ...]:
        return tuple(
            Shown(data=_generated(entry, p.key), caption=number(name, p.scores[name]), prompt=p.prompt)
            for p in pictures
        )

    return Extremes(
        label=entry.label,
        metric=f"{label_of(name)} by {name.partition('/')[2]}",
        best=show(order[:count]),
        worst=show(reversed(order[len(order) - count :])),
    )


def _real(benchmark: str | Path, chosen: Sequence[Picture]) -> dict[str, str]:
    items = {item.key: item for item in survey(benchmark).items}
    for picture in chosen:
        item = items.get(picture.key)
        if item is None or item.prompt != picture.prompt:
            raise InputError(
                f"{benchmark} has no picture for the prompt {picture.prompt[:60]!r} of the records, expected the "
                "benchmark that they were made with: give that one, or leave --benchmark out"
            )
    return {picture.key: as_data(items[picture.key].picture) for picture in chosen}


def _generated(entry: Entry, key: str) -> str:
    """The picture of a record; empty where its file is gone, or a link leads out of the record's folder."""
    folder = folder_of(entry.path)
    try:
        file = (folder / "pictures" / on_disk(f"{key}.png")).resolve(strict=True)
        inside = file.is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError, ValueError):  # nothing there, links in a circle, a name that is none
        return ""
    return as_data(file) if inside else ""


def as_data(file: Traversable) -> str:
    """A picture, small, as a data URI; empty if it is gone or damaged."""
    try:
        picture = decode_bounded(read_encoded(file))
    except (InputError, *READ_ERRORS):
        return ""
    scale = min(1.0, SIDE / max(picture.size))
    small = resize(picture, (max(1, round(scale * picture.height)), max(1, round(scale * picture.width))))
    data = _webp(small, lossless=True)
    if len(data) > LOSSLESS:
        data = _webp(small, lossless=False)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _webp(picture: Image.Image, lossless: bool) -> bytes:
    target = io.BytesIO()
    picture.save(target, format="WEBP", lossless=lossless, quality=100 if lossless else 88, method=4)
    return target.getvalue()
