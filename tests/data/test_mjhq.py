"""The MJHQ layout: every entry read, or named with its reason; nothing in it leads out of the folder."""

import json
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from star.data import mjhq
from star.data.errors import InputError
from star.data.mjhq import (
    BAD_CATEGORY,
    BAD_ID,
    BAD_TEXT,
    FIELD_TWICE,
    INCOMPLETE,
    TWICE,
    MetaEntry,
    find_picture,
    pictures_by_id,
    read_meta,
)
from star.data.packing.sources import entries

GOOD = {"category": "food", "prompt": "a pie"}


def meta_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "meta_data.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_entries_keep_their_order_and_line_breaks_become_spaces(tmp_path: Path) -> None:
    said = {"b": GOOD, "a": {"category": "food", "prompt": "two\r\nlines\u2028and a third\n"}}
    for text in (json.dumps(said), "\ufeff" + json.dumps(said, ensure_ascii=False)):
        meta = read_meta(meta_file(tmp_path, text))
        assert meta.entries == [MetaEntry("b", "a pie", "food"), MetaEntry("a", "two lines and a third", "food")]
        assert (meta.faults, meta.joined) == ([], ["a"])


def test_subject_and_style_are_read_where_they_are_texts(tmp_path: Path) -> None:
    said = {"a": {**GOOD, "subject": " pie ", "style": "noto"}, "b": {**GOOD, "subject": ["pie"], "style": None}}
    meta = read_meta(meta_file(tmp_path, json.dumps(said)))
    assert meta.entries == [MetaEntry("a", "a pie", "food", "pie", "noto"), MetaEntry("b", "a pie", "food")]
    packed = {entry.name: entry.record for entry in entries(str(tmp_path), "mjhq", [])}
    assert packed == {"a": {"category": "food", "subject": "pie", "style": "noto"}, "b": {"category": "food"}}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('"x": {"category": "food"}', INCOMPLETE),
        ('"x": {"category": "food", "prompt": " "}', INCOMPLETE),
        ('"x": {"category": "food", "prompt": ["a pie"]}', INCOMPLETE),
        ('"x": {"category": 1, "prompt": "a pie"}', INCOMPLETE),
        ('"x": [["category", "food"], ["prompt", "a pie"]]', INCOMPLETE),
        ('"x": null', INCOMPLETE),
        ('"x": {"category": "food", "prompt": "1", "prompt": "2"}', FIELD_TWICE),
        ('"x": {"category": "food", "prompt": "a \\ud83d pie"}', BAD_TEXT),
        ('"x": {"category": "\\udc00", "prompt": "a pie"}', BAD_TEXT),
        ('"\\ud83d": {"category": "food", "prompt": "a pie"}', BAD_TEXT),
        ('"x": {"category": "food", "prompt": "a pie", "subject": "\\ud83d"}', BAD_TEXT),
        ('"x": {"category": "food", "prompt": "p\xe2t\xe9"}', BAD_TEXT),  # written in Latin-1 below
        ('"../x": {"category": "food", "prompt": "a pie"}', BAD_ID),
        ('"/x": {"category": "food", "prompt": "a pie"}', BAD_ID),
        ('"..": {"category": "food", "prompt": "a pie"}', BAD_ID),
        ('"a\\u0000b": {"category": "food", "prompt": "a pie"}', BAD_ID),
        ('"a\\nb": {"category": "food", "prompt": "a pie"}', BAD_ID),
        ('"' + "n" * 201 + '": {"category": "food", "prompt": "a pie"}', BAD_ID),
        ('"x": {"category": "..", "prompt": "a pie"}', BAD_CATEGORY),
        ('"x": {"category": "../food", "prompt": "a pie"}', BAD_CATEGORY),
        ('"x": {"category": "C:\\\\food", "prompt": "a pie"}', BAD_CATEGORY),
        ('"x": {"category": "food", "prompt": "1"}, "x": {"category": "food", "prompt": "2"}', TWICE),
    ],
)
def test_a_bad_entry_costs_only_itself_and_is_named(entry: str, reason: str, tmp_path: Path) -> None:
    text = f'{{"good": {json.dumps(GOOD)}, {entry}}}'
    meta = read_meta(meta_file(tmp_path, text.encode("latin-1")))
    assert [found.id for found in meta.entries] == ["good"]
    assert [fault.reason for fault in meta.faults] == [reason]
    for fault in meta.faults:
        " ".join(fault).encode()  # can be written into a report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe\xff", "is no JSON"),
        (b"", "is no JSON"),
        (b"[]", "holds no entries"),
        (b"{}", "holds no entries"),
        (b'{"a": ' + b"[" * 100000, "nested too deep"),
        (b'{"a":' * 100000, "nested too deep"),
    ],
)
def test_what_is_no_table_is_one_sentence(text: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_meta(meta_file(tmp_path, text))


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mjhq, "MAX_BYTES", 2**22)
    monkeypatch.setattr(mjhq, "MAX_PARTS", 1000)
    path = tmp_path / "meta_data.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="larger than 4 MiB"):
        read_meta(path)
    meta_file(tmp_path, b'{"a":[' + b"{}," * 500 + b"{}]}")
    tracemalloc.start()
    with pytest.raises(InputError, match="at most 1000 are read"):
        read_meta(path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    for place in (tmp_path, Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(InputError, match="MJHQ-30k layout"):
            read_meta(place)


def test_a_zip_is_read_where_it_lies(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/meta_data.json", json.dumps({"a": GOOD}))
    meta = read_meta(zipfile.Path(tmp_path / "a.zip", "top/meta_data.json"))
    assert meta.entries == [MetaEntry("a", "a pie", "food")]


def test_pictures_that_are_still_in_a_zip_are_asked_for(tmp_path: Path) -> None:
    meta_file(tmp_path, json.dumps({"a": GOOD}))
    (tmp_path / "mjhq30k_imgs.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"still in mjhq30k_imgs\.zip; unpack it"):
        list(entries(str(tmp_path), "mjhq", []))


def test_pictures_of_every_ending_are_found_and_several_refused(tmp_path: Path) -> None:
    (tmp_path / "food").mkdir()
    for name in ("a.jpg", "b.AVIF", "c.d.PNG", "._a.jpg", "a.txt", "e.png", "e.jpeg"):
        (tmp_path / "food" / name).write_bytes(b"")
    for key, name in (("a", "a.jpg"), ("b", "b.AVIF"), ("c.d", "c.d.PNG")):
        assert find_picture(tmp_path, "food", key) == tmp_path / "food" / name
    assert find_picture(tmp_path, "food", "z") is None
    assert find_picture(tmp_path, "none", "a") is None
    with pytest.raises(InputError, match=r"food/e has several pictures \(e.jpeg, e.png\)"):
        find_picture(tmp_path, "food", "e")
    assert pictures_by_id(["b.jp2", "a.png", ".c.png", "d.txt"]) == {"a": ["a.png"], "b": ["b.jp2"]}
