"""A log of every sample that a process was handed, to be held against the promise that none is missed or repeated.

One line per batch in `samples-<rank>.jsonl`: {"batch": 7, "keys": [...], "epochs": [...]}.
"""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from data.errors import InputError
from data.pipeline import Batch


def logged(batches: Iterator[Batch], folder: Path, rank: int, start: int, world: int = 1) -> Iterator[Batch]:
    """The batches, number `start` first, each written down before it is handed on.

    Lines of an earlier run from that number on are dropped, also those of processes that are no more: a run that
    continues takes those batches again. Raises InputError if the log cannot be written.
    """
    path = folder / f"samples-{rank}.jsonl"
    gone = [other for other in folder.glob("samples-*.jsonl") if _rank(other) >= world] if rank == 0 else []
    for file in (path, *gone):
        kept = file.with_suffix(".part")
        _write(kept, "".join(f"{line}\n" for line in _lines(file) if _number(line) < start), "w")
        kept.replace(file)
    for number in count(start):
        batch = next(batches)
        _write(path, json.dumps({"batch": number, "keys": batch.keys, "epochs": batch.epochs}) + "\n", "a")
        yield batch


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _number(line: str) -> float:
    try:
        return int(json.loads(line)["batch"])
    except (ValueError, KeyError, TypeError):  # the line in which the run was killed
        return float("inf")


def _rank(path: Path) -> int:
    number = path.stem.partition("-")[2]
    return int(number) if number.isdecimal() else -1


def _write(path: Path, text: str, mode: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); make room, or log no samples.") from error
