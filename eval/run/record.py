"""The record of one evaluation: what was measured, how, on what; one JSON file that `star compare` reads.

Everything but `times` and `speed` is a function of (model, seed, options, benchmark, protocol): the same evaluation
gives the same record, in one go or continued after a kill. Scores of single pictures lie beside it in
`<record>/pictures.jsonl` (one `Picture` a line, in the order of keys), the pictures themselves in
`<record>/pictures/<key>.png`.

A record may come from anybody: it is read within bounds, its numbers are numbers, and a key names a file of its folder.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from star.data.errors import InputError
from star.data.files import MIB, parse_json, read_bytes, shorten
from star.generators.config import from_dict, to_dict
from star.generators.renamed import translate_options

FORMAT = 2
OVERALL = "overall"
MAX_BYTES, MAX_PARTS = 32 * MIB, 10**6  # of a record; that of 30,000 pictures and 20 metrics has some 100 kB
MAX_LINES_BYTES, MAX_LINES_PARTS = 256 * MIB, 4 * 10**6  # of pictures.jsonl; that of 30,000 pictures has 15 MB
MAX_LINE = MIB // 2  # bytes
MAX_TEXT = 4096  # characters of a name
MAX_PROMPT = 2**16  # characters
MAX_GROUPS, MAX_METRICS = 4096, 128  # categories; metrics of each
FILE_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}")  # what names the file of a picture
LARGEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its 95 % interval, where one was computed, and the number of pictures behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    pictures: int

    def __post_init__(self) -> None:
        _check_numbers(self)
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval begins at {self.low} and ends at {self.high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """All that has to be equal for two numbers to be compared."""

    name: str
    benchmark: str  # name of the folder or zip
    prompts: str  # sha256 of ids, categories and prompts
    references: str  # sha256 of the reference pictures' bytes
    pictures: int  # N
    reference_size: tuple[int, int] | None  # (H, W) that references were resized to; None: as they are
    resize: str  # the rule by which generated pictures and references reach that size, e.g. "lanczos-antialias"
    file_format: str = "png"  # that generated pictures went through
    pictures_per_prompt: int = 1
    extractors: dict[str, str] = field(default_factory=dict)  # name: digest

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_texts(self.name, self.benchmark, self.prompts, self.references, self.resize, self.file_format)
        _check_texts(*self.extractors, *self.extractors.values())
        if len(self.extractors) > MAX_METRICS:
            raise ValueError(f"{len(self.extractors)} networks, at most {MAX_METRICS} are read")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was scored: a model that drew, or a folder of external images."""

    name: str
    source: Literal["model", "folder"]
    digest: str  # of config and weights, or of the folder's pictures
    family: str = ""
    parameters: int = 0  # of all that draws: text encoder, generator, decoder
    resolution: tuple[int, int] | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # name: number or word
    dtype: str = "float32"  # that a model drew in; records from before this was a choice are of float32
    device: str = ""  # that a model drew on: "cpu" or "cuda"; "" where nobody wrote it down
    images_seen: int = 0  # pictures that training showed to a model, repeats counted; 0 where nobody wrote it down
    remark: str = ""  # what the model says of how it draws these prompts, see star.generators.protocol.remark_of

    @staticmethod
    def translate(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options under the names of today; star.generators.config.from_dict reads through this."""
        options = values.get("options")
        return {**values, "options": translate_options(options)} if isinstance(options, Mapping) else values

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_texts(self.name, self.digest, self.family, self.dtype, self.device, self.remark, *self.options)
        for name, value in self.options.items():
            if not isinstance(value, bool | int | float | str | None):
                raise ValueError(f"the option {name} is no number and no word")
            _check_texts(str(value) if not isinstance(value, int) or abs(value) <= LARGEST else "x" * (MAX_TEXT + 1))


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
    dtype: str = "float32"
    kernels: tuple[str, ...] = ()  # what attention ran on, and why, where the family tells

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_texts(self.device, self.dtype, *self.kernels)
        if self.total <= 0:
            raise ValueError("a picture takes more than 0 seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """See the module's text. metrics: group ("overall", or a category) -> metric name of `star.eval.metrics.registry`
    -> estimate.

    references: the same of the reference pictures themselves, for metrics that need nothing but a picture and its
    prompt: what a perfect copy of the benchmark would reach.
    """

    format: int = FORMAT
    protocol: Protocol
    measured: Measured
    metrics: dict[str, dict[str, Estimate]]
    references: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # metric: why it is left out, or what there is to know of it
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason: ids left out, by what the layout tolerates
    converted: dict[str, list[str]] = field(default_factory=dict)  # what was done to read pictures: ids of these
    speed: tuple[Speed, ...] = ()
    bootstrap: int | None = None  # resamples asked for behind each interval, 0 for none; None: unknown
    times: dict[str, float] = field(default_factory=dict)  # seconds spent; the only part that may differ

    def __post_init__(self) -> None:
        _check_numbers(self)
        for groups in (self.metrics, self.references):
            if len(groups) > MAX_GROUPS or any(len(metrics) > MAX_METRICS for metrics in groups.values()):
                raise ValueError(f"at most {MAX_GROUPS} groups of {MAX_METRICS} metrics are read")
            _check_texts(*groups, *(name for metrics in groups.values() for name in metrics))
        for places in (self.skipped, self.converted):
            _check_texts(*places)
        _check_texts(*self.notes, *self.notes.values())
        if len(self.notes) > MAX_METRICS:
            raise ValueError(f"notes on {len(self.notes)} metrics, at most {MAX_METRICS} are read")
        if len(self.speed) > MAX_METRICS:
            raise ValueError(f"{len(self.speed)} batch sizes, at most {MAX_METRICS} are read")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One line of pictures.jsonl. scores: metric name -> value, of the metrics per picture."""

    key: str
    category: str
    prompt: str
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not FILE_NAME.fullmatch(self.key):
            raise ValueError(f"its key {shorten(repr(self.key), 80)} cannot name a file of its folder")
        _check_texts(self.category)
        if len(self.prompt) > MAX_PROMPT:
            raise ValueError(f"its prompt has {len(self.prompt)} characters, at most {MAX_PROMPT} are read")
        _check_all(self.scores.items())


def _check_numbers(instance: Any) -> None:
    """Raises ValueError for a field that is NaN or infinite, and for whole numbers below 0 or that no counter holds."""
    _check_all(
        (one.name, value) for one in fields(instance) if not isinstance(value := getattr(instance, one.name), str)
    )


def _check_all(values: Iterable[tuple[str, Any]]) -> None:
    for name, value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, expected a number")
        if isinstance(value, int) and not 0 <= value <= LARGEST:
            raise ValueError(f"{name} is no count")
        if isinstance(value, tuple):
            _check_all((name, one) for one in value)


def _check_texts(*texts: str) -> None:
    for text in texts:
        if len(text) > MAX_TEXT:
            raise ValueError(f"{shorten(text, 40)} has {len(text)} characters, at most {MAX_TEXT} are read")


def folder_of(path: str | Path) -> Path:
    """The folder beside a record: <record> for <record>.json."""
    return Path(path).with_suffix("")


def read(path: str | Path) -> Record:
    """Reads a record. Raises InputError if there is none, it is damaged, past the bounds, or of another format."""
    try:
        values = parse_json(read_bytes(Path(path), MAX_BYTES), MAX_PARTS, strict=True)
    except OSError as error:
        raise InputError(
            f"the record {path} cannot be read ({error.strerror}): give a JSON file of `star eval`"
        ) from error
    except ValueError as error:
        raise InputError(f"the record {path} is no JSON ({error}): run `star eval` again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise InputError(
            f"the record {path} has format {shorten(repr(found), 40)}, expected {FORMAT}: run `star eval` again"
        )
    record = _built(Record, values, str(path))
    if OVERALL not in record.metrics:
        raise InputError(f"the record {path} has no group {OVERALL!r} of metrics: run `star eval` again")
    return record


def write(record: Record, path: str | Path) -> None:
    """Writes a record whole or not at all. Raises InputError if the place cannot be written."""
    write_lines(Path(path), [json.dumps(to_dict(record), indent=1, ensure_ascii=False, allow_nan=False)])


def read_pictures(path: str | Path) -> list[Picture]:
    """The pictures of the record at `path`; none where the record came without its folder.

    Raises InputError for a damaged line, one whose key leads out of the folder, and a file past the bounds.
    """
    lines = folder_of(path) / "pictures.jsonl"
    try:
        data = read_bytes(lines, MAX_LINES_BYTES)
        if (parts := sum(map(data.count, (b"{", b"[", b",")))) > MAX_LINES_PARTS:
            raise ValueError(f"{parts:,} parts, at most {MAX_LINES_PARTS:,} are read")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{lines} cannot be read ({error.strerror}): run `star eval` again") from error
    except ValueError as error:
        raise InputError(f"{lines} has {error}: run `star eval` again") from error
    pictures, keys = [], set[str]()
    for number, line in enumerate(data.rstrip(b"\n").split(b"\n"), 1):  # a prompt may hold others that end lines
        where = f"line {number} of {lines}"
        if len(line) > MAX_LINE:
            raise InputError(f"{where} has {len(line)} bytes, at most {MAX_LINE} are read: run `star eval` again")
        try:
            values = parse_json(line, MAX_LINE, strict=True)
        except ValueError as error:
            raise InputError(f"{where} is no JSON ({error}): run `star eval` again") from error
        if not isinstance(values, dict):
            raise InputError(f"{where} is no object: run `star eval` again")
        picture = _built(Picture, values, where)
        if picture.key in keys:
            raise InputError(f"{where} has the key {picture.key} a second time: run `star eval` again")
        keys.add(picture.key)
        pictures.append(picture)
    return pictures


def write_pictures(pictures: Iterable[Picture], path: str | Path) -> None:
    """Writes pictures.jsonl of the record at `path`, whole or not at all."""
    lines = (json.dumps(to_dict(picture), ensure_ascii=False, allow_nan=False) for picture in pictures)
    write_lines(folder_of(path) / "pictures.jsonl", lines)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file whole or not at all. Raises InputError if the place cannot be written."""
    staging = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what matters is why it could not be written
            staging.unlink()
        raise InputError(
            f"{path} cannot be written ({error.strerror}): make room, or give a place that can be written"
        ) from error


def _built(kind: Any, values: dict[str, Any], where: str) -> Any:
    """As `from_dict`, with a sentence of a length that can be read."""
    try:
        return from_dict(kind, values, where)
    except InputError as error:
        raise InputError(shorten(error, 600)) from error
