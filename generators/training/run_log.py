"""The log of a run: lines of `metrics.jsonl`, the same numbers for trackers such as TensorBoard, and sample pictures.

log = RunLog(out, processes)
log.means.add({"loss": loss})                    # in every step
log.write({"step": step}, speed)                 # every so many steps
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from star.data.disk import writing
from star.data.errors import InputError
from star.data.images import save_png
from star.generators.training.meters import Means, append_line, forget_lines_after
from star.generators.training.processes import Processes

METRICS = "metrics.jsonl"


class RunLog:
    """What a run has to tell, in its folder."""

    def __init__(self, out: Path, processes: Processes) -> None:
        self.out, self.processes = out, processes
        self.means = Means()  # of what every process added since the last line
        self.notes = Means()  # of what the main process alone knows

    def continue_at(self, step: int) -> None:
        """Drops the lines of later steps, which will be written again."""
        forget_lines_after(self.out / METRICS, step)

    def open_trackers(self, step: int) -> None:
        """In the main process, with `step` steps behind it: later entries of a run that is continued are purged."""
        accelerator = self.processes.accelerator
        if self.processes.is_main and accelerator.log_with:
            options = {"tensorboard": {"purge_step": step + 1 if step else None}}
            accelerator.init_trackers("tensorboard", init_kwargs=options)

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self.processes.accelerator.trackers:
            tracker.finish()

    def reduce(self) -> None:
        """Makes the means those over all processes, which must have logged the same names."""
        reduce, device = self.processes.accelerator.reduce, self.processes.device
        self.means.reduce(lambda total: reduce(total.to(device), "mean").to(total.device))

    def write(self, counts: Mapping[str, float], speed: Mapping[str, float]) -> dict[str, float]:
        """A line of counts (step, images, seconds), speed, and the means since the last line, which are returned.

        Only the main process writes. Raises InputError if the disk refuses.
        """
        means = self.means.take() | self.notes.take()
        if self.processes.is_main:
            with writing(self.out / METRICS):
                append_line(self.out / METRICS, {**counts, **speed, **means})
            with writing(self.out / "tensorboard"):
                self.processes.accelerator.log({**means, **speed}, step=int(counts["step"]))
        return means

    def picture(self, name: str, pixels_3HW: Tensor, finished: int) -> Path:
        """Writes uint8 pixels to `pictures/<name>-<finished steps>.png` and to the trackers; returns the path."""
        path = self.out / "pictures" / f"{name}-{finished:08d}.png"
        if self.processes.is_main:
            path.parent.mkdir(exist_ok=True)
            save_png(pixels_3HW, path)
            for tracker in self.processes.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.writer.add_image(name, pixels_3HW.cpu().numpy(), finished)
        return path

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means.state_dict(), "notes": self.notes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """notes: absent in checkpoints of the first versions."""
        self.means.load_state_dict(state["means"])
        self.notes.load_state_dict(state.get("notes", {}))


def installed_trackers(names: Sequence[str]) -> list[str] | None:
    """The trackers for accelerate, which skips a missing one in silence; only TensorBoard, on by default, may be.

    Raises InputError for another one that is not installed.
    """
    missing = [name for name in names if find_spec(name) is None]
    if set(missing) - {"tensorboard"}:
        raise InputError(
            f"run.trackers names {', '.join(missing)}, which is not installed: install star-t2i[track], or leave it out"
        )
    return [name for name in names if name not in missing] or None
