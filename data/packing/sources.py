"""What `pack` can read: each source is an iterator of entries, a picture and what describes it.

A folder of pictures with captions beside them, a table (CSV, TSV, JSONL, parquet), existing shards, the layout of
MJHQ-30k (meta_data.json and one folder per category), or a data set of the Hugging Face hub, see layouts.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from star.data.captions import REPAIRED_TEXT, captions_of, text_repaired
from star.data.errors import InputError
from star.data.formats import is_picture
from star.data.mjhq import BAD_TEXT, FIELD_TWICE, INCOMPLETE, META_NAME, TWICE, find_picture, pictures_by_id, read_meta
from star.data.packing.entry import Entry, captions_in, shown, unusable
from star.data.packing.folders import folder_entries
from star.data.packing.layouts import (
    Columns,
    imagefolder_entries,
    is_saved,
    metadata_in,
    parquet_entries,
    parquet_in,
    saved_entries,
)
from star.data.packing.tables import ENDINGS, table_entries
from star.data.shards.faults import Fault, Reason, SampleError
from star.data.shards.listing import list_shards, names_shard
from star.data.shards.remote import is_url
from star.data.shards.tar import image_bytes, read_shard

Kind = Literal["folder", "table", "shards", "mjhq", "imagefolder", "tables", "dataset"]
REASONS: dict[str, Reason] = {  # of faults in meta_data.json
    BAD_TEXT: "broken text",
    FIELD_TWICE: "broken json",
    INCOMPLETE: "missing caption",
    TWICE: "duplicate key",
}


def kind_of(source: str) -> Kind:
    """Which kind of source this is. Raises InputError if it is none."""
    path = Path(os.path.expanduser(source))
    if is_url(source) or names_shard(path.name):
        return "shards"
    if os.path.isdir(path):  # os.path takes any name; Path raises for those that are too long
        if (path / META_NAME).is_file():
            return "mjhq"
        if is_saved(path):
            return "dataset"
        return _shards_or_folder(path)
    if path.suffix.lower() in ENDINGS and os.path.isfile(path):
        return "table"
    raise InputError(
        f"Cannot pack {source!r}; give a folder of pictures with captions, a {', '.join(ENDINGS)} table, "
        "existing .tar shards, a folder with meta_data.json, or a data set of the Hugging Face hub."
    )


def _shards_or_folder(path: Path) -> Kind:
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); give a folder you can read.") from error
    if not any(map(names_shard, names)):
        if metadata_in(path):
            return "imagefolder"
        return "tables" if parquet_in(path) and not any(map(is_picture, names)) else "folder"
    for name in sorted(filter(is_picture, names)):
        stem = name.rpartition(".")[0]
        if {f"{stem}.txt", f"{stem}.json"} & names:
            raise InputError(
                f"{path} holds shards as well as pictures with captions ({shown(name)}); say which are meant, shards "
                "or folder, as its kind."
            )
    return "shards"


def entries(
    source: str,
    kind: Kind,
    faults: list[Fault],
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    without: Path | None = None,
) -> Iterator[Entry]:
    """All entries of a source in its own order; faults of whole shards are added to `faults`.

    Columns that are not named are the usual ones, see tables.py; `split` is of a data set that has several, by default
    train where it has that, "all" reads them all.
    `without` is a folder that is passed over where pictures are looked for: the one that is written.
    """
    path, columns = Path(os.path.expanduser(source)), Columns(image_column, caption_column)
    if split is not None and kind not in ("imagefolder", "tables", "dataset"):
        raise InputError(f"the split {split} was asked for of {source}, which is a {kind} without splits: give none")
    if kind == "imagefolder":
        return imagefolder_entries(path, columns, split, without)
    if kind == "tables":
        return parquet_entries(path, columns, split)
    if kind == "dataset":
        return saved_entries(path, columns, split)
    if kind == "folder":
        return folder_entries(path, without)
    if kind == "mjhq":
        return _mjhq(path)
    if kind == "table":
        return table_entries(path, image_column, caption_column)
    if kind == "shards":
        return _shards(source, faults)
    raise InputError(f"Unknown kind of source {kind!r}; choose one of {', '.join(get_args(Kind))}.")


def _mjhq(folder: Path) -> Iterator[Entry]:
    meta = read_meta(folder / META_NAME)
    archives = sorted(path.name for path in folder.glob("*.zip"))
    if archives and not any(path.is_dir() for path in folder.iterdir()):
        raise InputError(
            f"The pictures of {folder} are still in {shown(archives[0])}; unpack it there, then pack again."
        )
    joined = set(meta.joined)
    claimed = {(fault.category, fault.id) for fault in meta.faults}
    for id, prompt, category, subject, style in meta.entries:
        claimed.add((category, id))
        said = {name: value for name, value in (("subject", subject), ("style", style)) if value}
        entry = Entry(f"{category}/{id}", id, b"", captions_in(prompt), {"category": category, **said})
        if id in joined:
            entry.notes.append(("line breaks replaced", "line breaks in its prompt became spaces"))
        try:
            picture = find_picture(folder, category, id)
        except InputError as error:
            entry.problem = SampleError("missing picture", str(error))
        else:
            entry.picture = picture or b""
            if picture is None:
                entry.problem = SampleError("missing picture", f"none named {id} in {shown(folder / category)}")
        yield entry
    for fault in meta.faults:
        place = f"{fault.category}/{fault.id}" if fault.category else fault.id
        yield unusable(place, REASONS.get(fault.reason, "missing picture"), f"one of the {fault.reason}")
    yield from _unlisted(folder, claimed)


def _unlisted(folder: Path, claimed: set[tuple[str, str]]) -> Iterator[Entry]:
    """Pictures of which meta_data.json says nothing."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        for id in pictures_by_id(path.name for path in place.iterdir()):
            if (place.name, id) not in claimed:
                yield unusable(shown(f"{place.name}/{id}"), "missing caption", f"{META_NAME} has no prompt for it")
    for name in sorted(path.name for path in folder.iterdir() if is_picture(path.name)):
        yield unusable(shown(name), "missing caption", "it is in none of the folders of categories")


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
                if text_repaired(members):
                    entry.notes.append(("repaired text", REPAIRED_TEXT))
            except SampleError as error:
                entry.problem = error
            yield entry
