"""The MJHQ-30k layout, read by one set of rules for packing and for benchmarks.

meta_data.json is an object of id -> {"category", "prompt"}; the picture of an id is <category>/<id>.<ending> beside it
(Li et al. 2024, Playground v2.5, section 3). An entry may also say "subject" and "style", texts which the published
benchmark lacks and `star data benchmark` writes.
"""

import json
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from star.data.errors import InputError
from star.data.files import READ_ERRORS, read_bytes
from star.data.formats import is_picture

META_NAME = "meta_data.json"
MAX_BYTES = 256 * 2**20
MAX_PARTS = 4_000_000  # objects, lists and what they hold; the published 30,000 entries have some 200,000
MAX_NAME = 200  # bytes of an id or category; file systems take 255, and endings come behind
FILE_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")

INCOMPLETE = "entries without a category or a prompt"
FIELD_TWICE = "entries with two categories or two prompts"
TWICE = "ids given twice"
BAD_ID = "ids that cannot name a file"
BAD_CATEGORY = "categories that cannot name a folder"
BAD_TEXT = "entries whose text is not Unicode (half of a surrogate pair, or bytes that are not UTF-8)"


class MetaEntry(NamedTuple):
    """One prompt; `category` and `id` name its picture. subject, style: "" where the entry does not say."""

    id: str
    prompt: str
    category: str
    subject: str = ""
    style: str = ""


class MetaFault(NamedTuple):
    """An entry that cannot be used, and why (in the plural); category and prompt are "" where they were not given."""

    id: str
    reason: str
    category: str
    prompt: str


class Meta(NamedTuple):
    """meta_data.json as it stands: usable entries in its order, the others with their reasons, and what was changed."""

    entries: list[MetaEntry]
    faults: list[MetaFault]
    joined: list[str]  # ids of prompts whose line breaks became spaces


def read_meta(path: Traversable) -> Meta:
    """Reads meta_data.json, a file of a folder or of a zip.

    An entry that is wrong costs only itself: without a category or a prompt, with an id or category that would lead
    out of the folder, with text that no UTF-8 file can hold, or given twice (then its first meaning is reported). A
    subject or style that is no text counts as none. Line breaks in prompts become spaces. At most 256 MiB are read and
    four million parts understood. Raises InputError if the file cannot be read, is no JSON object, is nested too deep,
    passes these bounds, or holds nothing.
    """
    pairs = _pairs(path, _read(path))
    meanings_by_id: dict[str, list[_Meaning]] = {}
    pairs.reverse()
    while pairs:  # what was read is let go as it is understood
        key, value = pairs.pop()
        meanings_by_id.setdefault(key, []).append(_fields_of(value))
    meta = Meta([], [], [])
    for key, meanings in meanings_by_id.items():
        category, prompt, reason, subject, style = meanings[0]
        joined = " ".join(prompt.splitlines())
        if len(meanings) > 1:
            reason = TWICE
        if reason := reason or _fault(key, category, joined, subject, style):
            meta.faults.append(MetaFault(_encodable(key), reason, _encodable(category), _encodable(joined)))
            continue
        if joined != prompt:
            meta.joined.append(key)
        meta.entries.append(MetaEntry(key, joined, category, subject, style))
    return meta


def find_picture(folder: Path, category: str, id: str) -> Path | None:
    """The picture of an id, of whatever ending; None if there is none.

    Raises InputError if there are several, or if the category's folder cannot be read.
    """
    place = folder / category
    try:
        names = _listing(place, place.stat().st_mtime_ns).get(id, [])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{place} cannot be read ({error.strerror or error}); give a folder of pictures.") from error
    if len(names) > 1:
        raise InputError(f"{category}/{id} has several pictures ({', '.join(names)}); keep one of them.")
    return place / names[0] if names else None


def pictures_by_id(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of pictures by their stem, in order of name; other files and hidden ones are passed over."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if is_picture(name):
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


@lru_cache(maxsize=64)
def _listing(folder: Path, changed: int) -> dict[str, list[str]]:
    return pictures_by_id(path.name for path in folder.iterdir())


def _read(path: Traversable) -> bytes:
    try:
        data = read_bytes(path, MAX_BYTES)
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} cannot be read ({reason}); give a folder or zip in the MJHQ-30k layout, {META_NAME} beside "
            "category folders"
        ) from error
    parts = sum(map(data.count, (b"{", b"[", b",")))
    if parts > MAX_PARTS:
        raise InputError(f"{path} has {parts} parts, at most {MAX_PARTS} are read; give the prompts of a benchmark")
    return data


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands, with keys that are given twice."""


def _pairs(path: Traversable, data: bytes) -> _Pairs:
    try:
        # Bytes that are not UTF-8 become halves of surrogate pairs, and cost the entry they are in.
        text = data.decode(json.detect_encoding(data), "surrogateescape").removeprefix("\ufeff")
        del data
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except RecursionError as error:
        raise InputError(f"{path} is nested too deep; expected an object of id -> category and prompt") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); get the benchmark again") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise InputError(f"{path} holds no entries; expected an object of id -> category and prompt")
    return pairs


class _Meaning(NamedTuple):
    """What an entry says; its reason is why it cannot be used, and "" if it can."""

    category: str = ""
    prompt: str = ""
    reason: str = ""
    subject: str = ""
    style: str = ""


def _fields_of(entry: Any) -> _Meaning:
    fields = dict(entry) if isinstance(entry, _Pairs) else {}
    if fields and sum(name in ("category", "prompt") for name, _ in entry) > 2:
        return _Meaning(reason=FIELD_TWICE)
    category, prompt = fields.get("category"), fields.get("prompt")
    if not (isinstance(category, str) and category and isinstance(prompt, str) and prompt.strip()):
        return _Meaning(reason=INCOMPLETE)
    subject, style = (value if isinstance(value := fields.get(name), str) else "" for name in ("subject", "style"))
    # a few strings, not one for every entry
    return _Meaning(sys.intern(category), prompt, "", sys.intern(subject.strip()), sys.intern(style.strip()))


def _fault(key: str, category: str, *texts: str) -> str:
    if any(_encodable(text) != text for text in (key, category, *texts)):
        return BAD_TEXT
    if not names_file(key):
        return BAD_ID
    return "" if names_file(category) else BAD_CATEGORY


def names_file(name: str) -> bool:
    """Whether a name can be that of a file or folder of the layout: not hidden, not too long, no way to elsewhere."""
    return FILE_NAME.fullmatch(name) is not None and len(name.encode()) <= MAX_NAME


def _encodable(text: str) -> str:
    """The text with "?" for every half of a surrogate pair, so that it can be written."""
    return text.encode("utf-8", "replace").decode("utf-8")
