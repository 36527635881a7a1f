"""The MJHQ-30k layout: meta_data.json (id -> category and prompt) beside category folders with <id>.<jpg|png|webp>.

Li et al. 2024 (Playground v2.5), §3; any folder of the same layout is read alike.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a benchmark and its reference picture."""

    key: str
    category: str
    prompt: str
    picture: Path


def read_layout(folder: str | Path) -> list[Item]:
    """All items, ordered by key.

    Raises InputError if meta_data.json is missing or damaged, an entry lacks its category or prompt, or a reference
    picture is not where it should be; the message names the first few.
    """
    folder = Path(folder)
    meta = folder / "meta_data.json"
    try:
        entries = json.loads(meta.read_text())
    except OSError as error:
        raise InputError(
            f"{meta} cannot be read ({error.strerror}); give a folder in the MJHQ-30k layout, meta_data.json beside "
            "category folders"
        ) from error
    except ValueError as error:
        raise InputError(f"{meta} is no JSON ({error}); get the benchmark again") from error
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{meta} holds no entries; expected an object of id -> category and prompt")
    items, missing = [], []
    for key, entry in sorted(entries.items()):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("category", "prompt")):
            raise InputError(f"entry {key!r} of {meta} lacks a category or a prompt; correct it")
        stem = folder / entry["category"] / key
        picture = next((p for e in EXTENSIONS if (p := stem.with_name(key + e)).is_file()), None)
        if picture is None:
            missing.append(f"{entry['category']}/{key}")
        else:
            items.append(Item(key, entry["category"], entry["prompt"], picture))
    if missing:
        raise InputError(
            f"{len(missing)} pictures named in {meta} are missing, the first {', '.join(missing[:3])}; get them, or "
            "take their entries out"
        )
    return items


Thing = TypeVar("Thing")


def spread(items: Sequence[Thing], count: int) -> list[Thing]:
    """`count` items evenly spread over the order of keys (which are hashes), all of them if there are fewer."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
