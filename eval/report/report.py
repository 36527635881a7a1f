"""A comparison as two files: comparison.html, a page that stands alone, and comparison.md with the same figures."""

import contextlib
import shlex
from pathlib import Path

from star.data.errors import InputError
from star.eval.commands.evaluate import OPTIONS
from star.eval.report import gallery, plots, tables
from star.eval.report import html as page
from star.eval.report.comparison import Comparison, short_names
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
    named = [
        (table.name, table.title, page.table(table))
        for table in (tables.summary(comparison), tables.models(comparison), tables.protocol(comparison))
    ]
    sections = [
        *named,
        _categories(comparison),
        _speed(comparison),
        _gallery(comparison, rows, benchmark),
        _extremes(comparison),
        ("published", tables.published_numbers().title, page.table(tables.published_numbers())),
        ("reproduce", "How to reproduce", page.commands(reproduction(comparison))),
    ]
    return page.document(TITLE, _lead(comparison), [section for section in sections if section[2]])


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


def _categories(comparison: Comparison) -> tuple[str, str, str]:
    found = tables.by_category(comparison)
    figures = plots.radars(comparison)
    labels = [entry.label for entry in comparison.entries]
    body = page.key(labels) + page.figures(figures) if figures else ""
    return ("categories", "By category", body + "".join(map(page.table, found)))


def _speed(comparison: Comparison) -> tuple[str, str, str]:
    timed = tables.speed(comparison)
    if timed is None:
        return ("speed", "", "")
    labels = [entry.label for entry in comparison.entries]
    figures = plots.scatters(comparison)
    return (timed.name, timed.title, page.key(labels) + page.figures(figures) + page.table(timed))


def _gallery(comparison: Comparison, rows: int, benchmark: str | Path | None) -> tuple[str, str, str]:
    content = gallery.side_by_side(comparison, rows, benchmark)
    if content is None or not content.rows:
        return ("gallery", "", "")
    text = f"{len(content.rows)} prompts, evenly spread over the benchmark: no score had a say in them."
    return ("gallery", "Gallery", page.note(text) + page.gallery(content))


def _extremes(comparison: Comparison) -> tuple[str, str, str]:
    found = gallery.extremes(comparison)
    if not found:
        return ("extremes", "", "")
    text = f"By {found[0].metric}. The prompt of a picture is its title."
    return ("extremes", "Best and worst", page.note(text) + "".join(map(page.extremes, found)))
