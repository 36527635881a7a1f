"""The MJHQ-30k layout: meta_data.json (id -> category and prompt) beside category folders with <id>.<jpg|png|webp>.

Li et al. 2024 (Playground v2.5), §3; any folder of the same layout is read alike. It may be a folder, a zip, or a zip
beside its meta_data.json, as the benchmark is published; pictures are read from the zip where they lie.

What is wrong with a layout is found before anything is drawn, and either refused or left out, by id. Hidden files, and
folders whose names begin with a dot or with "__", are passed over.
"""

import hashlib
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, overload

from data.errors import InputError
from eval.record import OVERALL

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
META = "meta_data.json"
FILE_NAME = re.compile(r"[^./\\\0][^/\\\0]{0,199}")  # an id names the file of its drawn picture
SHOWN = 3  # of the ids behind a fault
READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: an encrypted zip

Folders = dict[str, tuple[Traversable, dict[str, list[str]]]]  # category -> its folder, id -> names of its pictures
Faults = dict[str, list[str]]  # what is wrong, in the plural -> "category/id" of each


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a benchmark and its reference picture, a file of a folder or of a zip."""

    key: str
    category: str
    prompt: str
    folder: Traversable  # shared by a category; a path of its own for every one of 30,000 pictures would take megabytes
    file: str

    @property
    def picture(self) -> Traversable:
        """The reference picture."""
        return self.folder.joinpath(self.file)

    @property
    def place(self) -> str:
        """What a person looks for: category/id."""
        return f"{self.category}/{self.key}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A layout that was read: its sound items in the order of keys, and what is wrong with the others."""

    name: str  # of the folder, or of the zip without its ending
    prompts: str  # digest of all prompts, those with faulty pictures included
    items: list[Item]
    faults: Faults = field(default_factory=dict)


def survey(place: str | Path) -> Layout:
    """Reads a folder or a zip, without opening the pictures.

    Raises InputError if meta_data.json is missing, damaged or without any sound entry; all else becomes a fault.
    """
    place = Path(place)
    meta, folders = _open(place)
    entries, prompts = _entries(meta, place), hashlib.sha256()
    faults: Faults = {}
    items: list[Item] = []
    for key in sorted(entries):
        category, prompt = entries[key][0]
        _add(prompts, key, category, prompt)
        pictures = folders[category][1].get(key, []) if category in folders else []
        if reason := _fault(key, category, len(entries[key]), pictures, folders):
            faults.setdefault(reason, []).append(f"{category}/{key}" if category else key)
        else:
            items.append(Item(key, category, prompt, folders[category][0], pictures[0]))
    found_in = {category: found for category, (_, found) in sorted(folders.items())}
    stray = [
        f"{category}/{key}"
        for category, found in found_in.items()
        for key in sorted(found)
        if all(claimed != category for claimed, _ in entries.get(key, ()))
    ]
    if stray:
        faults["pictures without a prompt"] = stray
    asked_for = {category for said in entries.values() for category, _ in said}
    if empty := sorted(category for category, found in found_in.items() if not found and category not in asked_for):
        faults["empty category folders without prompts"] = empty
    if not items:
        raise InputError(f"{place} has no prompt with a picture ({describe(faults)}): get the benchmark again")
    name = place.resolve().stem if place.is_file() else place.resolve().name
    return Layout(name=name, prompts=prompts.hexdigest(), items=items, faults=faults)


def read_layout(place: str | Path) -> list[Item]:
    """All items of a layout without faults, ordered by key. Raises InputError that names what is wrong."""
    layout = survey(place)
    refuse(layout.faults, place)
    return layout.items


def refuse(faults: Mapping[str, Sequence[str]], place: str | Path) -> None:
    """Raises InputError if there are any faults, with their number and the first few of each kind."""
    if faults:
        raise InputError(
            f"{place} has {describe(faults)}: correct it, or leave them out and have them counted with --skip-bad"
        )


def describe(faults: Mapping[str, Sequence[str]]) -> str:
    """ "2 pictures missing, the first a/1, a/7; 1 ids given twice, a/3"."""
    told = []
    for reason, names in faults.items():
        first = ", the first" if len(names) > SHOWN else ":"
        told.append(f"{len(names)} {reason}{first} {', '.join(names[:SHOWN])}")
    return "; ".join(told)


Thing = TypeVar("Thing")
File = TypeVar("File", bound=Traversable)


class Lazily(Sequence[File]):
    """Files of things, made when they are asked for: paths of 30,000 pictures would take tens of megabytes."""

    def __init__(self, things: Sequence[Thing], file_of: Callable[[Thing], File]) -> None:
        self._length = len(things)
        self._file = lambda index: file_of(things[index])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> File: ...
    @overload
    def __getitem__(self, index: slice) -> list[File]: ...
    def __getitem__(self, index: int | slice) -> File | list[File]:
        if isinstance(index, slice):
            return [self._file(one) for one in range(self._length)[index]]
        return self._file(index)


def spread(items: Sequence[Thing], count: int) -> list[Thing]:
    """`count` items evenly spread over the order of keys (which are hashes), all of them if there are fewer."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def prompts_digest(items: Iterable[Item]) -> str:
    """sha256 of ids, categories and prompts."""
    total = hashlib.sha256()
    for item in items:
        _add(total, item.key, item.category, item.prompt)
    return total.hexdigest()


def pictures_in(folder: Path) -> Iterator[str]:
    """Names of the picture files of a folder that are not hidden, in their order."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]
    return (name for name in sorted(names) if not name.startswith("."))


def _add(total: "hashlib._Hash", key: str, category: str, prompt: str) -> None:
    total.update(json.dumps((key, category, prompt)).encode() + b"\n")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands, with keys that are given twice."""


def _said(entry: Any) -> tuple[str, str]:
    """Category and prompt of an entry, ("", "") where it is not complete."""
    told = dict(entry) if isinstance(entry, _Pairs) else {}
    values = (told.get("category"), told.get("prompt"))
    category, prompt = (value if isinstance(value, str) else "" for value in values)
    category = sys.intern(category)  # a few strings, not one for every entry
    return (category, prompt) if isinstance(values[1], str) and category not in ("", OVERALL) else ("", "")


def _fault(key: str, category: str, times: int, pictures: Sequence[str], folders: Folders) -> str | None:
    if times > 1:
        return "ids given twice"
    if not category:
        return "entries without a category or a prompt"
    if not FILE_NAME.fullmatch(key):
        return "ids that cannot name a file"
    if category not in folders:
        return f"pictures missing with the whole folder {category}"
    if not folders[category][1]:
        return f"pictures missing in the empty folder {category}"
    if not pictures:
        return "pictures missing"
    if len(pictures) > 1:
        return "ids with several pictures"
    return None


def _entries(meta: Traversable, place: Path) -> dict[str, list[tuple[str, str]]]:
    """id -> category and prompt behind it, several where the id is given several times."""
    try:
        pairs = json.loads(meta.read_bytes(), object_pairs_hook=_Pairs)
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{meta} cannot be read ({reason}); give a folder or zip in the MJHQ-30k layout, {META} beside category "
            "folders"
        ) from error
    except ValueError as error:
        raise InputError(f"{meta} is no JSON ({error}); get the benchmark again") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise InputError(f"{meta} holds no entries; expected an object of id -> category and prompt")
    entries: dict[str, list[tuple[str, str]]] = {}
    pairs.reverse()
    while pairs:  # what was read is let go as it is understood
        key, value = pairs.pop()
        entries.setdefault(key, []).append(_said(value))
    return entries


def _open(place: Path) -> tuple[Traversable, Folders]:
    """meta_data.json and the pictures of every category folder."""
    if place.is_file():
        return _open_zip(place, place.parent / META)
    try:
        here = [path for path in sorted(place.iterdir()) if not _passed_over(path.name)]
    except OSError:
        here = []  # the missing meta_data.json is what will be told
    folders: Folders = {path.name: (path, {}) for path in here if path.is_dir()}
    archives = [path for path in here if path.suffix.lower() == ".zip"]
    if not folders and len(archives) == 1:
        return _open_zip(archives[0], place / META)
    for category, (_, found) in folders.items():
        for name in pictures_in(place / category):
            found.setdefault(PurePosixPath(name).stem, []).append(name)
    return place / META, folders


def _open_zip(archive: Path, beside: Path) -> tuple[Traversable, Folders]:
    try:
        whole = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{archive} cannot be read as a zip ({error}); give a folder or zip in the MJHQ-30k layout"
        ) from error
    root = zipfile.Path(whole)
    paths = {name: path for name in whole.namelist() if not any(map(_passed_over, (path := PurePosixPath(name)).parts))}
    inside = sorted((path for path in paths.values() if path.name == META), key=lambda path: len(path.parts))
    meta: Traversable = beside
    if inside:
        top, meta = inside[0].parent, root.joinpath(str(inside[0]))
    else:  # the category folders are those that pictures lie in, nearest to the top
        holders = {path.parent for path in paths.values() if path.suffix.lower() in EXTENSIONS}
        top = min(holders, key=lambda path: len(path.parts), default=PurePosixPath("any/one")).parent
    folders: Folders = {}
    for name, path in paths.items():
        if name.endswith("/") and path.parent == top:
            folders.setdefault(path.name, (root.joinpath(name), {}))
        elif path.suffix.lower() in EXTENSIONS and path.parent.parent == top and path.parent != top:
            _, found = folders.setdefault(path.parent.name, (root.joinpath(str(path.parent)), {}))
            found.setdefault(path.stem, []).append(path.name)
    return meta, folders


def _passed_over(name: str) -> bool:
    return name.startswith((".", "__"))
