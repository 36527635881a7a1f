"""Writing shards: the same samples give the same bytes, and a shard or index is there whole or not at all.

`index.json` beside the shards: {"format": 1, "samples", "bytes", "shards": {name: {"samples", "sha256", "bytes"}}}.
While shards are written, and after a packing was killed, a file `.packing` beside them says that they are not all.
"""

import contextlib
import gzip
import hashlib
import io
import json
import logging
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from filelock import FileLock, Timeout

from star.data.errors import InputError
from star.data.files import open_regular, parse_json, read_all

logger = logging.getLogger(__name__)

PACKING_MARK = ".packing"  # holds the prefix of the shards that are being written
LOCK_NAME = ".packing.lock"
INDEX_NAME = "index.json"
INDEX_FORMAT = 1
MEMBER_MODE = 0o644


class ShardWriter:
    """Fills `<prefix>-00000.tar`, `-00001.tar`, ... in `out` and writes the index on leaving without an error.

    A shard is closed when it holds `per_shard` samples, or before its file would pass `max_bytes` (a single larger
    sample still gets a shard of its own). After an error whole shards stay, without an index and beside a file
    `.packing`, as after a kill; the next writer removes them and begins again. Raises InputError if `out` cannot be
    written, is being written by another process, or is not empty; `overwrite` removes its index, the shards listed
    there, and those of this prefix.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        prefix: str = "shard",
        per_shard: int = 1000,
        max_bytes: int | None = None,
        overwrite: bool = False,
    ) -> None:
        if per_shard < 1 or (max_bytes is not None and max_bytes < 1):
            raise InputError(
                f"A shard of {per_shard} samples and {max_bytes} bytes cannot hold anything; give 1 or more of each."
            )
        if not prefix or "/" in prefix or prefix.startswith("."):
            raise InputError(f"The prefix {prefix!r} cannot begin a file name; give a plain word such as 'train'.")
        self.out = Path(out)
        self.prefix = prefix
        self.per_shard = per_shard
        self.max_bytes = max_bytes
        self.entries: dict[str, dict[str, Any]] = {}
        self.samples = 0
        self._file: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None
        self._lock = FileLock(self.out / LOCK_NAME, timeout=0)
        self._partial = self.out / _partial(prefix)
        self._in_shard = 0
        self._size = 0
        self._claim()
        try:
            self._make_room(overwrite)
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    @property
    def size(self) -> int:
        """Bytes of all finished shards."""
        return sum(entry["bytes"] for entry in self.entries.values())

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Appends one sample; `members` by extension, written in the given order."""
        size = sum(512 + -(-len(content) // 512) * 512 for content in members.values())
        full = self._in_shard >= self.per_shard
        if self.max_bytes is not None and self._in_shard:
            full = full or self._size + size + 1024 > self.max_bytes
        try:
            if full:
                self._close_shard()
            if self._tar is None:
                self._file = self._partial.open("wb")
                self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            add_sample(self._tar, key, members)
        except OSError as error:
            raise self._unwritable(error) from error
        self._in_shard += 1
        self._size += size
        self.samples += 1

    def _claim(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(
                f"{self.out} is being packed by another process; wait for its end, or give another folder."
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _make_room(self, overwrite: bool) -> None:
        if not overwrite:
            check_room(self.out, self.prefix)
        present = {path.name for path in self.out.iterdir()} - {LOCK_NAME}
        unfinished = _unfinished(self.out, self.prefix, present)
        if PACKING_MARK in unfinished:
            logger.warning(
                "%s holds %d shards of a packing that was not finished; they are removed, and packing begins again",
                self.out,
                sum(name.endswith(".tar") for name in unfinished),
            )
        if overwrite:
            unfinished |= present & {INDEX_NAME, *(Path(name).name for name in read_index(self.out) or ())}
            unfinished |= {name for name in present if _is_shard(name, self.prefix)}
        (self.out / PACKING_MARK).write_text(self.prefix, encoding="utf-8")
        for name in unfinished - {PACKING_MARK}:
            (self.out / name).unlink()

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # a name that stays does no harm; removed while it is still held
            (self.out / LOCK_NAME).unlink(missing_ok=True)
        self._lock.release()

    def _abandon(self) -> None:
        """After an error: no half shard, and the mark stays where there are whole ones."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()  # on a full disk this fails, but closes
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)
            (self.out / f".{INDEX_NAME}.part").unlink(missing_ok=True)
            if not self.entries:
                (self.out / PACKING_MARK).unlink(missing_ok=True)

    def _close_shard(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.close()
        self._tar = self._file = None
        name = f"{self.prefix}-{len(self.entries):05d}.tar"
        self.entries[name] = entry_of(self._partial, self._in_shard)
        self._partial.replace(self.out / name)
        self._in_shard = self._size = 0

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"Cannot write shards to {self.out} ({error.strerror or error}); give a folder with room.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._abandon()
                return
            self._close_shard()
            write_index(self.out, self.entries)
            (self.out / PACKING_MARK).unlink(missing_ok=True)
        except BaseException as failure:
            self._abandon()
            if isinstance(failure, OSError):
                raise self._unwritable(failure) from failure
            raise
        finally:
            self._release()


def check_room(out: str | Path, prefix: str) -> None:
    """Raises InputError where a writer of this prefix would refuse a folder, for whoever has long work to do before.

    A folder may be absent, or hold what a packing left that was killed.
    """
    out = Path(out)
    present = {path.name for path in out.iterdir()} - {LOCK_NAME} if out.is_dir() else set()
    foreign = sorted(present - _unfinished(out, prefix, present))
    if foreign:
        raise InputError(
            f"{out} already holds {len(foreign)} files ({foreign[0]}, ...); "
            "give an empty folder, or ask for its shards to be overwritten."
        )


def _unfinished(out: Path, prefix: str, present: set[str]) -> set[str]:
    """What a packing left that was killed: nothing of it is of use."""
    left = present & {_partial(prefix), PACKING_MARK, f".{INDEX_NAME}.part"}
    if PACKING_MARK not in present:
        return left
    with (out / PACKING_MARK).open(encoding="utf-8", errors="replace") as file:
        packed = file.read(200)
    left |= present & {INDEX_NAME, _partial(packed)}
    return left | {name for name in present if packed and _is_shard(name, packed)}


def _partial(prefix: str) -> str:
    return f".{prefix}.part"


def _is_shard(name: str, prefix: str) -> bool:
    return re.fullmatch(re.escape(prefix) + r"-\d{5,}\.tar", name) is not None


def add_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Appends the members of one sample, by extension and in the given order."""
    for extension, content in members.items():
        header = tarfile.TarInfo(f"{key}.{extension}")
        header.size = len(content)
        header.mode = MEMBER_MODE
        tar.addfile(header, io.BytesIO(content))


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Writes one shard, whole or not at all, and returns the number of its samples; compressed if it ends in .gz."""
    partial = path.with_name(f".{path.name}.part")
    count = 0
    with (
        _opened(partial, zipped=path.suffix == ".gz") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for key, members in samples:
            add_sample(tar, key, members)
            count += 1
    partial.replace(path)
    return count


def _opened(path: Path, *, zipped: bool) -> contextlib.AbstractContextManager[Any]:
    """A file to write to; a compressed one tells no time, so that the same samples give the same bytes."""
    return gzip.GzipFile(path, "wb", mtime=0) if zipped else path.open("wb")


def entry_of(path: Path, samples: int) -> dict[str, Any]:
    """What the index says of a shard."""
    return {"samples": samples, "sha256": sha256(path), "bytes": path.stat().st_size}


def write_index(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the index of all shards of a folder, by name."""
    totals = {what: sum(entry[what] for entry in entries.values()) for what in ("samples", "bytes")}
    partial = folder / f".{INDEX_NAME}.part"
    index = {"format": INDEX_FORMAT, **totals, "shards": dict(entries)}
    partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / INDEX_NAME)


def read_index(folder: str | Path) -> dict[str, dict[str, Any]] | None:
    """The shards of a folder's index by name, None if it has no index of ours. Raises InputError if it is damaged."""
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        return None
    try:
        with open_regular(path) as file:
            index = parse_json(read_all(file))
        if "format" not in index:
            return None  # another tool's
        if index["format"] != INDEX_FORMAT:
            raise ValueError(f"format {index['format']}, expected {INDEX_FORMAT}")
        return {
            name: {"samples": int(entry["samples"]), "sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])}
            for name, entry in index["shards"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not an index of shards ({error}); remove it, or pack the shards anew.") from error


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
