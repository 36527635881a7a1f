"""The fuzzer's own harness: every kind of failure is told, and what is allowed is not."""

import ctypes
import time
from pathlib import Path

import pytest

from star.data.errors import InputError
from tests.fuzz.harness import run


def _reader(path: Path) -> object:
    match path.read_text():
        case "refused":
            raise InputError("this file is no good: give another")
        case "raises":
            raise KeyError("key")
        case "hangs":
            time.sleep(60)
        case "crashes":
            ctypes.string_at(0)
        case "takes":
            return b"x" * (400 * 2**20)
    return None


@pytest.mark.parametrize(
    ("content", "reason"),
    [("raises", "KeyError: 'key'"), ("hangs", "hangs"), ("crashes", "crashes"), ("takes", "takes 0.4 GiB")],
)
def test_failures_are_told_and_the_run_goes_on(content: str, reason: str) -> None:
    cases = [("a", b"good"), ("b", content.encode()), ("c", b"refused"), ("d", b"good")]
    failures = run(cases, _reader, seconds=2, memory_gib=0.2)
    assert [failure.name for failure in failures] == ["b"]
    assert failures[0].reason.startswith(reason)
    assert failures[0].data == content.encode()
