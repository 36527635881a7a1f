"""Writing shards: the same samples give the same bytes, and a shard or index is there whole or not at all.

`index.json` beside the shards: {"format": 1, "samples", "bytes", "shards": {name: {"samples", "sha256", "bytes"}}}.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data.errors import InputError
from data.untrusted import open_regular, parse_json, read_all

INDEX_NAME = "index.json"
INDEX_FORMAT = 1
MEMBER_MODE = 0o644


class ShardWriter:
    """Fills `<prefix>-00000.tar`, `-00001.tar`, ... in `out` and writes the index on leaving without an error.

    A shard is closed when it holds `per_shard` samples, or before its file would pass `max_bytes` (a single larger
    sample still gets a shard of its own). After an error whole shards stay, but no index. Raises InputError if `out`
    cannot be written or is not empty; `overwrite` removes its index, the shards listed there, and those of this prefix.
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
        self._tar: tarfile.TarFile | None = None
        self._partial = self.out / f".{prefix}.part"
        self._in_shard = 0
        self._size = 0
        try:
            self._make_room(overwrite)
        except OSError as error:
            raise self._unwritable(error) from error

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
                self._tar = tarfile.open(self._partial, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            add_sample(self._tar, key, members)
        except OSError as error:
            raise self._unwritable(error) from error
        self._in_shard += 1
        self._size += size
        self.samples += 1

    def _make_room(self, overwrite: bool) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        present = [path.name for path in self.out.iterdir() if path.name != self._partial.name]
        if present and not overwrite:
            raise InputError(
                f"{self.out} already holds {len(present)} files ({present[0]}, ...); "
                "give an empty folder, or ask for its shards to be overwritten."
            )
        if overwrite:
            listed = {Path(name).name for name in read_index(self.out) or ()}
            ours = re.compile(re.escape(self.prefix) + r"-\d{5,}\.tar")
            for name in present:
                if name in listed or name == INDEX_NAME or ours.fullmatch(name):
                    (self.out / name).unlink()

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
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
                if self._tar is not None:
                    self._tar.close()
                self._partial.unlink(missing_ok=True)
                return
            self._close_shard()
            write_index(self.out, self.entries)
        except OSError as failure:
            raise self._unwritable(failure) from failure


def add_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Appends the members of one sample, by extension and in the given order."""
    for extension, content in members.items():
        header = tarfile.TarInfo(f"{key}.{extension}")
        header.size = len(content)
        header.mode = MEMBER_MODE
        tar.addfile(header, io.BytesIO(content))


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Writes one shard, whole or not at all, and returns the number of its samples."""
    partial = path.with_name(f".{path.name}.part")
    count = 0
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in samples:
            add_sample(tar, key, members)
            count += 1
    partial.replace(path)
    return count


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
