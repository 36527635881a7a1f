"""External images, made by another program or behind an API: DIR/<id>.<png|jpg|...>, or the same in category folders.

They are scored where they lie and as they are; the format they were written in is part of the protocol, because a JPEG
moves the distances.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from star.data.errors import InputError
from star.data.formats import ending
from star.data.mjhq import pictures_by_id
from star.eval.run.audit import FileInfo, audit
from star.eval.run.layout import Faults, Item, LazyFiles, describe, on_disk, pictures_in
from star.eval.run.processes import Processes

SAME = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff"}  # endings of one format
MISSING, UNREADABLE = "drawn pictures missing", "drawn pictures unreadable"


def find(folder: Path, items: Sequence[Item]) -> dict[str, str]:
    """id -> its picture as seen from the folder, of the items that have one.

    Raises InputError if there is no folder, or an id has several.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, expected one with a picture <id>.png for every prompt: give another")
    categories = sorted({item.category for item in items})
    found: dict[tuple[str, str], list[str]] = {}
    for category in ("", *categories):
        place = folder / on_disk(category)
        if place.is_dir():
            try:
                names = pictures_by_id(pictures_in(place))
            except OSError as error:
                raise InputError(f"{place} cannot be read ({error.strerror}): give a folder that can") from error
            for key, files in names.items():
                found[category, key] = [f"{category}/{name}" if category else name for name in files]
    chosen, ambiguous = {}, []
    for item in items:
        pictures = [file for category in ("", item.category) for file in found.get((category, item.key), [])]
        if len(pictures) > 1:
            ambiguous.append(item.place)
        elif pictures:
            chosen[item.key] = pictures[0]
    if ambiguous:
        raise InputError(f"{folder} has {describe({'ids with several pictures': ambiguous})}: leave one of each there")
    return chosen


def gather(
    folder: Path, items: Sequence[Item], notes: Path, processes: Processes, *, allow_missing: bool
) -> tuple[dict[str, str], Mapping[str, FileInfo], Faults]:
    """The readable pictures of a folder, as `find` does, what the audit found, and the ids that have none.

    notes: where that is kept. Raises InputError that names ids without a picture that can be read,
    unless `allow_missing`; and in any case if no id has one.
    """
    pictures = find(folder, items)
    there = [item.key for item in items if item.key in pictures]
    files = LazyFiles(there, lambda key: folder / on_disk(pictures[key]))
    infos: Mapping[str, FileInfo] = audit(there, files, notes, processes, "drawn") if there else {}
    faults = {
        reason: places
        for reason, places in (
            (MISSING, [item.place for item in items if item.key not in pictures]),
            (UNREADABLE, [item.place for item in items if item.key in pictures and item.key not in infos]),
        )
        if places
    }
    if not infos:
        raise InputError(
            f"{folder} has {describe(faults)}, expected a picture <id>.png for each of {len(items)} prompts: give "
            "the folder that they are in"
        )
    if faults and not allow_missing:
        raise InputError(
            f"{folder} has {describe(faults)}: make them, or leave these prompts out and have them counted with "
            "--allow-missing"
        )
    return {key: pictures[key] for key in infos}, infos, faults


def common_size(infos: Mapping[str, FileInfo]) -> tuple[int, int] | None:
    """(H, W) of all pictures, None if they differ."""
    sizes = {infos[key].size for key in infos}
    return sizes.pop() if len(sizes) == 1 else None


def formats(pictures: Mapping[str, str]) -> str:
    """ "png", or "jpeg and png" where there are several."""
    endings = {ending(PurePosixPath(file).name) for file in pictures.values()}
    return " and ".join(sorted({SAME.get(one, one) for one in endings}))


def link(place: Path, pictures: Mapping[str, str], folder: Path) -> None:
    """Puts the picture of each id into `folder` as <id>.png, whatever its format, in place of what is there.

    As a second name of the same file, or as a copy where that cannot be: a record shows what lies in its own folder,
    never what a symbolic link leads to. Raises InputError if the place cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, file in pictures.items():
            source, target = (place / on_disk(file)).resolve(), folder / on_disk(f"{key}.png")
            if target.exists() and not target.is_symlink() and _same(source, target):
                continue
            staging = folder / on_disk(f".{key}.part")
            staging.unlink(missing_ok=True)
            try:
                os.link(source, staging)
            except OSError:  # another disk, or one without second names
                shutil.copy2(source, staging)
            staging.replace(target)
            staging.unlink(missing_ok=True)  # it stays where both are names of one file
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): make room, or give another --out") from error


def _same(source: Path, target: Path) -> bool:
    """Whether a file is the other, or a copy of it as it is."""
    one, other = source.stat(), target.stat()
    return os.path.samestat(one, other) or (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
