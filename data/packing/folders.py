"""A folder of pictures with captions beside them: each file in it is packed, or counted and named."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from star.data.captions import REPAIRED_TEXT, TEXT_BYTES, captions_of, text_repaired
from star.data.errors import InputError
from star.data.formats import ENDINGS, ending
from star.data.packing.entry import Entry, clean, decode_text, read_file, shown, unusable
from star.data.shards.faults import Reason, SampleError

CAPTIONS = ("json", "txt")


def folder_entries(folder: Path, without: Path | None = None) -> Iterator[Entry]:
    """Pictures at any depth in the order of their paths, each with the .txt and .json of its own name.

    Linked folders are followed, each folder once. A file that has a caption but no known ending is taken for a
    picture. Captions without a picture, broken links, hidden files and other files become entries without a sample.
    `without` is a folder that is passed over. Raises InputError if `folder` is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of pictures with captions beside them.")
    return _Walk(folder, without).entries(folder)


@dataclass(slots=True)
class _SameStem:
    """Files of one folder with one stem."""

    pictures: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)  # by ending
    others: list[str] = field(default_factory=list)


class _Walk:
    def __init__(self, root: Path, without: Path | None) -> None:
        self.root, self.real_root = root, root.resolve()
        self.without = without.resolve() if without is not None else None
        self._visited: set[tuple[int, int]] = set()

    def entries(self, folder: Path) -> Iterator[Entry]:
        try:
            found = folder.stat()
            with os.scandir(folder) as scanned:
                things = sorted(scanned, key=lambda thing: thing.name)
        except OSError as error:
            yield self._unusable(folder, "cannot be opened", error.strerror or str(error))
            return
        self._visited.add((found.st_dev, found.st_ino))
        groups = _group([thing.name for thing in things if _is_file(thing) and not thing.name.startswith(".")])
        for thing in things:
            path = folder / thing.name
            if thing.name.startswith("."):
                if path.resolve() != self.without:
                    yield self._unusable(path, "not a picture", "it is hidden")
            elif _is_folder(thing):
                yield from self._folder(path)
            elif _is_file(thing):
                yield from self._file(path, groups[_stem(thing.name)])
            elif thing.is_symlink():
                yield self._unusable(
                    path, "cannot be opened", f"a link to {shown(os.readlink(path))}, which is not there"
                )
            else:
                yield self._unusable(path, "not a regular file", "a pipe, a socket or a device")

    def _folder(self, path: Path) -> Iterator[Entry]:
        real = path.resolve()
        if real == self.without:
            return
        found = path.stat()
        inside = path.is_symlink() and real.is_relative_to(self.real_root)
        if inside or (found.st_dev, found.st_ino) in self._visited:
            yield self._unusable(path, "folder already read", f"it is {shown(real)}, which is read elsewhere")
            return
        yield from self.entries(path)

    def _file(self, path: Path, same: _SameStem) -> Iterator[Entry]:
        name = path.name
        if name in same.pictures:
            yield self._sample(path, same)
        elif name in same.captions.values():
            if not same.pictures:
                yield self._unusable(path, "missing picture", "a caption without a picture of its name")
        elif ending(name) in CAPTIONS:
            yield self._unusable(
                path, "missing picture", f"a second caption beside {shown(same.captions[ending(name)])}"
            )
        else:
            yield self._unusable(path, "not a picture", "its ending is none of a picture, and no caption is beside it")

    def _sample(self, path: Path, same: _SameStem) -> Entry:
        relative = path.relative_to(self.root)
        entry = Entry(shown(relative), str(relative.parent / _stem(path.name)), path, ())
        try:
            beside = {
                suffix: clean(decode_text(read_file(path.with_name(name), TEXT_BYTES, "cannot be opened"))).encode()
                for suffix, name in same.captions.items()
            }
            entry.captions, entry.record = captions_of({ending(path.name): b"", **beside})
            if text_repaired(beside):
                entry.notes.append(("repaired text", REPAIRED_TEXT))
        except SampleError as error:
            entry.problem = error
        if len(same.pictures) > 1 and same.captions:
            detail = f"{', '.join(map(shown, same.pictures))} share {', '.join(map(shown, same.captions.values()))}"
            entry.notes.append(("caption shared by several pictures", detail))
        return entry

    def _unusable(self, path: Path, reason: Reason, detail: str) -> Entry:
        return unusable(shown(path.relative_to(self.root)), reason, detail)


def _group(names: list[str]) -> dict[str, _SameStem]:
    groups: dict[str, _SameStem] = {}
    for name in sorted(names, key=lambda name: (name != name.lower(), name)):  # "a.txt" before "a.TXT"
        same, kind = groups.setdefault(_stem(name), _SameStem()), ending(name)
        if kind in ENDINGS:
            same.pictures.append(name)
        elif kind in CAPTIONS:
            same.captions.setdefault(kind, name)
        else:
            same.others.append(name)
    for same in groups.values():
        if same.captions and not same.pictures:
            same.pictures, same.others = same.others, []
        same.pictures.sort()
    return groups


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _is_folder(thing: "os.DirEntry[str]") -> bool:
    try:
        return thing.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(thing: "os.DirEntry[str]") -> bool:
    try:
        return thing.is_file()
    except OSError:
        return False
