"""Lists of pictures to draw: lines, CSV or JSONL, each row with a prompt and what belongs to it.

    a red apple                                                   .txt or anything else: a prompt a line
    prompt,seed,top_k,category                                    .csv, .tsv: a head with the names of the columns
    {"prompt": "a red apple", "seed": 3, "options": {"top_k": 9}} .jsonl, .ndjson: options inside or beside

A row may name `prompt`, `seed`, `negative_prompt` and any option of drawing. Other columns are kept and come with the
record of the picture; one that is nearly called as an option is taken for a mistake.
"""

import csv
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from star.data.errors import InputError
from star.data.files import parse_json, read_all, read_bytes, shorten

STDIN = "-"
MOST_BYTES = 2**28  # of a list
ROW_VALUES = 1000  # of one row of JSON
LISTS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
OWN = ("prompt", "seed", "negative_prompt", "options")
NEAR = 0.75  # likeness of two names from which one is taken for the other, misspelt


@dataclass(frozen=True, slots=True)
class Request:
    """One picture to draw. options: fields of SampleOptions that this one has of its own. more: columns of its row."""

    prompt: str
    seed: int
    negative_prompt: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def read(source: str, seeds: range, negative_prompt: str | None = None) -> list[Request]:
    """The pictures of a list: a file, or "-" for standard input, in the order of its rows.

    seeds: of every row that names none; one that does begins there, and has as many. Raises InputError that names the
    row for anything that cannot be drawn.
    """
    data, where = _bytes(source), "standard input" if source == STDIN else source
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is no text in UTF-8 (byte {error.start}): save it as UTF-8") from error
    suffix = Path(source).suffix.lower()
    if source == STDIN and text.lstrip().startswith("{"):
        suffix = ".jsonl"
    lines = text.splitlines()
    if suffix in (".jsonl", ".ndjson"):
        rows = _objects(lines, where)
    elif suffix in (".csv", ".tsv"):
        rows = _table(text, "\t" if suffix == ".tsv" else ",", where)
    else:
        rows = ((f"{where} line {n}", {"prompt": line.strip()}) for n, line in enumerate(lines, 1) if line.strip())
    requests = [request for place, row in rows for request in _requests(place, row, seeds, negative_prompt)]
    if not requests:
        raise InputError(f"{where} holds no prompt, expected one a line, or a table with a column prompt: add some")
    return requests


def notice_file_names(prompts: Sequence[str]) -> None:
    """Raises InputError where a prompt is the name of a file that is there, which hardly anybody wants drawn."""
    for prompt in prompts:
        suffix = Path(prompt).suffix.lower()
        if not suffix or " " in suffix or len(prompt) > 1000 or "\0" in prompt:
            continue
        option = "--like" if suffix in PICTURES else "--prompts"
        if Path(prompt).is_file():
            raise InputError(
                f"the prompt {prompt!r:.80} is a file: give {option} {prompt}, or the words and a full stop"
            )
        if suffix in (*LISTS, *PICTURES) and " " not in prompt:
            print(
                f"star: the prompt {prompt!r:.80} looks like a file, which is not there: its words are drawn",
                file=sys.stderr,
            )


def _bytes(source: str) -> bytes:
    try:
        if source == STDIN:
            return read_all(sys.stdin.buffer, MOST_BYTES)
        return read_bytes(Path(source), MOST_BYTES)
    except OSError as error:
        where = "standard input" if source == STDIN else source
        raise InputError(
            f"the prompts of {where} cannot be read ({error.strerror or error}): give a file of prompts, or -"
        ) from error


def _objects(lines: Iterable[str], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        try:
            row = parse_json(line.encode(), ROW_VALUES, strict=True)
        except ValueError as error:
            raise InputError(f"{place} is no JSON ({shorten(error, 100)}): correct it") from error
        if not isinstance(row, dict):
            raise InputError(f"{place} is a {type(row).__name__}, expected an object with a prompt: correct it")
        options = row.get("options", {})
        if not isinstance(options, dict):
            raise InputError(f"{place} has options that are no object, expected names and values: correct it")
        if twice := sorted(set(options) & set(row)):
            raise InputError(f"{place} has {twice[0]} twice, in its options and beside them: remove one")
        yield place, {name: value for name, value in row.items() if name != "options"} | options


def _table(text: str, delimiter: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cells that are empty count as not given, except a prompt's."""
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        if "prompt" not in head or len(set(head)) < len(head):
            raise InputError(
                f"{where} has the columns {shorten(', '.join(head), 100) or 'none'}, expected different names, one of "
                "them prompt, in its first line: add them"
            )
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            place = f"{where} line {reader.line_num}"
            if len(cells) != len(head):
                raise InputError(f"{place} has {len(cells)} cells under {len(head)} columns: correct it")
            row = {name: cell for name, cell in zip(head, cells, strict=True) if cell or name == "prompt"}
            yield place, {name: _number(name, cell) for name, cell in row.items()}
    except csv.Error as error:
        raise InputError(f"{where} line {reader.line_num} is no row of a table ({error}): correct it") from error


def _number(name: str, cell: str) -> Any:
    """A cell in the type of its option; as it stands where it has none, or is not of it."""
    from star.generators.protocol import SampleOptions

    kind = int if name == "seed" else get_type_hints(SampleOptions).get(name, str)
    if kind is bool:
        return {"true": True, "false": False}.get(cell.strip().lower(), cell)
    if kind not in (int, float):
        return cell
    try:
        return kind(cell)
    except ValueError:
        return cell


def _requests(place: str, row: dict[str, Any], seeds: range, negative_prompt: str | None) -> Iterator[Request]:
    from star.generators.config import from_dict
    from star.generators.protocol import LARGEST_SEED, SampleOptions
    from star.generators.renamed import OPTIONS, now_called

    known = [option.name for option in fields(SampleOptions)]
    for name in row:
        if name in OPTIONS:
            raise InputError(f"{place}: {now_called(name, row[name])}")
        if name not in (*known, *OWN) and (near := difflib.get_close_matches(name, (*known, *OWN), 1, NEAR)):
            raise InputError(f"{place} has {name!r}, which is no option of drawing; did you mean {near[0]}?")
    prompt, negative = row.get("prompt"), row.get("negative_prompt", negative_prompt)
    for name, value in (("prompt", prompt), ("negative_prompt", negative or "")):
        if not isinstance(value, str):
            raise InputError(f"{place} has {name} {shorten(repr(value), 60)}, expected a text: correct it")
    first = row.get("seed", seeds.start)
    if type(first) is not int or not 0 <= first <= LARGEST_SEED + 1 - len(seeds):
        raise InputError(f"{place} has seed {shorten(repr(first), 60)}, expected a whole number from 0 on: correct it")
    options = {name: row[name] for name in known if name in row}
    from_dict(SampleOptions, options, place)  # refuses what is out of range
    more = {name: value for name, value in row.items() if name not in (*known, *OWN)}
    assert isinstance(prompt, str)
    for seed in range(first, first + len(seeds)):
        yield Request(prompt, seed, negative, options, more)
