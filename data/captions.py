"""Captions and the record of a sample, from bytes that anybody may have written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from star.data.files import parse_json
from star.data.shards.faults import SampleError

TEXT_BYTES = 4 << 20  # of a sample's .json or .txt
PARTS = 200_000  # lists, objects and what they hold
CAPTIONS = 1000
CHARACTERS = 100_000  # of one caption; a text encoder reads some hundreds
REPAIRED_TEXT = "its .json holds half of a surrogate pair; read as U+FFFD"


def captions_of(members: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Captions, the main one first, and the whole record of a sample.

    Read from `.json` (`caption`, then `captions`; either may be one text or a list of them), or from `.txt` as one
    caption. Halves of surrogate pairs become U+FFFD, here and in the whole record (see `text_repaired`). Raises
    SampleError if no caption is there, or the texts are too large, or nested too deep.
    """
    info: dict[str, Any] = {}
    found: list[Any] = []
    if "json" in members:
        info = _record(members["json"])
        found = [*_as_list(info.get("caption")), *_as_list(info.get("captions"))]
    if "txt" in members:
        try:
            found.append(_bounded(members["txt"], "txt").decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise SampleError("missing caption", f"its .txt is not UTF-8: {error}") from error
    texts = [text.strip().strip("\ufeff").strip() for text in found if isinstance(text, str)]
    if not texts:
        raise SampleError("missing caption", f"only {', '.join(sorted(members))}")
    captions = tuple(dict.fromkeys(text for text in texts if text))
    if not captions:
        raise SampleError("empty caption", "every caption is blank")
    longest = max(map(len, captions))
    if len(captions) > CAPTIONS or longest > CHARACTERS:
        raise SampleError(
            "too large",
            f"{len(captions)} captions of up to {longest} characters, expected at most {CAPTIONS} of {CHARACTERS}",
        )
    return captions, info


def text_repaired(members: Mapping[str, Any]) -> bool:
    """Whether `captions_of` changed a text of the record, because no UTF-8 file could hold it."""
    data = members.get("json")
    if not isinstance(data, bytes) or not _may_hold_halves(data):
        return False
    try:
        json.dumps(_parsed(data), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except SampleError:
        pass
    return False


def whole_text(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair; pairs that were written as two halves are joined."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _record(content: Any) -> dict[str, Any]:
    data = _bounded(content, "json")
    info = _parsed(data)
    if not isinstance(info, dict):
        raise SampleError("broken json", f"a {type(info).__name__}, expected an object")
    return _repaired(info) if _may_hold_halves(data) else info


def _parsed(data: bytes) -> Any:
    try:
        return parse_json(data, PARTS)
    except ValueError as error:  # bad JSON, or bytes that are not UTF-8
        raise SampleError("broken json", str(error)) from error


def _bounded(content: Any, what: str) -> bytes:
    if isinstance(content, SampleError):
        raise content
    if len(content) > TEXT_BYTES:
        raise SampleError("too large", f"{what}: {len(content)} bytes, expected at most {TEXT_BYTES}")
    return bytes(content)


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _may_hold_halves(data: bytes) -> bool:
    return b"\\ud" in data or b"\\uD" in data


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {whole_text(name): _repaired(item) for name, item in value.items()}
    return [_repaired(item) for item in value] if isinstance(value, list) else value
