"""Packing captioned pictures into shards."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from star.data.captions import captions_of, whole_text
from star.data.decoding import decode_noting
from star.data.errors import InputError
from star.data.formats import extra_for
from star.data.images import resize
from star.data.loader.report import SkipReport
from star.data.packing.entry import LARGEST_PICTURE, Entry, read_file, shown
from star.data.packing.sources import Kind, entries, kind_of
from star.data.progress import Progress
from star.data.shards.faults import Fault, Reason, SampleError
from star.data.shards.listing import list_shards
from star.data.shards.write import ShardWriter
from star.data.whole import ends_early

ImageFormat = Literal["keep", "png", "webp", "jpg"]
EXTENSIONS = {"PNG": "png", "WEBP": "webp", "JPEG": "jpg", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "MPO": "jpg"}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "method": 4},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """What was written where, and what was left out and why."""

    out: Path
    shards: int
    samples: int
    bytes: int
    skipped: SkipReport
    unasked: int = 0  # samples whose records are not those asked for

    def text(self) -> str:
        head = f"{self.samples} samples in {self.shards} shards, {self.bytes / 2**20:.1f} MiB, in {self.out}"
        beside = f"\n{self.unasked} samples with other records were passed over" if self.unasked else ""
        return f"{head}{beside}\n{self.skipped.text()}"


def pack(
    source: str | Path,
    out: str | Path,
    *,
    kind: Kind | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    samples_per_shard: int = 1000,
    max_shard_bytes: int | None = None,
    shorter_side: int | None = None,
    image_format: ImageFormat = "keep",
    prefix: str = "shard",
    only: Mapping[str, Collection[str]] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PackReport:
    """Packs a source (see `sources`) into shards of `<key>.<picture>` and `<key>.json`, with an index.

    kind: what the source is; None finds out. image_column, caption_column: of tables; None takes the usual names, see
    tables.py. split: of a data set of several, see layouts.py. shorter_side: reduces larger pictures to this many
    pixels on their shorter side, aspect kept, nothing cut. image_format: "keep" copies the bytes of pictures that are
    not reduced, if they are of EXTENSIONS, and makes PNG of others; webp is lossless, jpg of quality 95. only: samples
    alone whose records have one of these values under each of these keys, as {"style": ["noto"]}. Bad pictures
    and samples without a caption are left out, counted and named in the report. The same source gives the same bytes.
    Raises InputError for an unusable source or place, and if nothing at all could be packed.
    """
    source = str(source)
    if shorter_side is not None and shorter_side < 1:
        raise InputError(f"The shorter side is {shorter_side} pixels; give at least 1.")
    if image_format != "keep" and image_format not in SAVE_OPTIONS:
        raise InputError(f"Unknown image format {image_format!r}; choose keep, {', '.join(SAVE_OPTIONS)}.")
    kind = kind or kind_of(source)
    if kind == "shards" and Path(out).resolve() in {Path(shard).resolve().parent for shard in list_shards([source])}:
        raise InputError(f"{out} holds the shards that are to be packed; give another folder to pack them into.")
    skipped, faults = SkipReport(), list[Fault]()
    keys, unasked = _UniqueKeys(), 0
    columns = {"image_column": image_column, "caption_column": caption_column, "split": split}
    stream = entries(source, kind, faults, **columns, without=Path(out))
    with (
        ShardWriter(
            out, prefix=prefix, per_shard=samples_per_shard, max_bytes=max_shard_bytes, overwrite=overwrite
        ) as writer,
        Progress(None, unit="images", title="pack", enabled=progress) as bar,
    ):
        for entry in stream:
            place = shown(f"{entry.origin}: {entry.name}" if entry.name else entry.origin)
            if entry.problem is None and not _asked(entry.record, only):
                unasked += 1
                continue
            try:
                members = _members(entry, shorter_side, image_format)
            except SampleError as error:
                skipped.add([Fault(source, error.reason, place, shown(error.detail))])
            else:
                skipped.add(Fault(source, reason, place, shown(detail)) for reason, detail in entry.notes)
                writer.add(keys(entry.name), members)
            bar.update()
        skipped.add(faults)
        if not writer.samples:
            if unasked:
                wanted = ", ".join(f"{key}={' or '.join(values)}" for key, values in (only or {}).items())
                raise InputError(
                    f"none of {unasked} samples of {source} has a record with {wanted}: give values that there are"
                )
            raise InputError(
                f"{source} holds no picture with a caption{_reasons(skipped)}; put a .txt of the same name beside each "
                "picture, or name the columns of the table."
            )
    return PackReport(
        out=Path(out),
        shards=len(writer.entries),
        samples=writer.samples,
        bytes=writer.size,
        skipped=skipped,
        unasked=unasked,
    )


def _asked(record: Mapping[str, Any], only: Mapping[str, Collection[str]] | None) -> bool:
    return all(key in record and str(record[key]) in values for key, values in (only or {}).items())


def _reasons(skipped: SkipReport) -> str:
    if not skipped.named:
        return ""
    counts = ", ".join(f"{number} x {reason}" for reason, number in skipped.reasons.items())
    first = skipped.named[0]
    return f" ({counts}; the first: {first.key or first.shard}: {first.reason}, {first.detail.rstrip('.')})"


def _members(entry: Entry, shorter_side: int | None, image_format: ImageFormat) -> dict[str, bytes]:
    if entry.problem is not None:
        raise entry.problem
    data = entry.picture
    if isinstance(data, Path):
        data = read_file(data, LARGEST_PICTURE, "missing picture")
    extension, picture = _picture(data, shorter_side, image_format, entry.notes)
    record = {**entry.record, "caption": entry.captions[0]}
    if len(entry.captions) > 1:
        record["captions"] = list(entry.captions)
    else:
        record.pop("captions", None)
    try:
        text = json.dumps(record, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError("broken json", str(error)) from error
    whole = whole_text(text)
    if whole != text:
        entry.notes.append(("repaired text", "its caption or record holds half of a surrogate pair, now U+FFFD"))
    members = {extension: picture, "json": whole.encode(), **entry.extra}
    captions_of(members)  # what no training would take is refused here already: too large, too deep
    return members


def _picture(
    data: bytes, shorter_side: int | None, image_format: ImageFormat, notes: list[tuple[Reason, str]]
) -> tuple[str, bytes]:
    """Extension and bytes to store. Decodes in any case, so that nothing unreadable enters a shard."""
    try:
        picture, format, found = decode_noting(data)
    except InputError as error:
        raise SampleError("unsupported format" if extra_for(data[:16]) else "broken picture", str(error)) from error
    if ends_early(data):
        raise SampleError("broken picture", "a JPEG that was cut off and closed; its rest would be grey")
    notes.extend(found)
    extension = EXTENSIONS.get(format, "")
    reduce = shorter_side is not None and min(picture.size) > shorter_side
    if not reduce and extension and image_format in ("keep", extension):
        return extension, data
    if reduce:
        assert shorter_side is not None
        scale = shorter_side / min(picture.size)
        picture = resize(picture, (round(picture.height * scale), round(picture.width * scale)), "squash")
    wanted = image_format
    if wanted == "keep":
        wanted = "jpg" if extension == "jpg" else "webp" if extension == "webp" else "png"
    target = BytesIO()
    picture.save(target, **SAVE_OPTIONS[wanted])
    return wanted, target.getvalue()


class _UniqueKeys:
    """Turns names into keys: no dots (an extension would begin there), nothing a path could trip over, no repeats."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        key = re.sub(r"[^\w+@=,-]+", "_", name.replace("/", "__")).strip("_") or "sample"
        while True:
            number = self._used.get(key, 0) + 1
            self._used[key] = number
            if number == 1:
                return key
            key = f"{key}-{number}"
