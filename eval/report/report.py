"""A comparison as two files: comparison.html, a page that stands alone, and comparison.md with the same figures."""

import contextlib
import shlex
from pathlib import Path

from markupsafe import Markup

from star.data.errors import InputError
from star.eval.commands.evaluate import OPTIONS
from star.eval.report import gallery, plots, tables
from star.eval.report.comparison import Comparison, short_names
from star.eval.report.html import Section, document, figures, macro
from star.eval.report.markdown import escaped, to_markdown
from star.eval.run import external_images
from star.eval.run.audit import UNREADABLE
from star.eval.run.protocols import PROTOCOLS
from star.eval.run.record import OVERALL, Record

TITLE = "Text to image, measured side by side"
ROWS = 24  # prompts of the gallery


def write_report(
    comparison: Comparison, out: str | Path, rows: int = ROWS, benchmark: str | Path | None = None
) -> tuple[Path, Path]:
    """Writes both files into the folder `out` and returns their paths. rows: prompts of the gallery.

    benchmark: where the real pictures of the gallery come from. Raises InputError if `out` cannot be written, or the
    benchmark is not that of the records.
    """
    files = {
        "comparison.html": html(comparison, rows, benchmark),
        "comparison.md": markdown(comparison),
    }
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            staging = folder / f".{name}"
            staging.write_text(text, encoding="utf-8", newline="\n")
            staging.replace(folder / name)
    except OSError as error:
        for name in files:
            with contextlib.suppress(OSError):  # what matters is why it could not be written
                (folder / f".{name}").unlink()
        raise InputError(f"{folder} cannot be written ({error.strerror}): make room, or give another --out") from error
    return folder / "comparison.html", folder / "comparison.md"


def markdown(comparison: Comparison) -> str:
    """All tables, and how to make them again."""
    parts = [f"# {TITLE}\n\n{escaped(_lead(comparison))}\n", *map(to_markdown, tables.all_tables(comparison))]
    lines = "\n".join(f"    {' '.join(line.splitlines())}" for line in reproduction(comparison))
    return "\n".join([*parts, f"## How to reproduce\n\n{lines}\n"])


def html(comparison: Comparison, rows: int = ROWS, benchmark: str | Path | None = None) -> str:
    """The page. It is a function of the records and their pictures: no date, no host."""
    first = (tables.summary(comparison), tables.models(comparison), tables.protocol(comparison))
    published = tables.published_numbers()
    sections = [
        *(_table(table) for table in first),
        _categories(comparison),
        _speed(comparison),
        _gallery(comparison, rows, benchmark),
        _extremes(comparison),
        _table(published),
        Section(name="reproduce", heading="How to reproduce", body=macro("commands", reproduction(comparison))),
    ]
    return document(TITLE, _lead(comparison), sections)


def reproduction(comparison: Comparison) -> list[str]:
    """The commands behind a comparison, with every option of drawing that `star eval` takes."""
    names = short_names([entry.path for entry in comparison.entries])
    lines = [_evaluation(entry.record, name) for entry, name in zip(comparison.entries, names, strict=True)]
    mixing = ["--mix-protocols"] if comparison.mixed else []
    return [*lines, shlex.join(["star", "compare", *names, "--out", "comparison", *mixing])]


def _evaluation(record: Record, out: str) -> str:
    protocol, measured = record.protocol, record.measured
    model = [measured.name] if measured.source == "model" else ["--drawn", measured.name]
    words = ["star", "eval", *model, "--benchmark", protocol.benchmark, "--out", out, "--protocol", protocol.name]
    left_out = {reason: len(places) for reason, places in record.skipped.items()}
    unread = sum(
        left_out.get(reason, 0) for reason in (UNREADABLE, external_images.MISSING, external_images.UNREADABLE)
    )
    words += ["--pictures", str(protocol.pictures + unread)]
    measures = list(record.metrics[OVERALL])
    if protocol.name in PROTOCOLS and not set(measures) <= set(PROTOCOLS[protocol.name].metrics):
        words += ["--metrics", *measures]
    if record.bootstrap is not None and (
        protocol.name not in PROTOCOLS or record.bootstrap != PROTOCOLS[protocol.name].bootstrap
    ):
        words += ["--bootstrap", str(record.bootstrap)]
    if measured.source == "model":
        words += ["--seed", str(measured.seed)]
        words += ["--dtype", measured.dtype] if measured.dtype != "float32" else []
    for name in OPTIONS:
        if name in measured.options:
            words += [f"--{name.replace('_', '-')}", f"{measured.options[name]}"]
    if left_out.keys() - {external_images.MISSING, external_images.UNREADABLE}:
        words.append("--skip-bad")
    if left_out.keys() & {external_images.MISSING, external_images.UNREADABLE}:
        words.append("--allow-missing")
    return shlex.join(words)


def _lead(comparison: Comparison) -> str:
    protocols = [entry.record.protocol for entry in comparison.entries]
    names, benchmarks, counts = (
        " and ".join(dict.fromkeys(texts))
        for texts in (
            (protocol.name for protocol in protocols),
            (protocol.benchmark for protocol in protocols),
            (f"{protocol.pictures:,}" for protocol in protocols),
        )
    )
    models = "One model" if len(protocols) == 1 else f"{len(protocols)} models"
    return f"{models} on {benchmarks}, {counts} pictures each, by the protocol {names}."


def _table(table: tables.Table) -> Section:
    return Section(name=table.name, heading=table.title, body=macro("table", table))


def _categories(comparison: Comparison) -> Section:
    labels = [entry.label for entry in comparison.entries]
    parts = [macro("table", table) for table in tables.by_category(comparison)]
    body = figures(labels, plots.radars(comparison)) + Markup().join(parts)
    return Section(name="categories", heading="By category", body=body)


def _speed(comparison: Comparison) -> Section:
    timed = tables.speed(comparison)
    if timed is None:
        return Section(name="speed", heading="")
    labels = [entry.label for entry in comparison.entries]
    body = figures(labels, plots.scatters(comparison)) + macro("table", timed)
    return Section(name=timed.name, heading=timed.title, body=body)


def _gallery(comparison: Comparison, rows: int, benchmark: str | Path | None) -> Section:
    content = gallery.side_by_side(comparison, rows, benchmark)
    if content is None or not content.rows:
        return Section(name="gallery", heading="")
    text = f"{len(content.rows)} prompts, evenly spread over the benchmark: no score had a say in them."
    return Section(name="gallery", heading="Gallery", body=macro("note", text) + macro("gallery", content))


def _extremes(comparison: Comparison) -> Section:
    found = gallery.extremes(comparison)
    if not found:
        return Section(name="extremes", heading="")
    text = f"By {found[0].metric}. The prompt of a picture is its title."
    body = macro("note", text) + Markup().join(macro("extremes", one) for one in found)
    return Section(name="extremes", heading="Best and worst", body=body)
