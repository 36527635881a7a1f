"""Running means of what a trainer logs, and the file of one JSON line per log that they end in.

The means are part of a run's state, so a continued run writes the lines that an uninterrupted one would have written.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Means:
    """Sums and counts by name, kept on the device of what was added, so that adding never waits for the device.

    Numbers of the host stay there: bringing one over would wait for everything that the device has still to do.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """Adds scalars, or vectors that will read as `name/0`, `name/1`, ..."""
        for name, value in values.items():
            total = torch.as_tensor(value).detach().float()
            if total.ndim > 1:
                raise ValueError(f"{name} to log has shape {tuple(total.shape)}, expected a scalar or a vector")
            before = self._sums.get(name)
            self._sums[name] = (total, 1) if before is None else (before[0].to(total.device) + total, before[1] + 1)

    def reduce(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Replaces each sum by its mean over processes; every process must have logged the same names."""
        self._sums = {name: (mean(total), count) for name, (total, count) in sorted(self._sums.items())}

    def not_finite(self) -> list[str]:
        """Names of the losses and gradient norms that are no longer finite."""
        watched = {name: total for name, (total, _) in self._sums.items() if "loss" in name or "norm" in name}
        return [name for name, total in watched.items() if not bool(total.isfinite().all())]

    def take(self) -> dict[str, float]:
        """The means since the last take, vectors spread out; starts over."""
        sums, self._sums = self._sums, {}
        return dict(_spread(sums))

    def state_dict(self) -> dict[str, Any]:
        return {name: [total.cpu(), count] for name, (total, count) in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: (total, count) for name, (total, count) in state.items()}


def _spread(sums: Mapping[str, tuple[Tensor, int]]) -> Iterator[tuple[str, float]]:
    for name, (total, count) in sums.items():
        mean = (total / count).tolist()
        if isinstance(mean, list):
            yield from ((f"{name}/{i}", value) for i, value in enumerate(mean))
        else:
            yield name, mean


def append_line(path: Path, line: Mapping[str, float]) -> None:
    """Appends one JSON object; what is not finite becomes null, since JSON has no word for it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({name: value if math.isfinite(value) else None for name, value in line.items()}) + "\n")


def forget_lines_after(path: Path, step: int) -> None:
    """Drops lines of later steps, which will be written again, and a last line that a kill has cut short."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = path.with_name(f".{path.name}")
    whole = (line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
    kept.write_text("".join(whole), encoding="utf-8")
    kept.replace(path)
