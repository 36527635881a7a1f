"""What lies in picture files, found out before anything is drawn: their digest, whether they can be read, their size.

Every file is read and decoded once. What `data.images.decode` has to convert is counted, because it is a decision about
the benchmark: transparency is put on white, CMYK becomes RGB, 16 bits become 8. What cannot be read is a fault.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import InputError
from data.images import decode
from eval.layout import READ_ERRORS, Item
from eval.processes import Processes
from eval.rows import Filling, count_blocks, fill, open_rows, span

UNREADABLE = "pictures unreadable"  # as a fault of a benchmark
DIGEST = 32  # bytes of a sha256
READABLE = 1
CONVERSIONS = {2: "transparency put on white", 4: "CMYK converted to RGB", 8: "16 bits reduced to 8"}
DEPTH_AT = 24  # where a PNG says its bits per channel


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A file that can be read. digest: sha256; size: (H, W) once decoded; conversion: one of CONVERSIONS, or ""."""

    digest: bytes
    size: tuple[int, int]
    conversion: str


def inspect(
    keys: Sequence[str], files: Sequence[Traversable], folder: Path, processes: Processes, title: str
) -> dict[str, Seen]:
    """Reads every file, or takes what is known of it from `folder` as long as its size and date have not changed.

    By key, in the order of files; those that cannot be read are missing.
    """
    stamps = hashlib.sha256(repr([(key, _stamp(file)) for key, file in zip(keys, files, strict=True)]).encode())
    identity = {"files": stamps.hexdigest()}
    shape = (len(files), DIGEST + 1 + 8)
    rows = open_rows(folder, f"{title}-files", identity, shape=shape, processes=processes, dtype=np.uint8)
    if processes.is_main:
        for block in range(count_blocks(len(rows))):  # one that could not be read may have been restored since
            if rows.done(block) and not rows.read()[span(block, len(rows)), DIGEST].all():
                rows.forget(block)
    processes.wait()

    def compute(block: slice, loaded: list[NDArray[np.uint8]]) -> NDArray[Any]:
        return np.stack(loaded)

    fill([Filling(rows, compute)], lambda row: _look(files[row]), processes, title=f"read {title}", unit="pictures")
    return {key: _told(row) for key, row in zip(keys, rows.read(), strict=True) if row[DIGEST]}


def digest_of(seen: Mapping[str, Seen]) -> str:
    """sha256 of files, their keys included."""
    total = hashlib.sha256()
    for key, one in seen.items():
        total.update(key.encode() + b"\0" + one.digest)
    return total.hexdigest()


def conversions(seen: Mapping[str, Seen], items: Sequence[Item], title: str) -> dict[str, list[str]]:
    """What was done to which pictures: "reference pictures, CMYK converted to RGB" -> category/id of each."""
    told: dict[str, list[str]] = {}
    for item in items:
        if text := seen[item.key].conversion:
            told.setdefault(f"{title} pictures, {text}", []).append(item.place)
    return dict(sorted(told.items()))


def _told(row: NDArray[np.uint8]) -> Seen:
    height, width = np.ascontiguousarray(row[DIGEST + 1 :]).view("<u4").tolist()
    return Seen(
        digest=row[:DIGEST].tobytes(), size=(height, width), conversion=CONVERSIONS.get(int(row[DIGEST]) - READABLE, "")
    )


def _look(file: Traversable) -> NDArray[np.uint8]:
    """sha256, flags (0: unreadable), height and width of one file."""
    try:
        data = file.read_bytes()
        picture = decode(data)
        flags = READABLE | _conversion(data)
    except (InputError, *READ_ERRORS):
        return np.zeros(DIGEST + 9, np.uint8)
    numbers = np.array([picture.height, picture.width], "<u4").tobytes()
    return np.frombuffer(hashlib.sha256(data).digest() + bytes([flags]) + numbers, np.uint8)


def _conversion(data: bytes) -> int:
    """The flag of what `decode` did to a readable picture, 0 for nothing worth telling."""
    picture = Image.open(io.BytesIO(data))
    if picture.has_transparency_data:
        return 2
    if picture.mode == "CMYK":
        return 4
    return 8 if picture.mode.startswith("I") or (picture.format == "PNG" and data[DEPTH_AT] == 16) else 0


def _stamp(file: Traversable) -> tuple[int, int]:
    """Size and date of a file, size and checksum of one in a zip."""
    if isinstance(file, zipfile.Path):
        told = file.root.getinfo(file.at)
        return told.file_size, told.CRC
    assert isinstance(file, Path)
    status = file.stat()
    return status.st_size, status.st_mtime_ns
