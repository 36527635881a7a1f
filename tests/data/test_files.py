"""Files of any origin: regular ones only and of bounded size; JSON of bounded depth, strict where that is asked for."""

import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from star.data.errors import InputError
from star.data.files import (
    JSON_DEPTH,
    RefusedFileError,
    open_regular,
    parse_json,
    read_all,
    read_bytes,
    read_json,
    shorten,
    size_of,
)


def test_a_pipe_a_device_or_a_folder_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            read_bytes(place, 100)
        with pytest.raises(OSError, match="no regular file"):
            open_regular(place)
        with pytest.raises(InputError, match=r"is a pipe or a device|is a folder"):
            read_json(place)


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2**20))
    assert size_of(tmp_path / "a") == len(read_bytes(tmp_path / "a", 2**20)) == 2**20
    with pytest.raises(RefusedFileError, match=r"larger than 0\.5 MiB"):
        read_bytes(tmp_path / "a", 2**19)
    endless = io.BytesIO(bytes(2**22))
    with pytest.raises(RefusedFileError, match="larger than 1 MiB"):
        read_all(endless, 2**20)
    assert endless.tell() == 2**20 + 1


def test_a_file_of_a_zip_counts_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(2**24))
        archive.writestr("small", b"a" * 100)
    small, bomb = (zipfile.Path(tmp_path / "a.zip", name) for name in ("small", "bomb"))
    assert read_bytes(small, 100) == b"a" * 100
    assert size_of(bomb) == 2**24
    tracemalloc.start()
    with pytest.raises(RefusedFileError, match="larger than 1 MiB"):
        read_bytes(bomb, 2**20)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("strict", [False, True])
def test_json_is_bounded_in_depth_and_number(strict: bool) -> None:
    assert parse_json(b"\xef\xbb\xbf" + b"[" * JSON_DEPTH + b"]" * JSON_DEPTH, strict=strict)
    for data in (b"[" * 101 + b"]" * 101, b'{"a":' * 10**5, b"[" + b"[]," * 3_000_000):
        with pytest.raises(ValueError, match=r"nested|more than"):
            parse_json(data, strict=strict)


def test_large_json_is_refused_before_it_is_parsed() -> None:
    data = b'{"a": [' + b"{},".join([b""] * 2_000_000) + b"{}]}"
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1000 values"):
        parse_json(data, 1000)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        (b"[NaN]", "the number NaN"),
        (b"[-Infinity]", "the number -Infinity"),
        (b"[1e999]", "the number 1e999"),
        (b'["\\ud83c"]', "no Unicode"),
    ],
)
def test_what_only_strict_json_refuses(data: bytes, message: str) -> None:
    assert parse_json(data)
    with pytest.raises(ValueError, match=message):
        parse_json(data, strict=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_says_its_encoding(encoding: str) -> None:
    text = json.dumps({"ä": "🍎"}, ensure_ascii=False)
    assert parse_json(text.encode(encoding)) == {"ä": "🍎"}


@pytest.mark.parametrize("data", [b'["\xff"]', b'["\xed\xa0\xbc"]'])
def test_bytes_that_are_no_text_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no Unicode"):
        parse_json(data)


def test_a_message_is_one_line() -> None:
    assert shorten("it failed.\nTraceback ...") == "it failed"
    assert shorten("x" * 300, 10) == "x" * 10 + "..."
