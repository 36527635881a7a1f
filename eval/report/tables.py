"""A comparison as tables: what stands in each cell, before it becomes HTML or Markdown, so that both say the same.

Metrics stand in rows and models in columns: an estimate and its interval take more width than a name does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from star.eval.metrics.registry import metric, sentences
from star.eval.report.comparison import RANKED, SHORT, Comparison, Entry, Mark, display
from star.eval.report.published import PUBLISHED
from star.eval.run.record import OVERALL, Estimate, Protocol, Speed
from star.generators.config import to_dict

MIXED = "Records of different protocols: figures in one row are not comparable, and nothing is ranked."
# Networks that share a part with some of the project's own models: no quite independent measure of these.
SEEN_IN_TRAINING = {
    "clip-emoji": "has a text tower that began as that of guide-emoji, but was in no training loss",
    "guide-emoji": "guided the training of the GANs, and its text tower conditions star-emoji and them",
}
ARROWS = {"lower": "↓", "higher": "↑"}
SPLIT = ("text", "generator", "decoder")
FIELDS = {  # of a protocol, as people read them
    "name": "protocol",
    "benchmark": "benchmark",
    "prompts": "prompts, sha256",
    "references": "reference pictures, sha256",
    "pictures": "pictures (N)",
    "reference_size": "size of references (H x W)",
    "resize": "resize rule",
    "file_format": "drawn pictures saved as",
    "pictures_per_prompt": "pictures per prompt",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """text: what is read first. detail: below it, smaller. title: the whole of what was cut."""

    text: str = ""
    detail: str = ""
    title: str = ""
    mark: Mark = ""
    number: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """name: where links lead. The first cell of a row names it. fold: to be hidden behind its title on a page."""

    name: str
    title: str
    note: str = ""
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    fold: Literal["none", "open", "closed"] = "none"
    warning: str = ""


def label_of(name: str) -> str:
    """A metric's title with the arrow that points to better: "FD ↓"."""
    about = metric(name)
    return f"{about.title} {ARROWS[about.direction]}"


def number(name: str, value: float) -> str:
    """A value with the digits of its metric, and a real minus."""
    return f"{value:.{metric(name).digits}f}".replace("-", "−")


def estimate_cell(name: str, estimate: Estimate | None, mark: Mark = "") -> Cell:
    """Value, and its interval as detail; where there is none, that."""
    if estimate is None:
        return Cell(text="–", number=True)
    interval = "no interval"
    if estimate.low is not None and estimate.high is not None:
        interval = f"{number(name, estimate.low)} to {number(name, estimate.high)}"
    return Cell(text=number(name, estimate.value), detail=interval, mark=mark, number=True)


def summary(comparison: Comparison) -> Table:
    """All metrics over all pictures."""
    return Table(
        name="summary",
        title="Results",
        note="Each figure with its 95 % bootstrap interval. Bold is the best of its row; ≈ marks what cannot be told "
        "from the best, because one of the two lies inside the other's interval. The arrow points to better. Where a "
        "figure has no interval (one picture, fewer than 20 resamples, values all alike), its row is not ranked."
        + "".join(f" † {name} {why}: no independent measure of these." for name, why in _seen(comparison).items())
        + "".join(f" {said[:1].upper()}{said[1:]}." for said in _notes(comparison)),
        head=("metric", *(entry.label for entry in comparison.entries)),
        rows=(
            *_budgets(comparison),
            (Cell(text="pictures scored"), *(_count(entry) for entry in comparison.entries)),
            *(row for name in comparison.names() for row in _summary_rows(comparison, name)),
        ),
        warning=MIXED if comparison.mixed else "",
    )


def _budgets(comparison: Comparison) -> list[tuple[Cell, ...]]:
    """What training showed to each model, where one of them says so."""
    seen = [entry.record.measured.images_seen for entry in comparison.entries]
    cells = (Cell(text=f"{images:,}" if images else "–", number=True) for images in seen)
    return [(Cell(text="images seen in training"), *cells)] if any(seen) else []


def _summary_rows(comparison: Comparison, name: str) -> list[tuple[Cell, ...]]:
    """The models' figures, and below them what the real pictures themselves reach, where it is known."""
    network = name.partition("/")[2]
    label = Cell(text=label_of(name), detail=f"{network} †" if network in SEEN_IN_TRAINING else network)
    rows = [(label, *_estimates(comparison, OVERALL, name))]
    real = [entry.real(OVERALL, name) for entry in comparison.entries]
    if any(real):
        label = Cell(text="the real pictures", detail=f"{label_of(name)} {network}")
        rows.append((label, *(estimate_cell(name, estimate) for estimate in real)))
    return rows


def _seen(comparison: Comparison) -> dict[str, str]:
    networks = {name.partition("/")[2] for name in comparison.names()}
    return {name: why for name, why in SEEN_IN_TRAINING.items() if name in networks}


def _notes(comparison: Comparison) -> list[str]:
    """What records say of metrics and models; of all where they say the same, with the models' names where not."""
    models: dict[str, list[str]] = {}
    for entry in comparison.entries:
        for sentence in sentences(entry.record.notes):
            models.setdefault(sentence, []).append(entry.label)
    every = len(comparison.entries)
    told = [said if len(of) == every else f"{said} ({', '.join(of)})" for said, of in models.items()]
    remarks = ((entry.record.measured.remark, entry.label) for entry in comparison.entries)
    return told + [f"{remark} ({label})" for remark, label in remarks if remark]


def _count(entry: Entry) -> Cell:
    """Generated pictures behind the figures, where one can tell; a metric may have left some out."""
    counts = sorted({estimate.pictures for estimate in entry.record.metrics.get(OVERALL, {}).values()})
    return Cell(text=" to ".join(f"{count:,}" for count in (counts[:1] + counts[1:][-1:])) or "–", number=True)


def _estimates(comparison: Comparison, group: str, name: str) -> list[Cell]:
    marks = comparison.marks(group, name)
    pairs = zip(comparison.entries, marks, strict=True)
    return [estimate_cell(name, entry.estimate(group, name), mark) for entry, mark in pairs]


def by_category(comparison: Comparison) -> list[Table]:
    """One table for each metric that was measured per category: categories in rows."""
    tables: list[Table] = []
    for name in comparison.names():
        groups = [group for group in comparison.categories() if name in comparison.names(group)]
        rows = [
            (Cell(text=group), Cell(text=_counts(comparison, group, name), number=True), *cells)
            for group in groups
            for cells in [_estimates(comparison, group, name)]
        ]
        if rows:
            tables.append(
                Table(
                    name=f"category-{len(tables)}",
                    title=f"{label_of(name)} by {name.partition('/')[2]}",
                    note=_unranked(comparison, groups, name),
                    head=("category", "N", *(entry.label for entry in comparison.entries)),
                    rows=tuple(rows),
                    fold="closed" if tables else "open",
                    warning=MIXED if comparison.mixed else "",
                )
            )
    return tables


def _unranked(comparison: Comparison, groups: Sequence[str], name: str) -> str:
    few = [group for group in groups if not comparison.ranked(group, name)]
    return f"Not ranked, and in no radar, with fewer than {RANKED} pictures: {', '.join(few)}." if few else ""


def _counts(comparison: Comparison, group: str, name: str) -> str:
    found = (entry.estimate(group, name) for entry in comparison.entries)
    return " / ".join(dict.fromkeys(f"{estimate.pictures:,}" for estimate in found if estimate is not None))


def models(comparison: Comparison) -> Table:
    """What was measured."""
    return Table(
        name="models",
        title="Models",
        note="Parameters count all that draws: text encoder, generator, decoder. Left out: prompts that the benchmark "
        "names but that could not be used.",
        head=("model", "family", "parameters", "H x W", "seed", "options", "left out", "digest"),
        rows=tuple(_model_row(entry) for entry in comparison.entries),
    )


def _model_row(entry: Entry) -> tuple[Cell, ...]:
    measured = entry.record.measured
    millions = f"{measured.parameters / 1e6:,.1f} M" if measured.parameters else "–"
    options = ", ".join(f"{name} {_plain(value)}" for name, value in measured.options.items())
    if measured.dtype not in ("", "float32"):
        options = f"{measured.dtype}, {options}"
    skipped = entry.record.skipped
    reasons = "; ".join(f"{reason}: {', '.join(keys)}" for reason, keys in skipped.items())
    return (
        Cell(text=entry.label),
        Cell(text=measured.family or f"a {measured.source} of pictures"),
        Cell(text=millions, title=f"{measured.parameters:,}", number=True),
        Cell(text=display(measured.resolution) if measured.resolution else "–", number=True),
        Cell(text=str(measured.seed) if measured.source == "model" else "–", number=True),
        Cell(text=options or "–"),
        Cell(text=str(sum(map(len, skipped.values()))), title=reasons, number=True),
        Cell(text=measured.digest[:SHORT], title=measured.digest),
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "default"


def protocol(comparison: Comparison) -> Table:
    """All fields of the protocol; a column for every record where they differ."""
    protocols = [_fields(entry.record.protocol) for entry in comparison.entries]
    names = dict.fromkeys(name for fields in protocols for name in fields)
    shown = protocols if comparison.mixed else protocols[:1]
    heads = [entry.label for entry in comparison.entries] if comparison.mixed else ["value"]
    none = Cell(text="none")
    return Table(
        name="protocol",
        title="Protocol",
        note="All of this has to be equal for two figures to be compared.",
        head=("field", *heads),
        rows=tuple((Cell(text=name), *(fields.get(name, none) for fields in shown)) for name in names),
        warning=MIXED if comparison.mixed else "",
    )


def _fields(protocol: Protocol) -> dict[str, Cell]:
    values = to_dict(protocol)
    extractors = values.pop("extractors")
    fields = {FIELDS[name]: Cell(text=display(value), title=str(value)) for name, value in values.items()}
    if protocol.reference_size is None:
        fields[FIELDS["reference_size"]] = Cell(text="as they are")
    networks = {f"network {name}": Cell(text=display(digest), title=digest) for name, digest in extractors.items()}
    return fields | networks


def speed(comparison: Comparison) -> Table | None:
    """Time and memory of every record that has them; None if no record does."""
    rows = [_speed_row(entry, one) for entry in comparison.entries for one in entry.record.speed]
    if not rows:
        return None
    return Table(
        name="speed",
        title="Speed and memory",
        note="Milliseconds per picture, from prompt to pixels: medians over the repetitions, after warm-up at the same "
        "batch size, the device synchronised at every reading. Peak memory is what tensors took on a GPU, and the "
        "resident set of the whole process on a CPU. Only rows of one device and as many threads compare.",
        head=("model", "batch", "total", *SPLIT, "peak MiB", "repetitions", "device", "threads"),
        rows=tuple(rows),
    )


def _speed_row(entry: Entry, one: Speed) -> tuple[Cell, ...]:
    times = [Cell(text=f"{1000 * t:,.1f}", number=True) for t in (one.total, *(getattr(one, part) for part in SPLIT))]
    return (
        Cell(text=entry.label),
        Cell(text=str(one.batch), number=True),
        *times,
        Cell(text=f"{one.peak_bytes / 2**20:,.0f}", number=True),
        Cell(text=str(one.repetitions), number=True),
        Cell(text=one.device),
        Cell(text=str(one.threads) if one.threads else "–", number=True),
    )


def published_numbers() -> Table:
    """The papers' own figures."""
    return Table(
        name="published",
        title="As reported by the papers",
        note="Not measured here and not comparable with the tables above, nor always with each other: prompts, resize "
        "rules, reference sizes and machines differ.",
        head=("system", "benchmark", "figures", "time per picture", "source"),
        rows=tuple(
            (
                Cell(text=line.system),
                Cell(text=line.benchmark or "–"),
                Cell(text=", ".join(f"{name} {value}" for name, value in line.figures.items()) or "–"),
                Cell(text=line.speed or "–"),
                Cell(text=f"as reported: {line.source}"),
            )
            for line in PUBLISHED
        ),
    )


def all_tables(comparison: Comparison) -> list[Table]:
    """Every table, in the order of the Markdown file."""
    timed = speed(comparison)
    return [
        summary(comparison),
        models(comparison),
        protocol(comparison),
        *by_category(comparison),
        *([timed] if timed else []),
        published_numbers(),
    ]
