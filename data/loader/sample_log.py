"""A log of every sample that a process was handed, to be held against the promise that none is missed or repeated.

One line per batch in `samples-<rank>.jsonl`: {"batch": 7, "keys": [...], "epochs": [...]}.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from star.data.errors import InputError
from star.data.loader.pipeline import Batch


def logged(batches: Iterator[Batch], folder: Path, rank: int, start: int, world: int = 1) -> Iterator[Batch]:
    """The batches, number `start` first, each written down before it is handed on.

    Lines of an earlier run from that number on are dropped, also those of processes that are no more: a run that
    continues takes those batches again. Raises InputError if the log cannot be written.
    """
    path = folder / f"samples-{rank}.jsonl"
    gone = [other for other in folder.glob("samples-*.jsonl") if _rank(other) >= world] if rank == 0 else []
    for file in (path, *gone):
        _replace(file, "".join(f"{line}\n" for line in _lines(file) if _number(line) < start))
    for number in count(start):
        batch = next(batches)
        _append(path, json.dumps({"batch": number, "keys": batch.keys, "epochs": batch.epochs}) + "\n")
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


def _replace(path: Path, text: str) -> None:
    """Writes the file anew, whole or not at all."""
    partial = path.with_suffix(".part")
    with _refusals(path):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def _append(path: Path, text: str) -> None:
    with _refusals(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); make room, or log no samples.") from error
