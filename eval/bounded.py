"""Files from strangers, read within bounds that are known before anything is taken.

A named pipe, a device or a folder is no file; a file of a zip counts unpacked. What JSON takes in memory goes by the
parts it has, so these are counted before it is understood.
"""

import json
import os
import stat
import struct
import zipfile
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NoReturn

MIB = 2**20
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others are unpacked without a bound by Python's reader
SURROGATE = b"\\ud"  # how an escape begins that may be half of a pair


class RefusedFileError(OSError):
    """A file that is none, or has more than may be taken. `strerror`: which of them, as part of a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)

    def __str__(self) -> str:
        return str(self.strerror)


def take(file: Traversable, most: int) -> bytes:
    """The bytes of a regular file, or of one in a zip.

    Raises OSError, or what a damaged zip provokes; `RefusedFileError` for anything that is no file, or that has more
    than `most` bytes, of which nothing further is read.
    """
    if isinstance(file, zipfile.Path):
        info = file.root.getinfo(file.at)
        if info.compress_type not in PACKED:
            raise RefusedFileError("it is packed by another method than deflate")
        try:
            with file.root.open(info) as stream:
                return _upto(stream, most)
        except (ValueError, struct.error) as error:  # a damaged head, a name that is no text
            raise RefusedFileError(f"its place in the zip is damaged: {shortened(error, 80)}") from error
    number = os.open(str(file), os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise RefusedFileError("it is no regular file")
        return _upto(stream, most)


def size_of(file: Traversable) -> int:
    """Bytes of a file, as its folder or zip tells them. Raises OSError."""
    return file.root.getinfo(file.at).file_size if isinstance(file, zipfile.Path) else Path(str(file)).stat().st_size


def _upto(stream: Any, most: int) -> bytes:
    data = bytearray()  # grows with what is there: a stated size may be wrong
    while more := stream.read(min(MIB, most + 1 - len(data))):
        data += more
        if len(data) > most:
            raise RefusedFileError(f"it is larger than {most / MIB:,.3g} MiB")
    return bytes(data)


def understand(data: bytes, parts: int) -> Any:
    """JSON of at most so many parts (objects, lists, and what they hold), in UTF-8.

    Raises ValueError for anything else, for numbers that are none, and for text that UTF-8 cannot hold.
    """
    found = sum(map(data.count, (b"{", b"[", b",")))
    if found > parts:
        raise ValueError(f"it has {found:,} parts, at most {parts:,} are read")
    try:
        values = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
        if SURROGATE in data.lower():
            _encode(values)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeError as error:
        raise ValueError(f"its text is no Unicode ({getattr(error, 'reason', error)})") from None
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name} where a number should be")


def _encode(values: Any) -> None:
    json.dumps(values, ensure_ascii=False).encode("utf-8")


def shortened(error: object, most: int = 300) -> str:
    """What an error says, not longer than a person reads."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]}..."
