"""Milliseconds a picture over the batch size and over the resolution, as one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from star.data.disk import writing
from star.eval.run.record import Speed

MARKERS = "osD^vPX*"


def write_growth(speeds: Mapping[str, Sequence[Speed]], resolutions: Mapping[str, tuple[int, int]], path: Path) -> None:
    """A panel by batch size, and one by resolution where models differ in it.

    speeds: of each model, by batch size. resolutions: (H, W) of each model. Raises InputError if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    several = len(set(resolutions.values())) > 1
    figure = Figure(figsize=(6.4 * (1 + several), 4.8), layout="constrained")
    panels = figure.subplots(1, 1 + several, squeeze=False, sharey=True)[0]
    every = [speed for measured in speeds.values() for speed in measured]
    figure.suptitle("; ".join(sorted({_where(speed) for speed in every})), fontsize=9)
    for number, (model, measured) in enumerate(speeds.items()):
        points = sorted((speed.batch, 1000 * speed.total) for speed in measured)
        label = f"{model}, {measured[0].dtype}"
        panels[0].plot(*zip(*points, strict=True), marker=MARKERS[number % len(MARKERS)], label=label)
    panels[0].set(xlabel="pictures at once (log)", ylabel="ms a picture, median (log)", xscale="log", yscale="log")
    _ticks(panels[0], sorted({speed.batch for speed in every}))
    if several:
        for number, batch in enumerate(sorted({speed.batch for speed in every})):
            points = sorted(
                (resolutions[model][0], 1000 * speed.total)
                for model, measured in speeds.items()
                for speed in measured
                if speed.batch == batch
            )
            marker = MARKERS[number % len(MARKERS)]
            panels[1].plot(*zip(*points, strict=True), marker=marker, linestyle=":", label=f"{batch} at once")
        panels[1].set(xlabel="pixels on a side (log), and the models of that size", xscale="log")
        models = {side: [name for name, (H, _) in resolutions.items() if side == H] for side, _ in resolutions.values()}
        _ticks(panels[1], sorted(models), {side: "\n".join(names) for side, names in models.items()})
    low, high = (edge(1000 * speed.total for speed in every) for edge in (min, max))
    panels[0].set_ylim(low / 1.5, high * 1.5)
    for panel in panels:
        panel.grid(alpha=0.3, which="both")
        panel.margins(x=0.12)
        panel.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=110)


def _ticks(panel: Any, places: Sequence[int], more: Mapping[int, str] = MappingProxyType({})) -> None:
    """Marks on a logarithmic panel: across at what was measured, in plain numbers; upward at 1, 2 and 5 of each ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    panel.xaxis.set_major_locator(FixedLocator(places))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}\n{more.get(round(x), '')}".rstrip()))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.4g}" if y < 1000 else f"{y:,.0f}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _where(speed: Speed) -> str:
    threads = f", {speed.threads} thread{'s' * (speed.threads > 1)}" if speed.threads else ""
    return f"{speed.device}{threads}"
