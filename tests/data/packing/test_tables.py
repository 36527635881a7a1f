"""Tables as people have them: every row is packed, or counted and named with its line; no cell is lost unsaid."""

import codecs
import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star.data.errors import InputError
from star.data.packing import tables
from star.data.packing.entry import Entry
from star.data.packing.pack import pack
from star.data.packing.sources import entries
from star.data.shards.check import check


@pytest.fixture
def place(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """A folder with pictures 0.png to 9.png."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    return tmp_path


def read(path: Path, content: str | bytes, **columns: str) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Captions of the rows that are packed, and by origin the reason of the others or the note on them."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found: list[Entry] = list(entries(str(path), "table", [], **columns))  # type: ignore[arg-type]
    good = [entry.captions for entry in found if entry.problem is None]
    told = {entry.origin: str(entry.problem.reason) for entry in found if entry.problem is not None}
    return good, told | {entry.origin: entry.notes[0][0] for entry in found if entry.notes}


def test_quotes_are_plain_in_tsv_and_quotes_in_csv(place: Path) -> None:
    text = 'image\tcaption\n0.png\t"hello world\n1.png\tshe said "hi"\n2.png\tthe end"\n3.png\ta ""b""\n'
    good, told = read(place / "t.tsv", text)
    assert good == [('"hello world',), ('she said "hi"',), ('the end"',), ('a ""b""',)]
    assert told == {}
    text = 'image,caption\r\n0.png,"a ""b"", c"\r\n1.png,she said "hi"\r\n2.png,"two\r\nlines"\r\n'
    good, told = read(place / "t.csv", text)
    assert good == [('a "b", c',), ('she said "hi"',), ("two\nlines",)]
    assert told == {}


@pytest.mark.parametrize(
    ("rows", "captions", "told"),
    [
        # a quote that is never closed costs its own line
        ('0.png,"open\n1.png,b\n2.png,c\n', ["b", "c"], {"row 1": "broken row"}),
        ('0.png,a\n1.png,"open\n2.png,"c"\n3.png,d\n', ["a", "c", "d"], {"row 2": "broken row"}),
        ('0.png,"open\n1.png,a "word" more\n', ['a "word" more'], {"row 1": "broken row"}),
        ('0.png,"shut" and more\n1.png,b\n', ["b"], {"row 1": "broken row"}),
        # a quote that another row happens to close
        (
            '0.png,"open\n1.png,b\n2.png,c"\n3.png,d\n',
            ["open\n1.png,b\n2.png,c", "d"],
            {"row 1": "several rows in one cell"},
        ),
        # cells beyond and below the header
        ("0.png,a cat, on a mat\n1.png,b\n", ["b"], {"row 1": "broken row"}),
        ("0.png\n1.png,b\n", ["b"], {"row 1": "broken row"}),
        ("0.png,a,, \n1.png,b\n", ["a", "b"], {}),
        # rows that say nothing, and rows that lack something
        ("\n0.png,a\n\n,\n1.png,b", ["a", "b"], {}),
        (",a\n1.png,b\n", ["b"], {"row 1": "missing picture"}),
        ("0.png,\n1.png, \ufeff\n2.png,c\n", ["c"], {"row 1": "empty caption", "row 2": "empty caption"}),
        ("0.png,\ufeffa\n", ["a"], {}),
        ("0.png," + "a" * 200_000 + "\n1.png,b\n", ["b"], {"row 1": "broken row"}),
    ],
)  # fmt: skip
def test_rows_of_csv(rows: str, captions: list[str], told: dict[str, str], place: Path) -> None:
    assert read(place / "t.csv", "image,caption\n" + rows) == ([(caption,) for caption in captions], told)


def test_rows_of_tsv_are_held_to_the_header(place: Path) -> None:
    text = "image\tcaption\tby\r\n0.png\ta\tx\r\n1.png\tcut\r\nin two\ty\r\n2.png\tb\ty\tz\r\n\r\n3.png\tc\t\r\n"
    good, told = read(place / "t.tsv", text)
    assert good == [("a",), ("c",)]
    assert told == dict.fromkeys(("row 2", "row 3", "row 4"), "broken row")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_may_be_of_any_unicode_encoding(encoding: str, suffix: str, place: Path) -> None:
    rows = [("0.png", "Blüte 🍎"), ("1.png", "b")]
    if suffix == "jsonl":
        text = "".join(json.dumps({"image": a, "caption": b}, ensure_ascii=False) + "\r\n" for a, b in rows)
    else:
        text = "".join(("," if suffix == "csv" else "\t").join(row) + "\r\n" for row in (("image", "caption"), *rows))
    assert read(place / f"t.{suffix}", text.encode(encoding)) == ([("Blüte 🍎",), ("b",)], {})


def test_bytes_that_are_not_text_cost_their_row(place: Path) -> None:
    latin = "image,caption\n0.png,Blüte\n1.png,b\n".encode("latin-1")
    assert read(place / "t.csv", latin) == ([("b",)], {"row 1": "broken text"})
    assert read(place / "t.tsv", latin.replace(b",", b"\t")) == ([("b",)], {"row 1": "broken text"})
    cut = codecs.BOM_UTF16_LE + "image,caption\n0.png,a\n1.png,b\n".encode("utf-16-le")[:-1]
    good, told = read(place / "t.csv", cut)
    assert good == [("a",)]
    assert told == {"row 2": "broken text"}


def test_headers_that_would_lose_cells_are_refused(place: Path) -> None:
    with pytest.raises(InputError, match="has the column caption twice"):
        read(place / "t.csv", "image,caption,caption\n0.png,a,b\n")
    with pytest.raises(InputError, match="no column caption, image but image;caption"):
        read(place / "t.csv", "image;caption\n0.png;a\n")
    with pytest.raises(InputError, match="The first line"):
        read(place / "t.csv", 'image,"caption\n')
    (place / "t.csv").write_text(" image , caption ,,by,\n0.png,a,,me,\n1.png,b,more,,\n")
    records = [entry.record for entry in entries(str(place / "t.csv"), "table", [])]
    assert records == [{"by": "me"}, {"column 3": "more", "by": ""}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "broken json"),
        ('{"image": "0.png", "caption": "a"} {}', "broken json"),
        ('["0.png", "a"]', "broken json"),
        ("null", "broken json"),
        ('{"image": "0.png", "caption": "a", "caption": "b"}', "broken json"),
        ('{"image": "0.png", "caption": "a", "n": ' + "9" * 5000 + "}", "broken json"),
        ('{"image": "0.png", "caption": "a", "n": ' + "[" * 100000, "broken json"),
        ('{"image": 3, "caption": "a"}', "missing picture"),
        ('{"image": {"bytes": null, "path": null}, "caption": "a"}', "missing picture"),
        ('{"image": "~nobody-of-this-name/0.png", "caption": "a"}', "missing picture"),
        ('{"caption": "a"}', "missing picture"),
        ('{"image": "0.png"}', "missing caption"),
        ('{"image": "0.png", "caption": 7}', "missing caption"),
        ('{"image": "0.png", "caption": ["a", 7]}', "missing caption"),
        ('{"image": "0.png", "caption": {"en": "a"}}', "missing caption"),
        ('{"image": "0.png", "caption": [" ", ""]}', "empty caption"),
    ],
)
def test_bad_lines_of_jsonl_cost_only_themselves(line: str, reason: str, place: Path) -> None:
    good, told = read(place / "t.jsonl", line + '\n{"image": "1.png", "caption": "b"}\r\n\n')
    assert (good, told) == ([("b",)], {"row 1": reason})


def test_captions_that_no_training_takes_are_not_packed(place: Path) -> None:
    """Found by mutation: a shard was written that the check refused."""
    deep: Any = "a"
    for _ in range(200):
        deep = [deep]
    rows = [
        {"image": "0.png", "caption": "a" * 140_000},
        {"image": "1.png", "caption": [f"caption {number}" for number in range(2000)]},
        {"image": "2.png", "caption": "a", "more": deep},
        {"image": "3.png", "caption": "b"},
    ]
    (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = pack(place / "t.jsonl", place / "out")
    assert (report.samples, report.skipped.reasons) == (1, {"too large": 2, "broken json": 1})
    assert check(place / "out").ok


def test_lines_without_end_are_passed_over_in_bounded_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST_LINE", 100)
    long = json.dumps({"image": "0.png", "caption": "a" * 350})
    good, told = read(place / "t.jsonl", f'{long}\n{{"image": "1.png", "caption": "b"}}\n{long}')
    assert (good, told) == ([("b",)], {"row 1": "broken text", "row 3": "broken text"})


def test_captions_of_a_row_mean_what_they_mean_in_a_shard(place: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "0.png", "caption": "a", "captions": ["b", "a", " c "]},
        {"image": "1.png", "captions": ["b", "c"]},
        {"image": "2.png", "caption": ["a", "b"], "captions": "c"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(place / "t.jsonl", text) == ([("a", "b", "c"), ("b", "c"), ("a", "b", "c")], {})
    (place / "t.jsonl").write_text('{"image": "0.png", "text": "a", "caption": "other", "by": "me"}\n')
    (entry,) = entries(str(place / "t.jsonl"), "table", [], caption_column="text")
    assert (entry.captions, entry.record) == (("a",), {"other_caption": "other", "by": "me"})


def test_a_table_without_the_columns_says_so_and_an_empty_one_too(place: Path) -> None:
    with pytest.raises(InputError, match="has no column image but file, caption"):
        read(place / "t.jsonl", '{"file": "0.png", "caption": "a"}\n')
    for suffix, text in (("jsonl", ""), ("csv", ""), ("csv", "image,caption\n"), ("tsv", "\n\n")):
        (place / f"t.{suffix}").write_text(text)
        with pytest.raises(InputError, match="holds no picture with a caption; put"):
            pack(place / f"t.{suffix}", place / "out")


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), path, **options)
    return path


def test_nulls_and_odd_types_in_parquet(place: Path) -> None:
    columns = {
        "image": ["0.png", None, "2.png", "3.png"],
        "caption": ["a", "b", None, "d"],
        "price": [decimal.Decimal("1.50"), None, None, None],
        "day": [datetime.date(2020, 1, 2), None, None, None],
    }
    path = write_parquet(place / "t.parquet", columns)
    found = list(entries(str(path), "table", []))
    assert [str(entry.problem and entry.problem.reason) for entry in found] == [
        "None",
        "missing picture",
        "missing caption",
        "None",
    ]
    report = pack(path, place / "out")
    assert (report.samples, report.skipped.total) == (2, 2)


def test_times_that_python_cannot_hold_are_text(place: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    columns = {
        "image": ["0.png"],
        "caption": ["a"],
        "at": pyarrow.array([1_600_000_000_000_000_001], type=pyarrow.timestamp("ns")),
        "late": pyarrow.array([2**60], type=pyarrow.timestamp("ms")),
    }
    (entry,) = entries(str(write_parquet(place / "t.parquet", columns)), "table", [])
    assert entry.problem is None
    assert str(entry.record["at"]).startswith("2020-09-13")


def test_a_damaged_group_of_rows_costs_itself(place: Path) -> None:
    columns = {"image": [f"{number}.png" for number in range(9)], "caption": [f"caption {n} " * 40 for n in range(9)]}
    path = write_parquet(
        place / "t.parquet",
        columns,
        row_group_size=3,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=True,
    )
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        chunk = file.metadata.row_group(1).column(1)
    damaged = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    damaged[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    good, told = read(path, bytes(damaged))
    assert [caption.split(" caption")[0] for (caption,) in good] == [f"caption {n}" for n in (0, 1, 2, 6, 7, 8)]
    assert list(told.values()) == ["broken row"]


def test_parquet_with_one_name_for_two_columns_is_refused(place: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 3, names=["image", "caption", "caption"])
    write_table(twice, place / "t.parquet")
    with pytest.raises(InputError, match="has the column caption twice"):
        list(entries(str(place / "t.parquet"), "table", []))
