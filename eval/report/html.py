"""HTML of a page that stands alone: no script, no request, light and dark, wide and narrow; text is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

from star.eval.report.gallery import Extremes, Gallery, Shown
from star.eval.report.plots import MARKERS, SERIES, Plot
from star.eval.report.tables import Cell, Table

LIGHT = ("#1668b8", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be185d", "#0f766e", "#57534e")
DARK = ("#6db3f2", "#fb923c", "#5fcf84", "#b794f6", "#e0b63e", "#f47fb0", "#4fd1c5", "#b8b2ac")
SIGNS = dict(zip(MARKERS, "●■◆▲▼✚✖★", strict=True))  # of matplotlib's markers

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d1d1f; --quiet: #66666b; --rule: #dcdcd8; --wash: #f3f3f0;
  --warn: #9a3412; LIGHT }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #e9e9e6; --quiet: #a0a0a4; --rule: #3a3b3f;
  --wash: #212226; --warn: #fdba74; DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; font-weight: 650; letter-spacing: -.01em }
h2 { font-size: 1.2rem; margin: 3rem 0 .35rem; font-weight: 650 }
h3 { font-size: 1rem; margin: 1.5rem 0 .35rem; font-weight: 600 }
p { margin: 0 0 .75rem; max-width: 46rem }
.quiet, figcaption { color: var(--quiet); font-size: .875rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; font-size: .875rem }
a { color: inherit; text-underline-offset: .2em; text-decoration-color: var(--rule) }
a:hover { text-decoration-color: currentColor }
.scroll { overflow-x: auto; margin: .5rem 0 0 }
table { border-collapse: separate; border-spacing: 0; width: max-content; font-size: .875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums }
th, td { max-width: 16rem; padding: .38rem .9rem .38rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--rule) }
thead th { border-bottom-color: var(--quiet); font-weight: 600; vertical-align: bottom }
th.number, td.number { text-align: right; padding: .38rem 0 .38rem 1.3rem; white-space: nowrap }
td.number + td:not(.number), td.number + th:not(.number), th.number + th:not(.number) { padding-left: 1.3rem }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--paper) }
td small, th small { display: block; color: var(--quiet); font-size: .75rem }
td b { font-weight: 700 }
.tied::before { content: "≈ "; color: var(--quiet) }
[title] { text-decoration: underline dotted var(--rule); text-underline-offset: .2em; cursor: help }
img[title] { cursor: auto }
details { border-bottom: 1px solid var(--rule) }
summary { cursor: pointer; padding: .45rem 0; font-size: .9375rem }
details .scroll { margin: 0 0 1rem }
.warning { border-left: 3px solid var(--warn); padding: .4rem .8rem; color: var(--warn); background: var(--wash);
  max-width: none; font-weight: 600 }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .75rem 0; list-style: none;
  font-size: .875rem }
.figures { margin: 0 0 1.5rem; display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 2rem }
figure { margin: 0; min-width: 0 }
figure svg { display: block; width: 100%; max-width: 32rem; height: auto; stroke-linejoin: round; overflow: visible }
.gallery td, .gallery th { border: 0; padding: .2rem .3rem .2rem 0 }
.gallery thead th { font-size: .8125rem; padding-bottom: .4rem; max-width: 96px; overflow-wrap: break-word }
.gallery tbody th { font-size: .8125rem; width: 13rem; max-width: 13rem; padding-right: 1rem }
.gallery img, .gone { display: block; width: 96px; height: 96px; object-fit: contain; background: var(--wash) }
.gone { color: var(--quiet); font-size: .75rem; padding: .4rem }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; margin: 0 0 .6rem }
.strip figure { width: 80px }
.strip img, .strip .gone { display: block; width: 80px; height: 80px; object-fit: contain; background: var(--wash) }
.strip figcaption { font-variant-numeric: tabular-nums; font-size: .75rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 2rem }
pre { background: var(--wash); padding: .9rem 1rem; overflow-x: auto; font-size: .8125rem; line-height: 1.55;
  margin: .5rem 0 }
@media (max-width: 40rem) { body { padding: 1.25rem .9rem 3rem } h2 { margin-top: 2.25rem }
  th, td { max-width: 15rem } tbody th { max-width: 8rem }
  .gallery img, .gone { width: 72px; height: 72px } .gallery thead th { max-width: 72px; font-size: .75rem }
  .gallery tbody th { width: 6.5rem; max-width: 6.5rem; padding-right: .6rem } }
@media print { nav { display: none } }
"""


def document(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole page. sections: (name, heading, HTML); names become links at the top."""
    links = "".join(f'<a href="#{escape(name)}">{escape(heading)}</a>' for name, heading, _ in sections)
    parts = "\n".join(
        f'<section id="{escape(name)}"><h2>{escape(heading)}</h2>\n{body}</section>' for name, heading, body in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head>\n<body><header><h1>{escape(title)}</h1>"
        f"<p>{escape(lead)}</p><nav>{links}</nav></header>\n<main>{parts}</main></body></html>\n"
    )


def _style() -> str:
    style = STYLE
    for name, colours in (("LIGHT", LIGHT), ("DARK", DARK)):
        style = style.replace(name, "; ".join(f"--series-{index}: {colour}" for index, colour in enumerate(colours)))
    return style


def note(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>\n' if text else ""


def warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>\n' if text else ""


def table(content: Table) -> str:
    """Warning, note and table; its title is for the section or, where it is folded, the line that unfolds it."""
    numbers = [cell.number for cell in content.rows[0]] if content.rows else [False] * len(content.head)
    head = "".join(
        f'<th scope="col"{_class(number)}>{escape(text)}</th>'
        for text, number in zip(content.head, numbers, strict=True)
    )
    rows = "\n".join(f"<tr>{_row_head(row[0])}{''.join(map(_cell, row[1:]))}</tr>" for row in content.rows)
    grid = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(content.title)}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )
    inside = warning(content.warning) + note(content.note) + grid
    if content.fold == "none":
        return inside
    shown = " open" if content.fold == "open" else ""
    return f"<details{shown}><summary>{escape(content.title)}</summary>{inside}</details>\n"


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def _row_head(cell: Cell) -> str:
    return f'<th scope="row">{_titled(cell)}{_detail(cell)}</th>'


def _cell(cell: Cell) -> str:
    text = _titled(cell)
    if cell.mark == "best":
        text = f"<b>{text}</b>"
    elif cell.mark == "tied":
        text = f'<span class="tied">{text}</span>'
    return f"<td{_class(cell.number)}>{text}{_detail(cell)}</td>"


def _detail(cell: Cell) -> str:
    return f"<small>{escape(cell.detail)}</small>" if cell.detail else ""


def _titled(cell: Cell) -> str:
    if cell.title and cell.title != cell.text:
        return f'<span title="{escape(cell.title)}">{escape(cell.text)}</span>'
    return escape(cell.text)


def key(labels: Iterable[str]) -> str:
    """Which colour and marker stand for which model."""
    items = "".join(
        f'<li><span style="color: var(--series-{index % SERIES})" aria-hidden="true">'
        f"{SIGNS[MARKERS[index % len(MARKERS)]]}</span> {escape(label)}</li>"
        for index, label in enumerate(labels)
    )
    return f'<ul class="key">{items}</ul>\n'


def figures(shown: Iterable[Plot]) -> str:
    """Figures beside each other where there is room."""
    parts = "".join(
        f'<figure><div role="img" aria-label="{escape(one.caption)}">{one.svg}</div>'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>\n"
        for one in shown
    )
    return f'<div class="figures">{parts}</div>\n'


def gallery(content: Gallery) -> str:
    """Prompts in rows, models in columns."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in ("prompt", *content.columns))
    rows = "\n".join(
        f'<tr><th scope="row">{escape(picture.prompt)}<small>{escape(picture.category)}</small></th>'
        f"{''.join(f'<td>{_picture(shown)}</td>' for shown in pictures)}</tr>"
        for picture, pictures in content.rows
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="gallery"><table class="gallery">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def extremes(content: Extremes) -> str:
    """Best and worst pictures of one model."""
    strips = "".join(
        f'<div><p class="quiet">{escape(title)}</p><div class="strip">'
        f"{''.join(f'<figure>{_picture(s)}<figcaption>{escape(s.caption)}</figcaption></figure>' for s in pictures)}"
        "</div></div>"
        for title, pictures in (("best", content.best), ("worst", content.worst))
    )
    return f'<h3>{escape(content.label)}</h3><div class="pair">{strips}</div>\n'


def _picture(shown: Shown) -> str:
    prompt = escape(shown.prompt)
    if not shown.data:
        return f'<span class="gone" title="{prompt}">no picture</span>'
    return f'<img src="{shown.data}" alt="{prompt}" title="{prompt}" loading="lazy">'


def commands(lines: Iterable[str]) -> str:
    """Shell commands, one a line."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>\n"
