"""The checkpoints of a training run on disk: written whole or not at all, newest found, old ones pruned.

A checkpoint is a folder `step-00001000` with `state.pt` (tensors and plain containers) and `run.json`; where parameters
are cut over processes (`fsdp.py`), the pieces are in `pieces/`. It is written under another name, flushed to the
disk and then renamed, so whatever carries the name `step-...` is complete, and the newest is the one with the highest
number: no pointer file can be half-written or point astray.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from star.data.disk import refusal
from star.data.errors import InputError
from star.data.files import read_json
from star.generators.pickle_loader import content

NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Snapshot:
    """One complete checkpoint: the number of finished steps, and its folder."""

    step: int
    path: Path

    def about(self) -> dict[str, Any]:
        """What was recorded beside the state: config, processes, pictures seen."""
        return read_json(self.path / "run.json", "the record of a training run")

    def state(self) -> dict[str, Any]:
        """The state on the CPU. Raises InputError if the file cannot be read."""
        try:
            content(self.path / "state.pt")  # refuses what no training run writes, see pickle_loader.py
            return torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"checkpoint {self.path} cannot be read ({type(error).__name__}: {_first_line(error)}); expected what "
                "a training run wrote: remove this folder to continue from the one before"
            ) from error


def snapshots(folder: Path) -> list[Snapshot]:
    """Every complete checkpoint, oldest first; none if the folder is missing."""
    if not folder.is_dir():
        return []
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted((Snapshot(int(match[1]), path) for match, path in found if match), key=lambda snapshot: snapshot.step)


def write(folder: Path, step: int, state: Mapping[str, Any], about: Mapping[str, Any], keep: int) -> Snapshot:
    """Writes one checkpoint and removes all but the newest `keep`.

    Raises InputError if the disk refuses (full, read-only); the checkpoints that were there stay.
    """
    with refusals(folder, step):
        begin(folder, step)
        return finish(folder, step, state, about, keep)


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into; what an interrupted one left behind is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".unfinished-*"):
        shutil.rmtree(leftover)
    unfinished(folder, step).mkdir()
    return unfinished(folder, step)


def unfinished(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is while it is being written."""
    return folder / f".unfinished-{step:08d}"


def finish(folder: Path, step: int, state: Mapping[str, Any], about: Mapping[str, Any], keep: int) -> Snapshot:
    """Adds state and record to what `begin` began, flushes all of it, gives it its name, and removes old ones."""
    final, place = folder / f"step-{step:08d}", unfinished(folder, step)
    with (place / "state.pt").open("wb") as file:  # given a path, torch tells of a full disk by file positions alone
        torch.save(dict(state), file)
    (place / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for path in (*place.rglob("*"), place):
        _flush(path)
    if final.exists():  # left by a run that was asked to start anew at this step
        shutil.rmtree(final)
    place.rename(final)
    _flush(folder)
    for old in snapshots(folder)[:-keep]:
        shutil.rmtree(old.path, ignore_errors=True)
    return Snapshot(step, final)


@contextlib.contextmanager
def refusals(folder: Path, step: int) -> Iterator[None]:
    """Turns what the disk refuses into an InputError that says how much room there is and what is still good.

    Whatever ends the writing, an interruption too, what is unfinished is removed.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(unfinished(folder, step), ignore_errors=True)
        told = refusal(error, f"the checkpoint of step {step} in {folder}")
        if told is None and not isinstance(error, (OSError, RuntimeError)):
            raise
        free = f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free" if folder.is_dir() else "no such folder"
        kept = snapshots(folder)
        last = f"the last good one is {kept[-1].path}" if kept else "there is none before it"
        what = str(told) if told else f"the checkpoint of step {step} could not be written ({_first_line(error)})"
        raise InputError(f"{what}, then continue with --resume; {free}, {last}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
