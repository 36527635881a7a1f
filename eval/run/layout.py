"""The MJHQ-30k layout as a benchmark: the prompts of meta_data.json (see `star.data.mjhq`), each with its reference
picture.

It may be a folder, a zip, or a zip beside its meta_data.json, as the benchmark is published; pictures are read from the
zip where they lie. What is wrong with a layout is found before anything is drawn, and either refused or left out, by
id. Hidden files, and folders whose names begin with a dot or with "__", are passed over.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import TypeVar, overload

from star.data.errors import InputError
from star.data.files import READ_ERRORS
from star.data.formats import is_picture
from star.data.mjhq import META_NAME, Meta, MetaEntry, pictures_by_id, read_meta
from star.eval.run.record import MAX_PROMPT, OVERALL

SHOWN = 3  # of the ids behind a fault
MAX_DIRECTORY = 16 * 2**20  # bytes of a zip's list of files; that of 30,000 pictures has some 3 million
JOINED = "prompts, line breaks joined"  # as something that was converted

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
    subject: str = ""  # what the picture shows, and how, where the benchmark says so
    style: str = ""

    @property
    def picture(self) -> Traversable:
        """The reference picture."""
        return self.folder.joinpath(on_disk(self.file) if isinstance(self.folder, Path) else self.file)

    @property
    def place(self) -> str:
        """As people find it: category/id."""
        return f"{self.category}/{self.key}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A layout that was read: its sound items in the order of keys, and what is wrong with the others."""

    name: str  # of the folder, or of the zip without its ending
    prompts: str  # digest of all prompts, those with faulty pictures included
    items: list[Item]
    faults: Faults = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)  # "category/id" of prompts whose line breaks became spaces


def survey(place: str | Path) -> Layout:
    """Reads a folder or a zip, without opening the pictures.

    Raises InputError if meta_data.json is missing, damaged or without any sound entry; all else becomes a fault.
    """
    place = Path(place)
    path, folders = _open(place)
    meta, prompts = read_meta(path), hashlib.sha256()
    entries = [
        *meta.entries,
        *(MetaEntry(fault.id, fault.prompt, fault.category) for fault in meta.faults),
    ]
    for key, prompt, category, subject, style in sorted(entries):
        _add(prompts, key, category, prompt, subject, style)
    faults: Faults = {}
    for key, reason, category, _ in sorted(meta.faults):
        faults.setdefault(reason, []).append(f"{category}/{key}" if category else key)
    items: list[Item] = []
    for entry in sorted(meta.entries):
        found = folders[entry.category][1].get(entry.id, []) if entry.category in folders else []
        if wrong := _fault(entry, found, folders):
            faults.setdefault(wrong, []).append(f"{entry.category}/{entry.id}")
        else:
            folder = folders[entry.category][0]
            items.append(
                Item(entry.id, entry.category, entry.prompt, folder, found[0], subject=entry.subject, style=entry.style)
            )
    faults.update(_unclaimed(meta, folders))
    if not items:
        raise InputError(f"{place} has no prompt with a picture ({describe(faults)}): get the benchmark again")
    name = place.resolve().stem if place.is_file() else place.resolve().name
    joined, categories = set(meta.joined), {entry.id: entry.category for entry in meta.entries}
    return Layout(
        name=as_text(name),
        prompts=prompts.hexdigest(),
        items=items,
        faults=faults,
        joined=[f"{categories[key]}/{key}" for key in sorted(joined)],
    )


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
    described = []
    for reason, names in faults.items():
        first = ", the first" if len(names) > SHOWN else ":"
        described.append(f"{len(names)} {reason}{first} {', '.join(names[:SHOWN])}")
    return "; ".join(described)


Thing = TypeVar("Thing")
File = TypeVar("File", bound=Traversable)


class LazyFiles(Sequence[File]):
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
    """sha256 of ids, categories and prompts, and of subjects and styles where a benchmark has them."""
    total = hashlib.sha256()
    for item in items:
        _add(total, item.key, item.category, item.prompt, item.subject, item.style)
    return total.hexdigest()


def pictures_in(folder: Path) -> Iterator[str]:
    """Names of the pictures of a folder that are not hidden, in their order, as text. Raises OSError."""
    with os.scandir(folder) as entries:
        names = [as_text(entry.name) for entry in entries]
    return (name for name in sorted(names) if is_picture(name))


def as_text(name: str) -> str:
    """The name of a file, which is UTF-8 on the disk whatever this locale makes of it."""
    return os.fsencode(name).decode("utf-8", "replace")


def on_disk(name: str) -> str:
    """The opposite of `as_text`: what this locale calls the file of that name."""
    return os.fsdecode(name.encode("utf-8"))


def _add(total: "hashlib._Hash", key: str, category: str, prompt: str, subject: str, style: str) -> None:
    more = {name: value for name, value in (("subject", subject), ("style", style)) if value}
    total.update(json.dumps((key, category, prompt, *([more] if more else []))).encode() + b"\n")


def _fault(entry: MetaEntry, pictures: Sequence[str], folders: Folders) -> str | None:
    if entry.category == OVERALL:
        return f"entries of a category {OVERALL!r}, as tables call all of them"
    if len(entry.prompt) > MAX_PROMPT:
        return f"prompts of more than {MAX_PROMPT:,} characters"
    if entry.category not in folders:
        return f"pictures missing with the whole folder {entry.category}"
    if not folders[entry.category][1]:
        return f"pictures missing in the empty folder {entry.category}"
    if not pictures:
        return "pictures missing"
    return "ids with several pictures" if len(pictures) > 1 else None


def _unclaimed(meta: Meta, folders: Folders) -> Faults:
    """Pictures and folders that no entry asks for."""
    claimed = {(entry.category, entry.id) for entry in meta.entries} | {
        (fault.category, fault.id) for fault in meta.faults
    }
    asked_for = {category for category, _ in claimed}
    stray = [
        f"{category}/{key}"
        for category, (_, found) in sorted(folders.items())
        for key in sorted(found)
        if (category, key) not in claimed
    ]
    empty = sorted(name for name, (_, found) in folders.items() if not found and name not in asked_for)
    faults = {"pictures without a prompt": stray, "empty category folders without prompts": empty}
    return {reason: places for reason, places in faults.items() if places}


def _open(place: Path) -> tuple[Traversable, Folders]:
    """meta_data.json and the pictures of every category folder."""
    if place.is_file():
        return _open_zip(place, place.parent / META_NAME)
    try:
        here = [path for path in sorted(place.iterdir()) if not _passed_over(path.name)]
    except OSError:
        here = []  # the missing meta_data.json is what will be reported
    folders: Folders = {}
    for path in here:
        if path.is_dir():
            try:
                folders[as_text(path.name)] = (path, pictures_by_id(pictures_in(path)))
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}): give a folder that can") from error
    archives = [path for path in here if path.suffix.lower() == ".zip" and path.is_file()]
    if not folders and len(archives) == 1:
        return _open_zip(archives[0], place / META_NAME)
    return place / META_NAME, folders


class _Bounded(io.BufferedReader):
    """A zip of which no list of files is read that is larger than any benchmark's."""

    def read(self, count: int | None = -1, /) -> bytes:
        wanted = MAX_DIRECTORY + 1 if count is None or count < 0 else min(count, MAX_DIRECTORY + 1)
        if len(data := super().read(wanted)) > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of files is larger than {MAX_DIRECTORY >> 20} MiB")
        return data


def _open_zip(archive: Path, beside: Path) -> tuple[Traversable, Folders]:
    try:
        with _Bounded(io.FileIO(archive)) as file:
            zipfile.ZipFile(file).close()  # its list of files is sound
        whole = zipfile.ZipFile(archive)
    except (*READ_ERRORS, ValueError) as error:  # ValueError: names or places that are none
        raise InputError(
            f"{archive} cannot be read as a zip ({error}); give a folder or zip in the MJHQ-30k layout"
        ) from error
    root = zipfile.Path(whole)
    paths = {name: path for name in whole.namelist() if not any(map(_passed_over, (path := PurePosixPath(name)).parts))}
    inside = sorted((path for path in paths.values() if path.name == META_NAME), key=lambda path: len(path.parts))
    meta: Traversable = beside
    if inside:
        top, meta = inside[0].parent, root.joinpath(str(inside[0]))
    else:  # the category folders are those that pictures lie in, nearest to the top
        holders = {path.parent for path in paths.values() if is_picture(path.name)}
        top = min(holders, key=lambda path: len(path.parts), default=PurePosixPath("any/one")).parent
    folders: Folders = {}
    names: dict[PurePosixPath, list[str]] = {}
    for name, path in paths.items():
        if name.endswith("/") and path.parent == top:
            names.setdefault(path, [])
        elif is_picture(path.name) and path.parent.parent == top and path.parent != top:
            names.setdefault(path.parent, []).append(path.name)
    for path, found in names.items():
        folders[path.name] = (root.joinpath(str(path)), pictures_by_id(found))
    return meta, folders


def _passed_over(name: str) -> bool:
    return name.startswith((".", "__"))
