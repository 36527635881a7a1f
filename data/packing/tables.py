"""Tables of pictures and captions (CSV, TSV, JSONL, parquet): each row becomes an entry, the bad ones with a reason.

CSV has quotes as RFC 4180 has them, in TSV they are characters as any other. Text is UTF-8, or UTF-16 and UTF-32 where
a byte order mark or zeros tell.
"""

import csv
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from star.data.errors import InputError
from star.data.packing.entry import Entry, captions_in, shorten, unusable
from star.data.shards.faults import Reason, SampleError

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# Where no column is named, the first of these that is there: as this project writes them, then as `datasets` does.
IMAGE_COLUMNS = ("image", "file_name", "img", "jpg", "png", "webp", "path")
CAPTION_COLUMNS = ("caption", "text", "prompt")
LONGEST_LINE = 16 * 2**20  # characters; an object may hold whole stories
LONGEST_RECORD = 2**20  # characters of a CSV record of several lines: beyond that a quote was left open


class Row(NamedTuple):
    """One row as it stands in the table, or why it cannot be read; `where` tells its place."""

    where: str
    cells: dict[str, Any]
    problem: SampleError | None = None
    notes: tuple[tuple[Reason, str], ...] = ()


class _Line(NamedTuple):
    number: int
    text: str
    problem: str = ""


class _Record(NamedTuple):
    line: int
    cells: list[str]
    problem: SampleError | None = None


def table_entries(path: Path, image_column: str | None, caption_column: str | None) -> Iterator[Entry]:
    """One entry for each row, in their order; a picture is a path from the table's folder, or the bytes themselves.

    A column that is not named is the first of IMAGE_COLUMNS or CAPTION_COLUMNS that the row has. Other columns become
    fields of the record; a list of captions, and a column `captions` beside the caption, mean what they mean in a
    shard. Raises InputError if the table cannot be read at all or has no such columns.
    """
    columns: dict[str, None] = {}
    for number, row in enumerate(_rows(path, image_column, caption_column), 1):
        if row.problem is not None:
            yield unusable(f"row {number}", row.problem.reason, f"{row.where}: {row.problem.detail}")
            continue
        columns.update(dict.fromkeys(row.cells))
        entry = Entry(f"row {number}", f"{number:08d}", b"", (), notes=[*row.notes])
        try:
            _fill(entry, path.parent, dict(row.cells), image_column, caption_column)
        except SampleError as error:
            entry.problem = error
        yield entry
    if columns:
        check_columns(path, columns, image_column, caption_column)


def check_columns(path: Path, columns: Iterable[str], image_column: str | None, caption_column: str | None) -> None:
    """Raises InputError if the picture's or the caption's column is missing, or any column is there twice."""
    columns = list(columns)
    if twice := sorted(name for name, times in Counter(columns).items() if times > 1):
        raise InputError(f"{path} has the column {', '.join(twice[:20])} twice; give each a name of its own.")
    image, caption = _column(columns, image_column, IMAGE_COLUMNS), _column(columns, caption_column, CAPTION_COLUMNS)
    missing = {image, caption} - set(columns)
    if "captions" in columns:
        missing.discard(caption)
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(sorted(missing))} but {', '.join(columns[:20])}; "
            "name the columns of the picture's path and of the caption."
        )


def _column(columns: Iterable[str], named: str | None, usual: tuple[str, ...]) -> str:
    """The column that was named, else the first of the usual ones that is there, else the first of them."""
    return named or next((name for name in usual if name in columns), usual[0])


def _fill(
    entry: Entry, folder: Path, cells: dict[str, Any], image_column: str | None, caption_column: str | None
) -> None:
    image_column = _column(cells, image_column, IMAGE_COLUMNS)
    value = cells.pop(image_column, None)
    caption = cells.pop(_column(cells, caption_column, CAPTION_COLUMNS), None)
    if isinstance(value, Mapping):  # as the datasets library stores pictures in parquet: {"bytes", "path"}
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        entry.picture = value
    elif isinstance(value, str) and value:
        path = Path(value)
        entry.name = path.stem if path.is_absolute() or not path.name else str(path.with_suffix(""))
        try:
            entry.picture = folder / path.expanduser()
        except RuntimeError as error:  # "~somebody" who is not here
            raise SampleError("missing picture", f"{shorten(value)}: {error}") from error
    else:
        raise SampleError("missing picture", f"{image_column} is {shorten(value)}")
    entry.captions = captions_in(caption, cells.pop("captions", None))
    if "caption" in cells:  # a column of that name that is not the one to train on
        cells["other_caption"] = cells.pop("caption")
    entry.record = cells


def _rows(path: Path, image_column: str | None, caption_column: str | None) -> Iterator[Row]:
    if not path.is_file():
        raise InputError(f"{path} is no file; give a table, one of {', '.join(ENDINGS)}.")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".arrow"):
        from star.data.packing.parquet import arrow_rows, parquet_rows  # pyarrow is optional

        yield from (parquet_rows if suffix == ".parquet" else arrow_rows)(path, image_column, caption_column)
        return
    try:
        with _open(path) as file:
            lines = _lines(file)
            if suffix in (".jsonl", ".ndjson"):
                yield from _objects(lines)
            else:
                records = _split_tabs(lines) if suffix == ".tsv" else _split_commas(lines)
                yield from _named(path, records, "\t" if suffix == ".tsv" else ",", image_column, caption_column)
    except OSError as error:
        raise InputError(f"Cannot read the table {path} ({error}); give a file that can be read.") from error


def _open(path: Path) -> TextIO:
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    if encoding.startswith("utf-8"):  # bytes that are not UTF-8 become halves of surrogate pairs, and cost their row
        return path.open(encoding=encoding, errors="surrogateescape", newline="")
    return path.open(encoding=encoding, newline="")


def _lines(file: TextIO) -> Iterator[_Line]:
    """Lines with their ends, from 1; those that are too long or hold no text come empty, with the reason."""
    number = 0
    while True:
        number += 1
        try:
            text = file.readline(LONGEST_LINE)
            if not text:
                return
            if len(text) == LONGEST_LINE and not text.endswith("\n"):
                while (more := file.readline(LONGEST_LINE)) and not more.endswith("\n"):
                    pass
                yield _Line(number, "", f"it is longer than {LONGEST_LINE} characters")
                continue
        except UnicodeDecodeError as error:  # UTF-16 that is cut or was joined with something else
            yield _Line(number, "", f"from here on the table is no {error.encoding.upper()}: {error.reason}")
            return
        try:
            text.encode()
        except UnicodeEncodeError:
            yield _Line(number, "", "it is not UTF-8")
        else:
            yield _Line(number, text)


def _objects(lines: Iterable[_Line]) -> Iterator[Row]:
    """The rows of JSONL."""
    for line in lines:
        where = f"line {line.number}"
        if line.problem:
            yield Row(where, {}, SampleError("broken text", line.problem))
        elif line.text.strip():
            try:
                row = json.loads(line.text.strip(), object_pairs_hook=_unique)
            except json.JSONDecodeError as error:
                yield Row(where, {}, SampleError("broken json", f"{error.msg} at character {error.colno}"))
                continue
            except (ValueError, RecursionError) as error:  # a field twice, too many digits, nested too deep
                yield Row(where, {}, SampleError("broken json", str(error)))
                continue
            if isinstance(row, dict):
                yield Row(where, row)
            else:
                yield Row(where, {}, SampleError("broken json", f"a {type(row).__name__}, expected an object"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has {shorten(twice)} twice")
    return found


def _split_tabs(lines: Iterable[_Line]) -> Iterator[_Record]:
    for line in lines:
        if line.problem:
            yield _Record(line.number, [], SampleError("broken text", line.problem))
        elif text := line.text.rstrip("\r\n"):
            yield _Record(line.number, text.split("\t"))


def _split_commas(lines: Iterator[_Line]) -> Iterator[_Record]:
    """Records of CSV, of one line or of several; where a quote is not closed as it should, only its line is lost."""
    waiting: deque[_Line] = deque()
    while line := (waiting.popleft() if waiting else next(lines, None)):
        if line.problem:
            yield _Record(line.number, [], SampleError("broken text", line.problem))
            continue
        more: list[_Line] = []  # what was read after it

        def feed(first: _Line = line, more: list[_Line] = more) -> Iterator[str]:
            yield first.text
            length = len(first.text)
            while length < LONGEST_RECORD and (further := waiting.popleft() if waiting else next(lines, None)):
                more.append(further)
                if further.problem:
                    return
                length += len(further.text)
                yield further.text

        try:
            cells = next(csv.reader(feed(), strict=True), [])
        except csv.Error as error:
            waiting.extendleft(reversed(more))
            yield _Record(line.number, [], SampleError("broken row", f"{error}: is a quote open, or not doubled?"))
        else:
            if any(cells):
                yield _Record(line.number, cells)


def _named(
    path: Path, records: Iterator[_Record], delimiter: str, image_column: str | None, caption_column: str | None
) -> Iterator[Row]:
    """Cells by the names in the first record."""
    first = next(records, None)
    if first is None:
        return
    if first.problem is not None:
        raise InputError(f"The first line of {path} cannot be read ({first.problem}); expected names of columns there.")
    header = [name.strip().strip("\ufeff") or f"column {number}" for number, name in enumerate(first.cells, 1)]
    unnamed = set(header) - {name.strip() for name in first.cells}
    check_columns(path, header, image_column, caption_column)
    for line, cells, problem in records:
        where = f"line {line}"
        if problem is None and (len(cells) < len(header) or any(map(str.strip, cells[len(header) :]))):
            problem = SampleError("broken row", f"{len(cells)} cells under {len(header)} columns")
        if problem is not None:
            yield Row(where, {}, problem)
            continue
        named = {name: cell for name, cell in zip(header, cells, strict=False) if cell or name not in unnamed}
        inside = [part for cell in cells for part in cell.split("\n")[1:-1] if part.count(delimiter) == len(header) - 1]
        notes: tuple[tuple[Reason, str], ...] = ()
        if inside and len(header) > 1:
            detail = f"{where}: a quoted cell holds what looks like rows, as {shorten(inside[0])}"
            notes = (("several rows in one cell", detail),)
        yield Row(where, named, notes=notes)
