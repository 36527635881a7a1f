"""Reading files of unknown origin: regular files only, of bounded size, and JSON of bounded size and depth.

    values = read_json(folder / "config.json")        # raises InputError, for what a user gave
    data = read_bytes(file, most=2**20)               # raises OSError, for what a program goes through by itself
    values = parse_json(data, most=1000, strict=True) # raises ValueError

A named pipe, a device or a folder is no file: opening one might never end, and reading one might never stop. What a
file says of its own size is not believed. The memory that JSON takes goes by the number of its values, so these are
counted before it is parsed.
"""

import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any

from star.data.errors import InputError

MIB = 2**20
JSON_BYTES = 32 * MIB  # an index of 100,000 shards has half of that
JSON_VALUES = 2_000_000  # lists, objects and what they hold
JSON_DEPTH = 100  # of lists and objects in each other
CONFIG_BYTES = 4 * MIB  # the largest config.json here, with the labels of a classifier, has 10^5
CONFIG_VALUES = 200_000
HEADER_BYTES = 16 * MIB  # of the JSON before the tensors of a safetensors file
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python's reader unpacks the others without a bound
# What reading a file of a folder or of a zip may raise; the last: an encrypted zip.
READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
# How files begin that are often mistaken for another kind, and what to do about it.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer, not the file itself: fetch it by `git lfs pull`"),
    (b"<!DOCTYPE", "a page of a web site: download the file itself"),
    (b"<!doctype", "a page of a web site: download the file itself"),
    (b"<html", "a page of a web site: download the file itself"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\xfd7zXZ", "compressed by xz: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"(\xb5/\xfd", "compressed by zstd: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it: give PyTorch's weights"),
    (b"\x93NUMPY", "a numpy array: give the checkpoint"),
    (b"GGUF", "a GGUF file: give the weights in safetensors"),
)


class RefusedFileError(OSError):
    """A file that is not a regular one, or is too large. `strerror`: which of them, as part of a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)

    def __str__(self) -> str:
        return str(self.strerror)


# --- bytes ---


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file for reading. Raises OSError, also for a pipe or device, which might never end or never begin."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise RefusedFileError(f"{os.fspath(path)} is no regular file")
    return os.fdopen(file, "rb")


def read_all(stream: IO[bytes], most: int = JSON_BYTES) -> bytes:
    """The rest of a stream. Raises RefusedFileError if that is more than `most` bytes, without reading further."""
    data = bytearray()  # grows with what is there: read(most) would take that much memory first
    while more := stream.read(min(MIB, most + 1 - len(data))):
        data += more
        if len(data) > most:
            raise RefusedFileError(f"it is larger than {most / MIB:,.3g} MiB")
    return bytes(data)


def read_bytes(file: Traversable, most: int) -> bytes:
    """The bytes of a regular file, or of a file in a zip.

    Raises OSError, or another of READ_ERRORS for a damaged zip; `RefusedFileError` for anything that is not a regular
    file, or that has more than `most` bytes (unpacked), of which nothing further is read.
    """
    if not isinstance(file, zipfile.Path):
        with open_regular(str(file)) as stream:
            return read_all(stream, most)
    member = file.root.getinfo(file.at)
    if member.compress_type not in ZIP_METHODS:
        raise RefusedFileError("it is packed by another method than deflate")
    try:
        with file.root.open(member) as stream:
            return read_all(stream, most)
    except (ValueError, struct.error) as error:  # a damaged head, a name that is no text
        raise RefusedFileError(f"its place in the zip is damaged: {shorten(error, 80)}") from error


def size_of(file: Traversable) -> int:
    """Bytes of a file, according to its folder or zip. Raises OSError."""
    return file.root.getinfo(file.at).file_size if isinstance(file, zipfile.Path) else Path(str(file)).stat().st_size


# --- JSON ---


def parse_json(data: bytes, most: int = JSON_VALUES, *, strict: bool = False) -> Any:
    """The value of a JSON text in UTF-8 (or in UTF-16 or UTF-32, as its first bytes tell), with or without a mark.

    Raises ValueError if it is no JSON, holds more than `most` values, or has lists and objects in each other more than
    JSON_DEPTH times; where it is `strict` also for a key given twice, NaN, an infinite number, and half of a surrogate
    pair, which no UTF-8 file could hold.
    """
    if sum(map(data.count, (b"{", b"[", b","))) > most:
        raise ValueError(f"it holds more than {most} values")
    hooks: dict[str, Any] = {}
    if strict:
        hooks = {"object_pairs_hook": _unique_keys, "parse_constant": _refuse_constant, "parse_float": _finite_float}
    try:
        value = json.loads(data.decode(json.detect_encoding(data)), **hooks)
        if strict and b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"it is nested too deep: more than {JSON_DEPTH} levels") from None
    except UnicodeError as error:
        raise ValueError(f"its text is no Unicode ({getattr(error, 'reason', error)})") from None
    if data.count(b"{") + data.count(b"[") > JSON_DEPTH and _is_deeper(value, JSON_DEPTH):
        raise ValueError(f"it is nested too deep: more than {JSON_DEPTH} levels")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are in each other more often than that; by levels, not by recursion."""
    level = [value]
    for _ in range(levels + 1):
        inner = [item for item in level if isinstance(item, dict | list)]
        if not inner:
            return False
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return True


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {shorten(repr(twice), 60)} twice")
    return found


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"it holds the number {constant}")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {shorten(text, 40)}, which is too large")
    return number


# --- files that a user gave ---


def check_regular(path: Path, expected: str) -> int:
    """The size in bytes. Raises InputError for anything but a file: nothing, a folder, a pipe, a device."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}), expected {expected}: correct the path") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise InputError(f"{path} is {kind}, expected {expected}: give the file")
    return found.st_size


def check_beginning(path: Path, expected: str) -> bytes:
    """The first 512 bytes of a file. Raises InputError as above, and for a file that is known to be something else."""
    if not check_regular(path, expected):
        raise InputError(f"{path} is empty, expected {expected}: fetch it again")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected {expected}: correct it") from error
    for beginning, kind_and_advice in BEGINNINGS:
        if start.startswith(beginning):
            kind, _, advice = kind_and_advice.partition(": ")
            raise InputError(f"{path} is {kind}, expected {expected}: {advice}")
    return start


def read_json(
    path: Path, expected: str = "a JSON object", *, largest: int = CONFIG_BYTES, most: int = CONFIG_VALUES
) -> dict[str, Any]:
    """The object in a JSON file of at most `largest` bytes and `most` values.

    Raises InputError if there is none, it is too large, or not strict JSON, see `parse_json`.
    """
    size = check_regular(path, expected)
    if size > largest:
        raise InputError(f"{path} has {size} bytes, expected {expected} of at most {largest}: give the right file")
    check_beginning(path, expected)
    try:
        values = parse_json(read_bytes(path, largest), most, strict=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({shorten(error)}), expected {expected}: get it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object, expected {expected}: get it again")
    return values


def check_safetensors(path: Path) -> None:
    """Raises InputError unless the file is a safetensors file, as far as the length of its header shows."""
    expected = "a safetensors file"
    start, size = check_beginning(path, expected), path.stat().st_size
    length = int.from_bytes(start[:8], "little")
    if len(start) < 10 or start[8:9] != b"{" or length > size - 8:
        kind = describe(start)
        raise InputError(f"{path} is {kind or 'damaged or no safetensors file'}, expected {expected}: get it again")
    if length > HEADER_BYTES:
        raise InputError(f"{path} has a header of {length} bytes, expected at most {HEADER_BYTES}: give another file")


def describe(start: bytes) -> str:
    """What a file of weights is by its first bytes; "" if they do not tell."""
    if start.startswith(b"PK\x03\x04"):
        return "an archive as torch.save writes it"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "a pickle"
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[8:9] == b"{" and b'"' in start[9:16] and int.from_bytes(start[:8], "little") <= HEADER_BYTES:
        return "a safetensors file"
    return ""


@contextmanager
def described(
    what: object, advice: str = "give another file", failure: str = "is not what it was given as"
) -> Iterator[None]:
    """Whatever a library raises over unexpected contents, as an InputError; running out of memory stays what it is."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, InputError, MemoryError):
        raise
    except BaseException as error:  # the libraries in Rust panic with what is no Exception
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise InputError(f"{what} {failure} ({type(error).__name__}: {shorten(error)}): {advice}") from error


def shorten(message: object, most: int = 200) -> str:
    """The first line of a message, without the full stop, cut to `most` characters."""
    line = str(message).strip().partition("\n")[0].rstrip(".")
    return line if len(line) <= most else line[:most] + "..."
