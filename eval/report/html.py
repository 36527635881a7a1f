"""HTML of a page that stands alone, from the macros of page.html.jinja, which escape all text (autoescape)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from star.eval.report.plots import MARKERS, SERIES, Plot

LIGHT = ("#1668b8", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be185d", "#0f766e", "#57534e")
DARK = ("#6db3f2", "#fb923c", "#5fcf84", "#b794f6", "#e0b63e", "#f47fb0", "#4fd1c5", "#b8b2ac")
EMPTY = Markup()
SIGNS = "●■◆▲▼✚✖★"  # of matplotlib's markers `MARKERS`, in their order


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page. name: where the link at the top leads; a section without a body is left out."""

    name: str
    heading: str
    body: Markup = EMPTY


def document(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A whole page."""
    full = [section for section in sections if section.body]
    return str(macro("document", title, lead, full, LIGHT, DARK))


def macro(name: str, *arguments: Any) -> Markup:
    """A macro of page.html.jinja: note, table, gallery, extremes, commands, each with what it shows."""
    return Markup(getattr(_macros(), name)(*arguments))  # the macro has escaped it


def key(labels: Iterable[str]) -> Markup:
    """Which colour and marker stand for which model."""
    return macro("key", list(labels), SIGNS[: len(MARKERS)], SERIES)


def figures(labels: Iterable[str], plots: Sequence[Plot]) -> Markup:
    """The key, and figures beside each other where there is room; nothing where there are none."""
    return key(labels) + macro("figures", plots) if plots else EMPTY


@cache
def _macros() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").module
