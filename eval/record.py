"""The record of one evaluation: what was measured, how, on what; one JSON file that `star compare` reads.

Everything but `times` and `speed` is a function of (model, seed, options, benchmark, protocol): the same evaluation
gives the same record, in one go or continued after a kill. Scores of single pictures lie beside it in
`<record>/pictures.jsonl` (one `Picture` a line, in the order of keys), the pictures themselves in
`<record>/pictures/<key>.png`.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.errors import InputError
from generators.config import from_dict, to_dict

FORMAT = 2
OVERALL = "overall"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its 95 % interval, where one was computed, and the number of pictures behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    pictures: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """All that has to be equal for two numbers to be compared."""

    name: str
    benchmark: str  # name of the folder or zip
    prompts: str  # sha256 of ids, categories and prompts
    references: str  # sha256 of the reference pictures' bytes
    pictures: int  # N
    reference_size: tuple[int, int] | None  # (H, W) that references were resized to; None: as they are
    resize: str  # the rule by which drawn pictures and references reach that size, e.g. "lanczos-antialias"
    file_format: str = "png"  # that drawn pictures went through
    pictures_per_prompt: int = 1
    extractors: dict[str, str] = field(default_factory=dict)  # name: digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was scored: a model that drew, or a folder of pictures made elsewhere."""

    name: str
    source: Literal["model", "folder"]
    digest: str  # of config and weights, or of the folder's pictures
    family: str = ""
    parameters: int = 0  # of all that draws: text encoder, generator, decoder
    resolution: tuple[int, int] | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Seconds per picture at one batch size, after warm-up and with synchronisation, medians over repetitions."""

    batch: int
    total: float
    text: float
    generator: float
    decoder: float
    repetitions: int
    peak_bytes: int  # resident set on a CPU, allocated memory on a GPU
    device: str
    threads: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """See the module's text. metrics: group ("overall", or a category) -> metric name of `eval.metrics` -> estimate.

    references: the same of the reference pictures themselves, for metrics that need nothing but a picture and its
    prompt: what a perfect copy of the benchmark would reach.
    """

    format: int = FORMAT
    protocol: Protocol
    measured: Measured
    metrics: dict[str, dict[str, Estimate]]
    references: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason: ids left out, by what the layout tolerates
    converted: dict[str, list[str]] = field(default_factory=dict)  # what was done to read pictures: ids of these
    speed: tuple[Speed, ...] = ()
    times: dict[str, float] = field(default_factory=dict)  # seconds spent; the only part that may differ


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One line of pictures.jsonl. scores: metric name -> value, of the metrics that judge single pictures."""

    key: str
    category: str
    prompt: str
    scores: dict[str, float] = field(default_factory=dict)


def folder_of(path: str | Path) -> Path:
    """The folder beside a record: <record> for <record>.json."""
    return Path(path).with_suffix("")


def read(path: str | Path) -> Record:
    """Reads a record. Raises InputError if there is none, it is damaged, or of another format."""
    try:
        values = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(
            f"the record {path} cannot be read ({error.strerror}): give a JSON file of `star eval`"
        ) from error
    except ValueError as error:
        raise InputError(f"the record {path} is no JSON ({error}): run `star eval` again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise InputError(f"the record {path} has format {found!r}, expected {FORMAT}: run `star eval` again")
    return from_dict(Record, values, str(path))


def write(record: Record, path: str | Path) -> None:
    """Writes a record whole or not at all. Raises InputError if the place cannot be written."""
    _write(Path(path), [json.dumps(to_dict(record), indent=1, ensure_ascii=False)])


def read_pictures(path: str | Path) -> list[Picture]:
    """The pictures of the record at `path`; none where the record came without its folder.

    Raises InputError for a damaged line.
    """
    lines = folder_of(path) / "pictures.jsonl"
    try:
        texts = lines.read_text().rstrip("\n").split("\n")  # a prompt may hold other characters that end lines
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{lines} cannot be read ({error.strerror}): run `star eval` again") from error
    pictures = []
    for number, text in enumerate(texts, 1):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError(f"line {number} of {lines} is no JSON ({error}): run `star eval` again") from error
        if not isinstance(values, dict):
            raise InputError(f"line {number} of {lines} is no object: run `star eval` again")
        pictures.append(from_dict(Picture, values, f"line {number} of {lines}"))
    return pictures


def write_pictures(pictures: Iterable[Picture], path: str | Path) -> None:
    """Writes pictures.jsonl of the record at `path`, whole or not at all."""
    _write(folder_of(path) / "pictures.jsonl", (json.dumps(to_dict(p), ensure_ascii=False) for p in pictures))


def _write(path: Path, lines: Iterable[str]) -> None:
    staging = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("w") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give another --out") from error
