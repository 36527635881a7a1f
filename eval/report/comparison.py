"""Records side by side, as far as they may stand side by side.

    comparison = gather(["a.json", "b.json"])       # refuses records of different protocols, and says how they differ
    comparison.names("overall")                      # metrics that at least one record has, in a fixed order
    comparison.marks("overall", "fd/judge-emoji")    # per record: "best", "tied" with the best, "" or None

Two estimates differ where each value lies outside the other's interval; whatever does not differ from the best shares
its place. Nothing is ranked among records of different protocols.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from star.data.errors import InputError
from star.eval.metrics import registry
from star.eval.metrics.registry import metric
from star.eval.run.record import OVERALL, Estimate, Picture, Record, read, read_pictures
from star.generators.config import differences, to_dict

log = logging.getLogger(__name__)

Mark = Literal["best", "tied", ""]
RANKED = 30  # pictures that a category needs to be ranked, or to be an axis of a radar
SHORT = 12  # characters of a digest that people read


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One record of a comparison. label: what tells it from the others; pictures: empty where its folder is gone."""

    label: str
    path: Path
    record: Record
    pictures: tuple[Picture, ...] = ()

    def estimate(self, group: str, name: str) -> Estimate | None:
        return self.record.metrics.get(group, {}).get(name)

    def real(self, group: str, name: str) -> Estimate | None:
        """The score of the real pictures themselves, which metrics per picture have."""
        return self.record.references.get(group, {}).get(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Records in the order given. mixed: fields of the protocol that differ, with the value in each record."""

    entries: tuple[Entry, ...]
    mixed: dict[str, tuple[Any, ...]]

    def names(self, group: str = OVERALL) -> list[str]:
        """Metrics of a group that some record has, in the order of the registry, then by extractor."""
        found = {name for entry in self.entries for name in entry.record.metrics.get(group, {})}
        order = registry.names()
        for name in found:
            metric(name)  # refuses kinds that this version does not know
        return sorted(found, key=lambda name: (order.index(name.partition("/")[0]), name))

    def categories(self) -> list[str]:
        """Groups other than the overall one, in order."""
        return sorted({group for entry in self.entries for group in entry.record.metrics} - {OVERALL})

    def ranked(self, group: str, name: str) -> bool:
        """Whether a group has pictures enough for its figures to be ranked; all pictures together always have."""
        found = (entry.estimate(group, name) for entry in self.entries)
        return group == OVERALL or all(estimate.pictures >= RANKED for estimate in found if estimate is not None)

    def marks(self, group: str, name: str) -> list[Mark]:
        """For every entry: "best", "tied" if not different from the best, else ""; all "" where one has no interval
        or a category has fewer than `RANKED` pictures."""
        estimates = [entry.estimate(group, name) for entry in self.entries]
        values = [estimate.value for estimate in estimates if estimate is not None]
        unsure = any(estimate is not None and estimate.low is None for estimate in estimates)
        if self.mixed or unsure or len(values) < 2 or not self.ranked(group, name):
            return [""] * len(estimates)
        top = (min if metric(name).direction == "lower" else max)(values)
        best = next(estimate for estimate in estimates if estimate is not None and estimate.value == top)
        return [_mark(estimate, best) for estimate in estimates]


def differ(one: Estimate, other: Estimate) -> bool:
    """Whether each value lies outside the other's interval; not, where one of them has none."""
    return _outside(one.value, other) and _outside(other.value, one)


def _outside(value: float, estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.high is not None and not estimate.low <= value <= estimate.high


def _mark(estimate: Estimate | None, best: Estimate) -> Mark:
    if estimate is None:
        return ""
    if estimate.value == best.value:
        return "best"
    return "" if differ(estimate, best) else "tied"


def gather(paths: Sequence[str | Path], mix_protocols: bool = False) -> Comparison:
    """Reads records and checks that they may be compared.

    Raises InputError, naming every one of them, for records that cannot be read, for a file given twice, and unless
    `mix_protocols` for those whose protocols differ, with each field and its values.
    """
    if not paths:
        raise InputError("no record was given, expected the JSON files of `star eval`: name at least one")
    records = _read_all([Path(path) for path in paths])
    _refuse_duplicates(records)
    mixed = _mixed([record for _, record in records])
    if mixed and not mix_protocols:
        names = short_names([path for path, _ in records])
        described = "; ".join(f"{field} is {_by_value(values, names)}" for field, values in mixed.items())
        raise InputError(
            f"the records were made by different protocols ({described}): compare records of one protocol, or add "
            "--mix-protocols, which marks every table"
        )
    labels = _labels([record for _, record in records])
    entries = [
        Entry(label=label, path=path, record=record, pictures=tuple(read_pictures(path)))
        for label, (path, record) in zip(labels, records, strict=True)
    ]
    return Comparison(entries=tuple(entries), mixed=mixed)


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names, with their folder where two are the same."""
    names = [path.name for path in paths]
    return [path.name if names.count(path.name) == 1 else "/".join(path.parts[-2:]) for path in paths]


def _read_all(paths: Sequence[Path]) -> list[tuple[Path, Record]]:
    records, failures = [], []
    for path in paths:
        try:
            records.append((path, read(path)))
        except InputError as error:
            failures.append(str(error))
    if failures:
        raise InputError("; ".join(failures))
    return records


def _refuse_duplicates(records: Sequence[tuple[Path, Record]]) -> None:
    """Raises InputError for one file given twice; that two files tell the same evaluation is said, and no mistake."""
    files: dict[Path, Path] = {}
    evaluations: dict[str, Path] = {}
    twice = []
    for path, record in records:
        if (file := path.resolve()) in files:
            twice.append(f"{path} is the same file as {files[file]}")
            continue
        files[file] = path
        values = to_dict(record)
        first = evaluations.setdefault(repr([values["protocol"], values["measured"]]), path)
        if first is not path:
            log.warning("%s tells the same evaluation as %s; both are shown.", path, first)
    if twice:
        raise InputError(f"{'; '.join(twice)}: name each record once")


def _mixed(records: Sequence[Record]) -> dict[str, tuple[Any, ...]]:
    """Dotted fields of the protocol in which any record differs from the first, with the value in every record."""
    protocols = [to_dict(record.protocol) for record in records]
    fields = dict.fromkeys(name for other in protocols[1:] for name, *_ in differences(protocols[0], other))
    return {field: tuple(_value(protocol, field) for protocol in protocols) for field in fields}


def _value(protocol: dict[str, Any], field: str) -> Any:
    top, _, rest = field.partition(".")  # an extractor's name may hold dots of its own
    return protocol[top].get(rest) if rest else protocol[top]


def _by_value(values: Sequence[Any], names: Sequence[str]) -> str:
    """ "256 in a.json and 1000 in b.json, c.json" """
    groups: dict[str, list[str]] = {}
    for value, name in zip(values, names, strict=True):
        groups.setdefault(display(value), []).append(name)
    return " and ".join(f"{value} in {', '.join(where)}" for value, where in groups.items())


def display(value: Any) -> str:
    """A field of a protocol as people read it: digests cut, sizes as H x W."""
    if value is None:
        return "none"
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:SHORT]
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return str(value)


def _labels(records: Sequence[Record]) -> list[str]:
    """The models' names; those of one name get what differs among them: seed, options, digest."""
    labels = []
    for record in records:
        own = to_dict(record.measured)
        others = [to_dict(other.measured) for other in records if other is not record]
        twins = [other for other in others if other["name"] == own["name"]]
        fields = dict.fromkeys(name for twin in twins for name, *_ in differences(twin, own))
        described = [_field(own, field) for field in fields if field.partition(".")[0] in ("seed", "options")]
        if twins and not described:
            described = [f"digest {display(own['digest'])}"] if "digest" in fields else []
        labels.append(f"{own['name']} ({', '.join(described)})" if described else own["name"])
    counts = {label: labels.count(label) for label in labels}
    return [
        label if counts[label] == 1 else f"{label} #{labels[: place + 1].count(label)}"
        for place, label in enumerate(labels)
    ]


def _field(values: dict[str, Any], field: str) -> str:
    value: Any = values
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return f"{field.rpartition('.')[2]} {value}"
