"""Plots of a tokenizer's training: is every scale of the codebook alive?"""

import json
from pathlib import Path
from typing import Any

from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import TokenKind


def plot_usage(metrics: Path, schedule: ScaleSchedule, tokens: TokenKind, out: Path) -> None:
    """Draws how much of what tokens can say each scale uses, over the steps of a run's metrics.jsonl, into a PNG."""
    from matplotlib.figure import Figure

    lines: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, len(tokens.panels), sharex=True)
    for panel, (name, title) in zip(panels, tokens.panels.items(), strict=True):
        for k, size in enumerate(schedule):
            key = f"{name}/{k}"
            points = [(line["step"], line[key]) for line in lines if key in line]
            panel.plot(*zip(*points, strict=True), label=f"{size}x{size}") if points else None
        panel.axhline(tokens.ceiling, color="grey", linestyle=":", linewidth=1)
        panel.set(title=f"{title} per scale", xlabel="step", ylim=(0, tokens.ceiling * 1.05))
    panels[-1].legend(title="scale", fontsize="small")
    figure.savefig(out, dpi=100)
