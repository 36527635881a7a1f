"""Pictures made elsewhere, by diffusers or behind an API: DIR/<id>.<png|jpg|webp>, or the same in category folders."""

from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError
from eval.inspection import Inspection, inspect
from eval.layout import Faults, Item, describe, pictures_in
from eval.processes import Processes

MISSING, UNREADABLE = "drawn pictures missing", "drawn pictures unreadable"


def find(folder: Path, items: Sequence[Item]) -> dict[str, Path]:
    """id -> picture, of the items that have one. Raises InputError if there is no folder, or an id has several."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, expected one with a picture <id>.png for every prompt: give another")
    categories = sorted({item.category for item in items})
    found: dict[tuple[str, str], list[Path]] = {}
    for category in ("", *categories):
        if (folder / category).is_dir():
            for file in pictures_in(folder / category):
                found.setdefault((category, file.stem), []).append(file)
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
) -> tuple[dict[str, Path], Inspection, Faults]:
    """The readable pictures of a folder by id, what was found out about them, and the ids that have none.

    notes: where what was found out is kept. Raises InputError that names ids without a picture that can be read,
    unless `allow_missing`; and in any case if no id has one.
    """
    pictures = find(folder, items)
    there = [item for item in items if item.key in pictures]
    faults: Faults = {}
    if len(there) < len(items):
        faults[MISSING] = [item.place for item in items if item.key not in pictures]
    if not there:
        raise InputError(
            f"{folder} has no picture for any of {len(items)} prompts, expected <id>.png, .jpg or .webp, the first "
            f"{items[0].key}.png: give the folder that they are in"
        )
    inspection = inspect(
        [item.key for item in there], [pictures[item.key] for item in there], notes, processes, "drawn"
    )
    unreadable = [there[row] for row in inspection.unreadable]
    if unreadable:
        faults[UNREADABLE] = [item.place for item in unreadable]
    if faults and not allow_missing:
        raise InputError(
            f"{folder} has {describe(faults)}: make them, or leave these prompts out and have them counted with "
            "--allow-missing"
        )
    for item in unreadable:
        del pictures[item.key]
    return pictures, inspection, faults


def common_size(inspection: Inspection) -> tuple[int, int] | None:
    """(H, W) of all readable pictures, None if they differ."""
    sizes = {size for size in inspection.sizes if size != (0, 0)}
    return sizes.pop() if len(sizes) == 1 else None
