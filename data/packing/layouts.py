"""Data sets in the layouts of the Hugging Face hub, read as they lie on the disk, without the library `datasets`.

    imagefolder   pictures, and metadata.csv, .jsonl or .parquet with a column file_name, above or in folders of splits
    tables        parquet files, as the hub keeps them: data/train-00000-of-00002.parquet
    dataset       what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote: Arrow streams beside state.json

Where one has several splits, train is taken and the others are named as left out, unless one is asked for.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.data.errors import InputError
from star.data.files import read_json
from star.data.packing.entry import Entry, shown, unusable
from star.data.packing.folders import folder_entries
from star.data.packing.tables import table_entries

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
EVERYTHING = "all"  # as the name of a split
# Words between separators that tell the split of a file, as the hub's own rules have them.
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns of pictures and captions; None: the usual ones, see tables.py."""

    image: str | None = None
    caption: str | None = None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    one = (folder / STATE).is_file() and (folder / INFO).is_file()
    return one or (folder / SPLITS).is_file()


def metadata_in(folder: Path) -> list[Path]:
    """The metadata of an imagefolder: in the folder itself, or in the folders of its splits; one of each place."""
    places = (folder, *_folders(folder))
    found = [[place / name for name in METADATA if (place / name).is_file()] for place in places]
    for several in found:
        if len(several) > 1:
            raise InputError(
                f"{several[0].parent} holds {several[0].name} as well as {several[1].name}, expected one of them: "
                "remove the other"
            )
    return [several[0] for several in found if several]


def parquet_in(folder: Path) -> list[Path]:
    """Parquet files in a folder and in those right below it, in the order of their paths."""
    places = (folder, *_folders(folder))
    return sorted(
        path for place in places for path in place.glob("*.parquet") if path.is_file() and not path.name.startswith(".")
    )


def split_of(path: str) -> str:
    """train, validation or test, as a word of a path tells; "" if none does."""
    words = set(re.split(r"[-._ /0-9\[\]]+", os.path.splitext(path)[0].lower()))
    return next((split for split, names in WORDS.items() if words & set(names)), "")


def chosen(splits: Mapping[str, Any], wanted: str | None, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the splits to read, and of those left out. Raises InputError for one that is not there."""
    if wanted not in (None, EVERYTHING, *splits):
        names = ", ".join(name or "train" for name in splits)
        raise InputError(f"{folder} has no split {wanted!r} but {names}: choose one of them, or all")
    if wanted is None and {"train", ""} & splits.keys():
        read = [name for name in splits if name in ("train", "")]
    else:
        read = [name for name in splits if wanted in (None, EVERYTHING, name)]
    return read, [name for name in splits if name not in read]


def imagefolder_entries(folder: Path, columns: Columns, split: str | None, without: Path | None) -> Iterator[Entry]:
    """What the metadata describes; then, as of any folder, what lies beside it. Raises InputError, see metadata_in."""
    found = metadata_in(folder)
    if not found:
        raise InputError(f"{folder} has no {' or '.join(METADATA)}, expected one with a column {FILE_NAME}: add it")
    if found[0].parent == folder:
        read, left = found, list[Path]()
        if split not in (None, EVERYTHING):
            raise InputError(f"the split {split} was asked for of {folder}, whose metadata is of all: give none")
    else:
        by_split: dict[str, list[Path]] = {}
        for path in found:
            by_split.setdefault(split_of(path.parent.name), []).append(path)
        names, others = chosen(by_split, split, folder)
        read = [path for name in names for path in by_split[name]]
        left = [path.parent for name in others for path in by_split[name]]
    described = {path.absolute() for path in found}
    for path in read:
        for entry in table_entries(path, columns.image or FILE_NAME, columns.caption):
            if isinstance(entry.picture, Path):
                described.add(Path(os.path.abspath(entry.picture)))
            yield _placed(entry, path, folder)
    yield from (_left_out(path.name) for path in left)
    for entry in folder_entries(folder, without):
        path = entry.picture if isinstance(entry.picture, Path) else folder / entry.origin
        path = Path(os.path.abspath(path))
        if path not in described and not any(path.is_relative_to(other.absolute()) for other in left):
            yield entry


def parquet_entries(folder: Path, columns: Columns, split: str | None) -> Iterator[Entry]:
    """The rows of all parquet files of a split. Raises InputError if there are none."""
    by_split: dict[str, list[Path]] = {}
    for path in parquet_in(folder):
        by_split.setdefault(split_of(path.relative_to(folder).as_posix()), []).append(path)
    if not by_split:
        raise InputError(f"{folder} holds no parquet file, expected some in it or right below: give another folder")
    names, others = chosen(by_split, split, folder)
    for name in names:
        for path in by_split[name]:
            for entry in table_entries(path, columns.image, columns.caption):
                yield _placed(entry, path, folder)
    yield from (_left_out(name) for name in others)


def saved_entries(folder: Path, columns: Columns, split: str | None) -> Iterator[Entry]:
    """The rows of a data set on the disk. Raises InputError if it is damaged or was saved as a choice of rows."""
    if not (folder / SPLITS).is_file():
        if split not in (None, EVERYTHING):
            raise InputError(f"the split {split} was asked for of {folder}, which holds one data set: give none")
        yield from _saved(folder, folder, columns)
        return
    splits = _strings(read_json(folder / SPLITS, "the list of splits").get("splits"), folder / SPLITS)
    names, others = chosen(dict.fromkeys(splits), split, folder)
    for name in names:
        yield from _saved(folder / name, folder, columns)
    yield from (_left_out(name) for name in others)


def _saved(folder: Path, root: Path, columns: Columns) -> Iterator[Entry]:
    state = read_json(folder / STATE, "the description of a data set")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(f"{folder} is a choice of rows of its tables, expected whole ones: save it anew with datasets")
    files = state.get("_data_files")
    files = [file.get("filename") if isinstance(file, dict) else file for file in files or ()]
    for name in _strings(files, folder / STATE):
        for entry in table_entries(folder / name, columns.image, columns.caption):
            yield _placed(entry, folder / name, root)


def _strings(names: Any, where: Path) -> list[str]:
    """Names of files or folders beside a list, no paths. Raises InputError for anything else."""
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        raise InputError(f"{where} does not list what it describes: save the data set anew")
    if wrong := [name for name in names if Path(name).name != name]:
        raise InputError(f"{where} names {wrong[0]!r}, expected a name beside it: save the data set anew")
    return names


def _placed(entry: Entry, table: Path, root: Path) -> Entry:
    """With its table in what is told of it."""
    entry.origin = f"{shown(table.relative_to(root))}: {entry.origin}"
    return entry


def _left_out(name: str) -> Entry:
    return unusable(shown(name), "another split", "only train was taken, or what was asked for; --split names another")


def _folders(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror or error}); give a folder you can read.") from error
    return sorted(found)
