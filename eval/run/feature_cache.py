"""The feature cache: rows of numbers on disk, one for each picture, filled block by block: by several processes, over
several starts.

    cache = open_cache(folder, "judge-emoji", fingerprint, shape=(N, D), processes=processes)
    fill([CacheJob(cache, compute)], load, processes, title="score", unit="pictures")
    cache.features()                                     # (N, D) float32, read where they are asked for

A block is always computed whole and from the same pictures, whoever does it and whenever: networks round by batch, and
so a run that was killed and continued, or shared by other processes, has the same bits. A block counts as done once its
rows are on the disk. Rows of another fingerprint have a folder of their own, so nothing is ever mixed.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from star.data.errors import InputError
from star.data.files import shorten
from star.data.progress import Progress
from star.eval.metrics.features import FileFeatures
from star.eval.run.processes import Processes

BLOCK = 32  # pictures; part of what a feature's last bits depend on
READERS = 4  # threads that read and decode ahead of the network

Loaded = TypeVar("Loaded")


class FeatureCache:
    """A (N, D) array in `folder`, and which of its blocks are done."""

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: DTypeLike) -> None:
        """Raises InputError if the files are not what they should be."""
        self.folder = folder
        self._rows = _mapped(folder / "rows.npy", shape, dtype)  # for its shape
        self._done = _mapped(folder / "done.npy", (count_blocks(shape[0]),), np.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    def done(self, block: int) -> bool:
        return bool(self._done[block])

    @property
    def blocks_done(self) -> int:
        """Of all processes on this machine."""
        return int(self._done.sum())

    def put(self, block: int, values: NDArray[Any]) -> None:
        """Writes one block. Raises ValueError for values of another shape, InputError if the disk is full."""
        place = self._rows[span(block, len(self))]
        if values.shape != place.shape:
            raise ValueError(f"block {block} of {self.folder} has shape {place.shape}, not {values.shape}")
        at = span(block, len(self)).start * self._rows.strides[0]
        self._write("rows.npy", self._rows.offset + at, np.ascontiguousarray(values, dtype=self._rows.dtype).tobytes())
        self._write("done.npy", self._done.offset + block, b"\1")  # after the rows are on the disk

    def forget(self, block: int) -> None:
        """Has a block computed anew."""
        self._write("done.npy", self._done.offset + block, b"\0")

    def _write(self, name: str, offset: int, data: bytes) -> None:
        """Not through the mapping: a full disk would end the process, and its pages count as this process's memory."""
        try:
            with (self.folder / name).open("r+b") as file:
                file.seek(offset)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"{self.folder / name} cannot be written ({error.strerror}): make room, and run again; what was done "
                "is kept"
            ) from error

    def read(self) -> NDArray[Any]:
        """All rows, mapped into memory; what is written to them stays in this process."""
        return np.load(self.folder / "rows.npy", mmap_mode="c")

    def features(self) -> FileFeatures:
        """Rows of float32, which stay in their file. Raises ValueError for rows of another kind."""
        return FileFeatures(self.folder / "rows.npy")


def open_cache(
    parent: Path,
    name: str,
    fingerprint: Mapping[str, Any],
    *,
    shape: tuple[int, int],
    processes: Processes,
    dtype: DTypeLike = np.float32,
) -> FeatureCache:
    """The cache of this name and fingerprint below `parent`, begun now if there are none.

    fingerprint: plain values, all that the rows are a function of. Raises InputError if the place cannot be written.
    """
    known = json.dumps([dict(fingerprint), list(shape), np.dtype(dtype).str, BLOCK], sort_keys=True)
    folder = parent / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    try:
        if processes.is_main and not folder.exists():
            _begin(folder, shape, dtype)
        processes.wait()
        return FeatureCache(folder, shape, dtype)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): make room, or choose another folder"
        ) from error


def _mapped(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> "np.memmap[Any, Any]":
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        found = np.load(path, mmap_mode="r")
        if not isinstance(found, np.memmap) or found.shape != shape or found.dtype != np.dtype(dtype):
            raise ValueError(f"it holds other rows than {shape} of {np.dtype(dtype)}")
        if not found.flags.c_contiguous:
            raise ValueError("its rows are columns")
    except Exception as error:  # whatever numpy stumbles over in a damaged header
        raise InputError(f"{path} is damaged ({shorten(error, 300)}): remove {path.parent}, and run again") from error
    return found


def count_blocks(count: int) -> int:
    return -(-count // BLOCK)


def span(block: int, count: int) -> slice:
    """The rows of a block; the last one may be short."""
    return slice(block * BLOCK, min((block + 1) * BLOCK, count))


@dataclass(frozen=True, slots=True)
class CacheJob:
    """A cache, and what makes a block of it from what was loaded for its pictures: (rows of the block, loaded)."""

    cache: FeatureCache
    compute: Callable[[slice, list[Any]], NDArray[Any]]


def fill(
    jobs: Sequence[CacheJob], load: Callable[[int], Loaded], processes: Processes, *, title: str, unit: str
) -> None:
    """Computes every missing block, each process its share, and returns when all are done.

    load(row) is called once for a row, whatever number of jobs needs it, in threads and ahead of time.
    """
    if not jobs:
        return
    count = len(jobs[0].cache)
    blocks = range(count_blocks(count))

    def size(block: int) -> int:
        return span(block, count).stop - span(block, count).start

    missing = [block for block in processes.share(blocks) if not all(job.cache.done(block) for job in jobs)]
    left, total = (sum(map(size, part)) for part in (missing, processes.share(blocks)))
    shown = processes.is_main and left > 0
    with Progress(total, unit=unit, title=title, start=total - left, enabled=shown) as progress:
        for block, loaded in _ahead(missing, load, count):
            for job in jobs:
                if not job.cache.done(block):
                    job.cache.put(block, job.compute(span(block, count), loaded))
            progress.update(size(block))
    processes.wait()


def _ahead(blocks: Iterable[int], load: Callable[[int], Loaded], count: int) -> Iterator[tuple[int, list[Loaded]]]:
    """Blocks with what was loaded for their rows, the next one loading meanwhile."""
    waiting: deque[tuple[int, list[Future[Loaded]]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for block in blocks:
            rows = span(block, count)
            waiting.append((block, [pool.submit(load, row) for row in range(rows.start, rows.stop)]))
            if len(waiting) > 1:
                first, futures = waiting.popleft()
                yield first, [future.result() for future in futures]
        for block, futures in waiting:
            yield block, [future.result() for future in futures]


def _begin(folder: Path, shape: tuple[int, int], dtype: DTypeLike) -> None:
    """Empty rows, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, size, kind in (("rows", shape, dtype), ("done", (count_blocks(shape[0]),), np.uint8)):
            np.lib.format.open_memmap(staging / f"{name}.npy", mode="w+", dtype=np.dtype(kind), shape=size).flush()
        staging.chmod(0o755)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
