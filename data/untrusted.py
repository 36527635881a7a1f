"""Reading files that anybody may have written: regular ones only, no more than so many bytes, JSON of bounded depth."""

import json
import os
import stat
from typing import IO, Any

JSON_BYTES = 32 << 20  # an index of 100,000 shards has half of that
JSON_PARTS = 2_000_000  # lists, objects and what they hold
JSON_DEPTH = 100  # of lists and objects in each other


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file for reading. Raises OSError also for a pipe or device, which might never end or never begin."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{os.fspath(path)} is no regular file")
    return os.fdopen(file, "rb")


def read_all(file: IO[bytes], most: int = JSON_BYTES) -> bytes:
    """What is left of a file. Raises ValueError if that is more than so many bytes."""
    parts: list[bytes] = []
    left = most + 1
    while left and (data := file.read(min(left, 1 << 20))):
        parts.append(data)
        left -= len(data)
    if not left:
        raise ValueError(f"it has more than {most} bytes")
    return b"".join(parts)


def parse_json(data: bytes, parts: int = JSON_PARTS, depth: int = JSON_DEPTH) -> Any:
    """JSON in UTF-8, with or without a mark before it.

    Raises ValueError if it is none, is nested deeper than `depth`, or holds more than `parts` values.
    """
    if sum(map(data.count, (b"{", b"[", b","))) > parts:
        raise ValueError(f"it holds more than {parts} values")
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if data.count(b"{") + data.count(b"[") > depth and _deeper(value, depth):
        raise ValueError(f"it is nested deeper than {depth} levels")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are in each other more often than that; by levels, not by recursion."""
    level = [value]
    for _ in range(levels + 1):
        inner = [item for item in level if isinstance(item, dict | list)]
        if not inner:
            return False
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return True
