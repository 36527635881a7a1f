"""Files of unknown origin: what they are is told before they are read, and nothing swells while it is read.

values = read_json(folder / "config.json")   # a regular file of bounded size, no key twice, every number finite
"""

import json
import math
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star.data.errors import InputError

LARGEST_JSON = 2**22  # bytes; the largest config.json here, with the labels of a judge, has 10^5
MOST_ITEMS = 200_000  # entries of objects and lists
LARGEST_HEADER = 2**24  # bytes of the JSON before the tensors of a safetensors file
# How files begin that are often taken for another, and what to do about it.
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
    for beginning, told in BEGINNINGS:
        if start.startswith(beginning):
            what, _, advice = told.partition(": ")
            raise InputError(f"{path} is {what}, expected {expected}: {advice}")
    return start


def read_json(
    path: Path, expected: str = "a JSON object", *, largest: int = LARGEST_JSON, items: int = MOST_ITEMS
) -> dict[str, Any]:
    """The object in a JSON file, UTF-8. Raises InputError if there is none, or it is too large, see `parse_json`."""
    size = check_regular(path, expected)
    if size > largest:
        raise InputError(f"{path} has {size} bytes, expected {expected} of at most {largest}: give the right file")
    check_beginning(path, expected)
    try:
        values = parse_json(path.read_bytes(), items)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({shorten(error)}), expected {expected}: get it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object, expected {expected}: get it again")
    return values


def parse_json(data: bytes, items: int = MOST_ITEMS) -> Any:
    """JSON values. Raises ValueError for more items than that, a key twice, deep nesting, and numbers without end."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > items:
        raise ValueError(f"it holds more than {items} values")
    try:
        return json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_safetensors(path: Path) -> None:
    """Raises InputError unless the file is a safetensors file as far as the length of its header tells."""
    expected = "a safetensors file"
    start, size = check_beginning(path, expected), path.stat().st_size
    length = int.from_bytes(start[:8], "little")
    if len(start) < 10 or start[8:9] != b"{" or length > size - 8:
        kind = describe(start)
        raise InputError(f"{path} is {kind or 'damaged or no safetensors file'}, expected {expected}: get it again")
    if length > LARGEST_HEADER:
        raise InputError(f"{path} has a header of {length} bytes, expected at most {LARGEST_HEADER}: give another file")


def describe(start: bytes) -> str:
    """What a file of weights is by its first bytes; "" if they do not tell."""
    if start.startswith(b"PK\x03\x04"):
        return "an archive as torch.save writes it"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "a pickle"
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[8:9] == b"{" and b'"' in start[9:16] and int.from_bytes(start[:8], "little") <= LARGEST_HEADER:
        return "a safetensors file"
    return ""


@contextmanager
def described(
    what: object, advice: str = "give another file", failure: str = "is not what it was given as"
) -> Iterator[None]:
    """Whatever else strange contents make a reader stumble over, as an InputError; a full memory stays what it is."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, InputError, MemoryError):
        raise
    except BaseException as error:  # the libraries in Rust panic with what is no Exception
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise InputError(f"{what} {failure} ({type(error).__name__}: {shorten(error)}): {advice}") from error


def shorten(told: object, most: int = 200) -> str:
    """The first line of a message, without the full stop, cut."""
    line = str(told).strip().partition("\n")[0].rstrip(".")
    return line if len(line) <= most else line[:most] + "..."


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {shorten(repr(twice), 60)} twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds the number {constant}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {shorten(text, 40)}, which is too large")
    return number
