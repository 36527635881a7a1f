"""Figures of a comparison as SVG to stand inside a page: its font, its colours in light and dark, no fixed size.

Ink and series are drawn in placeholder colours that become CSS variables of the page: --ink, --rule, --series-0 and on.
Every model keeps one colour and one marker in all figures; the page shows the key once.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from star.eval.metrics.registry import metric
from star.eval.report.comparison import Comparison
from star.eval.report.tables import label_of
from star.eval.run.record import OVERALL, Speed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = 8  # colours the page has; more models than that share them, and differ by marker
MARKERS = "osD^vPX*"
AXES = 48  # of a radar that can still be read
INK, RULE = "#fe0001", "#fe0002"
# What stands for a model in a figure: the first of these that was measured.
DISTANCES = ("fd_infinity", "fd", "fid", "cmmd", "kid")
AGREEMENTS = ("prompt_rank_20", "image_reward", "hps_v2", "pick_score", "clip_score", "clip_score_100")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A figure and what it shows, which is also its text for those who do not see it."""

    svg: str
    caption: str


def shares_of_best(values: Sequence[float], direction: str) -> list[float] | None:
    """How close each value comes to the best: 1 for the best, 0.5 at twice its distance or half its score.

    None where a value is negative: then a share means nothing.
    """
    if min(values) < 0 or (direction == "higher" and max(values) == 0):
        return None
    if direction == "higher":
        return [value / max(values) for value in values]
    return [1.0 if value == min(values) else min(values) / value for value in values]


def radars(comparison: Comparison) -> list[Plot]:
    """One radar for the distance to real pictures, one for agreement with the prompt, as far as they can be drawn."""
    names = [_first(comparison, kinds, radar=True) for kinds in (DISTANCES, AGREEMENTS)]
    return [
        _radar(comparison, name, axes) for name in names if name and 3 <= len(axes := _axes(comparison, name)) <= AXES
    ]


def scatters(comparison: Comparison) -> list[Plot]:
    """Quality against seconds per picture at batch 1, for the same two metrics; none where no record was timed."""
    names = [_first(comparison, kinds) for kinds in (DISTANCES, AGREEMENTS)]
    timed = any(speed.batch == 1 for entry in comparison.entries for speed in entry.record.speed)
    return [_scatter(comparison, name) for name in names if name and timed]


def _first(comparison: Comparison, kinds: Sequence[str], radar: bool = False) -> str | None:
    for kind in kinds:
        for name in comparison.names():
            if name.partition("/")[0] == kind and (not radar or 3 <= len(_axes(comparison, name)) <= AXES):
                return name
    return None


def _axes(comparison: Comparison, name: str) -> dict[str, list[float]]:
    """Category -> shares of the best, of every category in which all models were measured, on pictures enough to be
    ranked, and shares mean something."""
    axes = {}
    for category in comparison.categories():
        estimates = [entry.estimate(category, name) for entry in comparison.entries]
        values = [estimate.value for estimate in estimates if estimate is not None]
        if (
            values
            and comparison.ranked(category, name)
            and len(values) == len(estimates)
            and (shares := shares_of_best(values, metric(name).direction))
        ):
            axes[category] = shares
    return axes


def _radar(comparison: Comparison, name: str, axes: dict[str, list[float]]) -> Plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    panel: Any = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * index / len(axes) for index in range(len(axes))]
    panel.set(theta_offset=math.pi / 2, theta_direction=-1, ylim=(0, 1.0), yticks=(0.25, 0.5, 0.75, 1.0))
    panel.set_yticklabels(["", "0.5", "", "1"], color=INK, fontsize=8)
    panel.set_xticks(angles, list(axes), color=INK)
    for label, angle in zip(panel.get_xticklabels(), angles, strict=True):
        side = round(math.sin(angle), 6)
        label.set_horizontalalignment("center" if side == 0 else "left" if side > 0 else "right")
    panel.grid(color=RULE, linewidth=0.8)
    panel.spines["polar"].set_color(RULE)
    for index in range(len(comparison.entries)):
        shares = [values[index] for values in axes.values()]
        closed = ((*angles, angles[0]), (*shares, shares[0]))
        colour, marker = _colour(index), MARKERS[index % len(MARKERS)]
        panel.plot(*closed, color=colour, marker=marker, markersize=4, linewidth=1.6, clip_on=False)
    caption = (
        f"{label_of(name)} by {name.partition('/')[2]}, per category. Each axis is scaled by the best model of its "
        "category: the outer ring is the best, 0.5 is "
        + ("twice the best distance" if metric(name).direction == "lower" else "half the best score")
        + ", the centre is 0."
    )
    return Plot(svg=_svg(figure, f"radar {name}"), caption=caption)


def _scatter(comparison: Comparison, name: str) -> Plot:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    panel = figure.add_subplot()
    devices: dict[str, None] = {}
    for index, entry in enumerate(comparison.entries):
        speed = next((speed for speed in entry.record.speed if speed.batch == 1), None)
        estimate = entry.estimate(OVERALL, name)
        if speed is None or estimate is None:
            continue
        devices[_place(speed)] = None
        low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
        colour, marker = _colour(index), MARKERS[index % len(MARKERS)]
        panel.plot([speed.total] * 2, [low, high], color=colour, linewidth=1.6)
        panel.plot(speed.total, estimate.value, color=colour, marker=marker, markersize=7)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    panel.set_xlabel("seconds per picture at batch 1, logarithmic", color=INK)
    panel.set_ylabel(label_of(name), color=INK)
    panel.margins(0.12)
    panel.tick_params(which="both", colors=INK, color=RULE)
    panel.grid(color=RULE, linewidth=0.8)
    panel.set_axisbelow(True)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    where = "bottom" if metric(name).direction == "lower" else "top"
    caption = (
        f"{label_of(name)} by {name.partition('/')[2]} against time, with 95 % intervals, if any; better and faster "
        f"is the {where} left. Timed on {' and on '.join(devices)}."
        + (" Times of different devices do not compare." if len(devices) > 1 else "")
    )
    return Plot(svg=_svg(figure, f"scatter {name}"), caption=caption)


def _place(speed: Speed) -> str:
    threads = f"{speed.threads} thread{'s' * (speed.threads > 1)}"
    return f"{speed.device}, {threads}" if speed.threads else speed.device


def _colour(index: int) -> str:
    return f"#fe01{index % SERIES:02x}"


def _svg(figure: "Figure", salt: str) -> str:
    """The figure's SVG element alone. salt: keeps its ids from meeting those of other figures, the same each time."""
    import matplotlib

    target = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would reach the whole page
    head, rest = text.split(">", 1)
    text = re.sub(r' (width|height|xmlns|xmlns:xlink)="[^"]*"', "", head) + ">" + rest
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every figure, and nothing refers to them
    text = re.sub(r"(font(?:-family)?:[^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"\1inherit", text)
    text = text.replace(INK, "var(--ink)").replace(RULE, "var(--rule)")
    return re.sub(r"#fe01([0-9a-f]{2})", lambda found: f"var(--series-{int(found[1], 16)})", text)
