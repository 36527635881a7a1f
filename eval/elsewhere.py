"""Pictures made elsewhere, by diffusers or behind an API: DIR/<id>.<png|jpg|webp>, or the same in category folders.

They are scored where they lie and as they are; the format they were written in is part of the protocol, because a JPEG
moves the distances.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.errors import InputError
from eval.inspection import Seen, inspect
from eval.layout import Faults, Item, describe, pictures_in
from eval.processes import Processes

FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
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
) -> tuple[dict[str, Path], dict[str, Seen], Faults]:
    """The readable pictures of a folder by id, what was found out about them, and the ids that have none.

    notes: where what was found out is kept. Raises InputError that names ids without a picture that can be read,
    unless `allow_missing`; and in any case if no id has one.
    """
    pictures = find(folder, items)
    there = [item.key for item in items if item.key in pictures]
    seen = inspect(there, [pictures[key] for key in there], notes, processes, "drawn") if there else {}
    faults = {
        reason: places
        for reason, places in (
            (MISSING, [item.place for item in items if item.key not in pictures]),
            (UNREADABLE, [item.place for item in items if item.key in pictures and item.key not in seen]),
        )
        if places
    }
    if not seen:
        raise InputError(
            f"{folder} has {describe(faults)}, expected <id>.png, .jpg or .webp for each of {len(items)} prompts: give "
            "the folder that they are in"
        )
    if faults and not allow_missing:
        raise InputError(
            f"{folder} has {describe(faults)}: make them, or leave these prompts out and have them counted with "
            "--allow-missing"
        )
    return {key: pictures[key] for key in seen}, seen, faults


def common_size(seen: Mapping[str, Seen]) -> tuple[int, int] | None:
    """(H, W) of all pictures, None if they differ."""
    sizes = {one.size for one in seen.values()}
    return sizes.pop() if len(sizes) == 1 else None


def formats(pictures: Mapping[str, Path]) -> str:
    """ "png", or "jpeg and png" where there are several."""
    return " and ".join(sorted({FORMATS[file.suffix.lower()] for file in pictures.values()}))


def link(pictures: Mapping[str, Path], folder: Path) -> None:
    """Links <id>.png to the picture of that id, whatever its format, in place of what is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, file in pictures.items():
            place, staging = folder / f"{key}.png", folder / f".{key}.part"
            staging.unlink(missing_ok=True)
            staging.symlink_to(file.resolve())
            staging.replace(place)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): give another --out") from error
