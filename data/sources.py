"""What `pack` can read: each source is an iterator of entries, a picture and what is said about it.

A folder of pictures with captions beside them, a table (CSV, TSV, JSONL, parquet), existing shards, or the layout of
MJHQ-30k (meta_data.json and one folder per category).
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from data.errors import InputError
from data.listing import list_shards, names_shard
from data.remote import is_url
from data.tars import (
    IMAGE_EXTENSIONS,
    Fault,
    SampleError,
    captions_of,
    image_bytes,
    read_shard,
)

Kind = Literal["folder", "table", "shards", "mjhq"]
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(slots=True)
class Entry:
    """One sample to be: where it came from, its wished-for key, its picture (bytes or a file), and the rest."""

    origin: str
    name: str
    picture: bytes | Path
    captions: tuple[str, ...]
    record: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, bytes] = field(default_factory=dict)
    problem: SampleError | None = None


def kind_of(source: str) -> Kind:
    """Which kind of source this is. Raises InputError if it is none."""
    path = Path(source).expanduser()
    if is_url(source) or names_shard(path.name):
        return "shards"
    if path.is_dir():
        if (path / "meta_data.json").is_file():
            return "mjhq"
        return "shards" if any(names_shard(entry.name) for entry in path.iterdir()) else "folder"
    if path.suffix.lower() in TABLES and path.is_file():
        return "table"
    raise InputError(
        f"Cannot pack {source!r}; give a folder of pictures with captions, a {', '.join(TABLES)} table, "
        "existing .tar shards, or a folder with meta_data.json."
    )


def entries(
    source: str, kind: Kind, faults: list[Fault], *, image_column: str = "image", caption_column: str = "caption"
) -> Iterator[Entry]:
    """All entries of a source in its own order; faults of whole files are added to `faults`."""
    path = Path(source).expanduser()
    if kind == "folder":
        return _folder(path)
    if kind == "mjhq":
        return _mjhq(path)
    if kind == "table":
        return _table(path, image_column, caption_column)
    if kind == "shards":
        return _shards(source, faults)
    raise InputError(f"Unknown kind of source {kind!r}; choose one of {', '.join(get_args(Kind))}.")


def _folder(folder: Path) -> Iterator[Entry]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of pictures with captions beside them.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS or not path.is_file():
            continue
        relative = path.relative_to(folder)
        beside = {
            suffix: file.read_bytes()
            for suffix in ("json", "txt")
            if (file := path.with_suffix(f".{suffix}")).is_file()
        }
        entry = Entry(str(relative), str(relative.with_suffix("")), path, ())
        try:
            entry.captions, entry.record = captions_of({path.suffix.lstrip("."): b"", **beside})
        except SampleError as error:
            entry.problem = error
        yield entry


def _mjhq(folder: Path) -> Iterator[Entry]:
    path = folder / "meta_data.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = [(name, str(row["category"]), row.get("prompt")) for name, row in table.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a MJHQ-30k table ({type(error).__name__}: {error}); expected id -> category and prompt."
        ) from error
    for name, category, prompt in rows:
        candidates = (folder / category / f"{name}.{extension}" for extension in IMAGE_EXTENSIONS)
        picture = next((file for file in candidates if file.is_file()), folder / category / f"{name}.jpg")
        entry = Entry(f"{category}/{name}", name, picture, _texts(prompt), {"category": category})
        yield _judged(entry, prompt)


def _table(path: Path, image_column: str, caption_column: str) -> Iterator[Entry]:
    checked = False
    for number, row in enumerate(_rows(path), 1):
        if not checked and (missing := {image_column, caption_column} - set(row)):
            raise InputError(
                f"{path} has no column {', '.join(sorted(missing))} but {', '.join(map(str, row))}; "
                "name the columns of the picture's path and of the caption."
            )
        checked = True
        value, said = row.get(image_column), row.get(caption_column)
        rest = {name: item for name, item in row.items() if name not in (image_column, caption_column)}
        picture: bytes | Path
        name = f"{number:08d}"
        if isinstance(value, Mapping):  # as the datasets library stores pictures in parquet: {"bytes", "path"}
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            picture = value
        elif isinstance(value, str) and value:
            picture = path.parent / Path(value).expanduser()
            name = str(Path(value).with_suffix("")) if not Path(value).is_absolute() else Path(value).stem
        else:
            entry = Entry(f"row {number}", name, b"", ())
            entry.problem = SampleError("no picture", f"{image_column} is {value!r}")
            yield entry
            continue
        yield _judged(Entry(f"row {number}", name, picture, _texts(said), rest), said)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix in (".csv", ".tsv"):
                yield from csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t", restkey="unnamed")
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is a {type(row).__name__}, expected an object")
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"Cannot read the table {path} ({error}); give a UTF-8 file of one row per picture."
        ) from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(
            f"Reading {path} needs pyarrow, which is not installed; run `pip install pyarrow`, or give CSV or JSONL."
        ) from error
    try:
        with ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"Cannot read the table {path} ({error}); give a whole parquet file.") from error


def _shards(source: str, faults: list[Fault]) -> Iterator[Entry]:
    for shard in list_shards([source]):
        for group in read_shard(shard, faults):
            members: dict[str, Any] = dict(group.members)
            entry = Entry(shard, group.key, b"", ())
            try:
                extension, entry.picture = image_bytes(members)
                entry.captions, entry.record = captions_of(members)
                entry.extra = {name: data for name, data in members.items() if name not in (extension, "json", "txt")}
                for data in entry.extra.values():
                    if isinstance(data, SampleError):
                        raise data
            except SampleError as error:
                entry.problem = error
            yield entry


def _texts(said: Any) -> tuple[str, ...]:
    several: Iterable[Any] = said if isinstance(said, list | tuple) else (said,)
    return tuple(dict.fromkeys(text.strip() for text in several if isinstance(text, str) and text.strip()))


def _judged(entry: Entry, said: Any) -> Entry:
    if not entry.captions:
        blank = isinstance(said, str) or (
            isinstance(said, list | tuple) and any(isinstance(text, str) for text in said)
        )
        entry.problem = SampleError("empty caption" if blank else "missing caption", f"the caption is {said!r}")
    return entry
