"""Folders and tables of pictures where shards are expected: packed once, and again only when their files change.

shards = as_shards(["photos", "more.tar"], Path("~/.cache/star/shards").expanduser(), say=print)
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from star.data.disk import writing
from star.data.errors import InputError
from star.data.formats import is_picture
from star.data.packing.pack import pack
from star.data.packing.sources import Kind, entries, kind_of
from star.data.shards.write import PACKING_MARK, read_index


def as_shards(
    sources: Sequence[str], cache: Path, *, say: Callable[[str], None], shorter_side: int | None = None
) -> list[str]:
    """The sources with each that is no shards replaced by a folder of the shards that were made of it in `cache`.

    say: is told what was packed where and what was left out. shorter_side: see pack. Patterns, lists and whatever else
    is no picture data stay as they are. Several processes may ask at once: one packs, the others wait. Raises
    InputError for pictures of which none can be used.
    """
    return [_packed(source, cache, say, shorter_side) for source in sources]


def _packed(source: str, cache: Path, say: Callable[[str], None], shorter_side: int | None) -> str:
    try:
        kind = kind_of(source)
    except InputError:
        return source  # a pattern or a list of shards, or nothing: who lists the shards tells
    path = Path(os.path.expanduser(source))
    if kind == "shards" or (kind == "folder" and not _holds_pictures(path)):
        return source
    state = hashlib.sha256(f"{path.resolve()}\0{kind}\0{shorter_side}".encode("utf-8", "surrogateescape"))
    for part in _state(path, kind):
        state.update(part.encode("utf-8", "surrogateescape"))
    folder = cache / state.hexdigest()[:16]
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        whole = not (folder / PACKING_MARK).exists()
        index = read_index(folder) if whole else None
        if index is None:
            say(f"{source} holds pictures, no shards; packing them, once, as `star data pack` does")
            say(pack(source, folder, kind=kind, shorter_side=shorter_side, overwrite=True).text())
        else:
            count = sum(entry["samples"] for entry in index.values())
            say(f"{count} pictures of {source}, as they were packed before in {folder}")
    return str(folder)


def _holds_pictures(folder: Path) -> bool:
    return any(is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _state(path: Path, kind: Kind) -> Iterator[str]:
    """Names, sizes and times of everything that a packing would read."""
    if kind == "table":
        yield _seen(path)
        for entry in entries(str(path), kind, []):
            if isinstance(entry.picture, Path):
                yield _seen(entry.picture)
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (_seen(Path(folder, name)) for name in sorted(names))


def _seen(path: Path) -> str:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return f"{path}\0missing\0"
    return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0"
