"""Plots of a tokenizer's training: is every scale of the codebook alive?"""

import json
from pathlib import Path
from typing import Any

from star.tokenizer.scales import ScaleSchedule


def plot_usage(metrics: Path, schedule: ScaleSchedule, vocabulary: int, out: Path) -> None:
    """Draws distinct codes and perplexity per scale over the steps of a run's metrics.jsonl into a PNG."""
    from matplotlib.figure import Figure

    lines: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for panel, name, title in zip(panels, ("distinct", "perplexity"), ("codes in use", "perplexity"), strict=True):
        for k, size in enumerate(schedule):
            key = f"usage_{name}/{k}"
            points = [(line["step"], line[key]) for line in lines if key in line]
            panel.plot(*zip(*points, strict=True), label=f"{size}x{size}") if points else None
        panel.axhline(vocabulary, color="grey", linestyle=":", linewidth=1)
        panel.set(title=f"{title} per scale", xlabel="step", ylim=(0, vocabulary * 1.05))
    panels[1].legend(title="scale", fontsize="small")
    figure.savefig(out, dpi=100)
