"""One sample to be packed, or why there is none; texts and files of any origin, read within bounds."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from star.data.files import open_regular, read_all
from star.data.shards.faults import Reason, SampleError

LARGEST_PICTURE = 256 * 2**20  # bytes


@dataclass(slots=True)
class Entry:
    """One sample to be: where it came from, its preferred key, its picture (bytes or a file), and the rest.

    With a `problem` there is no sample, and the reason is counted; `notes` are what to report of one that is packed.
    """

    origin: str
    name: str
    picture: bytes | Path
    captions: tuple[str, ...]
    record: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, bytes] = field(default_factory=dict)
    problem: SampleError | None = None
    notes: list[tuple[Reason, str]] = field(default_factory=list)


def unusable(origin: str, reason: Reason, detail: str) -> Entry:
    """An entry that is no sample, for this reason."""
    return Entry(origin, "", b"", (), problem=SampleError(reason, detail))


def captions_in(*values: Any) -> tuple[str, ...]:
    """Captions among texts and lists of texts: stripped, no two the same. Raises SampleError if there is none."""
    flat = [one for several in values for one in (several if isinstance(several, list | tuple) else (several,))]
    texts = [clean(text) for text in flat if isinstance(text, str)]
    captions = tuple(dict.fromkeys(text for text in texts if text))
    others = [one for one in flat if one is not None and not isinstance(one, str)]
    if others:
        raise SampleError("missing caption", f"a caption is {shorten(others[0])}, expected text")
    if not captions:
        raise SampleError("empty caption" if texts else "missing caption", f"the caption is {shorten(values[0])}")
    return captions


def clean(text: str) -> str:
    """Without blanks and byte order marks around it, and with line breaks of one kind."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip().strip("\ufeff").strip()


def decode_text(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 as byte order marks and zeros tell. Raises SampleError for other bytes."""
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SampleError("broken text", f"no {encoding.upper()}: {error}") from error


def read_file(path: Path, largest: int, reason: Reason) -> bytes:
    """The bytes of a regular file. Raises SampleError, with this reason if it cannot be read, or if it is larger."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest:
                raise SampleError("too large", f"{shown(path)} has {size} bytes, expected at most {largest}")
            return read_all(file, largest)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte, or half of a surrogate pair
        raise SampleError(reason, f"{shown(path)}: {getattr(error, 'strerror', None) or error}") from error


def shown(text: object) -> str:
    """As it can be written: what is not Unicode (names of files may be any bytes) as an escape."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(value: object, most: int = 80) -> str:
    """A value in a message, cut."""
    text = repr(value[:most] if isinstance(value, str | bytes | list | tuple) else value)
    return text if len(text) <= most else text[:most] + "..."
