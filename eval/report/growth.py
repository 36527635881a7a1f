"""Milliseconds a picture over the batch size and over the resolution, as one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    figure = Figure(figsize=(6.4 * (1 + several), 4.4), layout="constrained")
    panels = figure.subplots(1, 1 + several, squeeze=False)[0]
    for number, (model, measured) in enumerate(speeds.items()):
        points = sorted((speed.batch, 1000 * speed.total) for speed in measured)
        label = f"{model}, {measured[0].dtype}"
        panels[0].plot(*zip(*points, strict=True), marker=MARKERS[number % len(MARKERS)], label=label)
    panels[0].set(xlabel="pictures at once", ylabel="ms a picture", xscale="log", yscale="log")
    if several:
        for batch in sorted({speed.batch for measured in speeds.values() for speed in measured}):
            points = sorted(
                (resolutions[model][0], 1000 * speed.total)
                for model, measured in speeds.items()
                for speed in measured
                if speed.batch == batch
            )
            panels[1].plot(*zip(*points, strict=True), marker="o", linestyle=":", label=f"{batch} at once")
        panels[1].set(xlabel="pixels on a side", ylabel="ms a picture", xscale="log", yscale="log")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=110)
