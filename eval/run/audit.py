"""An audit of picture files, made before anything is drawn: their digest, whether they can be read, their size.

Every file is read and decoded once. What `star.data.images.decode` has to convert is counted, because it is a decision
about the benchmark: transparency is put on white, CMYK becomes RGB, 16 bits become 8. What cannot be read is a fault.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from star.data.errors import InputError
from star.data.files import READ_ERRORS
from star.eval.run.feature_cache import CacheJob, count_blocks, fill, open_cache, span
from star.eval.run.layout import Item
from star.eval.run.pictures import decode_bounded, read_encoded
from star.eval.run.processes import Processes

UNREADABLE = "pictures unreadable"  # as a fault of a benchmark
DIGEST = 32  # bytes of a sha256
READABLE = 1
CONVERSIONS = {2: "transparency put on white", 4: "CMYK converted to RGB", 8: "16 bits reduced to 8"}
DEPTH_AT = 24  # where a PNG says its bits per channel


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """A file that can be read. digest: sha256; size: (H, W) once decoded; conversion: one of CONVERSIONS, or ""."""

    digest: bytes
    size: tuple[int, int]
    conversion: str


def audit(
    keys: Sequence[str], files: Sequence[Traversable], folder: Path, processes: Processes, title: str
) -> Mapping[str, FileInfo]:
    """Reads every file, or takes what is known of it from `folder` as long as its size and date have not changed.

    By key, in the order of files; those that cannot be read are missing.
    """
    stamps = hashlib.sha256()
    for key, file in zip(keys, files, strict=True):
        stamps.update(repr((key, _stamp(file))).encode())
    fingerprint = {"files": stamps.hexdigest()}
    shape = (len(files), DIGEST + 1 + 8)
    cache = open_cache(folder, f"{title}-files", fingerprint, shape=shape, processes=processes, dtype=np.uint8)
    if processes.is_main:
        for block in range(count_blocks(len(cache))):  # one that could not be read may have been restored since
            if cache.done(block) and not cache.read()[span(block, len(cache)), DIGEST].all():
                cache.forget(block)
    processes.wait()

    def compute(block: slice, loaded: list[NDArray[np.uint8]]) -> NDArray[Any]:
        return np.stack(loaded)

    fill(
        [CacheJob(cache, compute)],
        lambda row: _audit_file(files[row]),
        processes,
        title=f"read {title}",
        unit="pictures",
    )
    return _FileInfos(keys, cache.read())


class _FileInfos(Mapping[str, FileInfo]):
    """What is known of files, by key: kept as the numbers it was stored as, 41 bytes a file."""

    def __init__(self, keys: Sequence[str], rows: NDArray[np.uint8]) -> None:
        self._rows = np.asarray(rows)  # a plain array: parts of a mapped one are slow
        self._places = {key: place for place, key in enumerate(keys) if self._rows[place, DIGEST]}

    def __getitem__(self, key: str) -> FileInfo:
        return _unpacked(self._rows[self._places[key]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places


def digest_of(keys: Iterable[str], infos: Mapping[str, FileInfo]) -> str:
    """sha256 of the files of these keys, the keys included."""
    total = hashlib.sha256()
    for key in keys:
        total.update(key.encode() + b"\0" + infos[key].digest)
    return total.hexdigest()


def conversions(infos: Mapping[str, FileInfo], items: Sequence[Item], title: str) -> dict[str, list[str]]:
    """What was done to which pictures: "reference pictures, CMYK converted to RGB" -> category/id of each."""
    found: dict[str, list[str]] = {}
    for item in items:
        if text := infos[item.key].conversion:
            found.setdefault(f"{title} pictures, {text}", []).append(item.place)
    return dict(sorted(found.items()))


def _unpacked(row: NDArray[np.uint8]) -> FileInfo:
    height, width = np.ascontiguousarray(row[DIGEST + 1 :]).view("<u4").tolist()
    return FileInfo(
        digest=row[:DIGEST].tobytes(), size=(height, width), conversion=CONVERSIONS.get(int(row[DIGEST]) - READABLE, "")
    )


def _audit_file(file: Traversable) -> NDArray[np.uint8]:
    """sha256, flags (0: unreadable), height and width of one file."""
    try:
        data = read_encoded(file)
        picture = decode_bounded(data)
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
    """Size and date of a file, size and checksum of one in a zip; (0, 0) of one that cannot be read."""
    if isinstance(file, zipfile.Path):
        info = file.root.getinfo(file.at)
        return info.file_size, info.CRC
    assert isinstance(file, Path)
    try:
        status = file.stat()
    except OSError:  # gone, or a link that leads nowhere: reading will tell
        return 0, 0
    return status.st_size, status.st_mtime_ns
