"""A training run: processes, state that survives a kill, logs and pictures. The trainer owns its loop.

    run = Run(out, config.run, to_dict(config), resume)
    model, optimizer = ...                               # built after Run: seeded alike in every process
    model = run.prepare(model)
    run.track(model=model, optimizer=optimizer)
    run.restore()                                        # the newest checkpoint, where --resume asks for it
    batches = run.feed(pipeline.batches(start=run.first_batch))
    for step in run.steps():                             # seeds, saves, stops on signals, shows progress
        set_lr(optimizer, lr_at(step, peak=1e-4, steps=run.total_steps, warmup=100))
        for _ in run.micro_steps(model):                 # gradient accumulation
            batch = next(batches)
            with run.autocast():
                loss = model(batch.image_B3HW.to(run.device)).mean()
            run.backward(loss)
            run.log({"loss": loss}, images=len(batch.keys))
        run.log({"grad_norm": run.clip(model.parameters())})
        optimizer.step()
        optimizer.zero_grad()

Resume is exact because nothing random outlives a step: each one is seeded from (seed, rank, step), and batch i of the
pipeline is a pure function of i. So the state is what `track` was given, the step, and the running means of the log.
(Not so with `minutes`: how far a run comes, and with it every learning rate, depends on the machine.)
"""

import contextlib
import json
import math
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from star.data.disk import refusal, writing
from star.data.errors import DivergenceError, InputError
from star.data.progress import Progress, clock
from star.generators.precision import allow_tf32
from star.generators.training import checkpoint as snapshots
from star.generators.training import ranges
from star.generators.training.folder_lock import Claim
from star.generators.training.meters import Means, append_line, forget_lines_after
from star.generators.training.signals import Stopped, StopRequest
from star.generators.training.throughput import Throughput
from star.generators.training.total_steps import TotalSteps
from star.generators.training.train_state import CHECKPOINTS, Stateful, TrainState, to_continue

Item = TypeVar("Item")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long, how large and how loud a run is; what is learnt belongs to the trainer's own config."""

    steps: int  # optimiser steps
    minutes: float = 0.0  # of training, after which it ends before its steps, with schedules to match; 0: no limit
    seed: int = 0
    batch_size: int = 32  # pictures per optimiser step, over all processes and accumulated micro-batches
    precision: Literal["no", "bf16"] = "no"  # no: float32, whose products a GPU computes in TF32 (precision.py)
    sharding: Literal["none", "fsdp2"] = "none"  # over processes: copies (DDP), or pieces (FSDP2, see sharding.py)
    grad_clip: float = 1.0  # largest gradient norm; 0 leaves gradients as they are
    accumulate: int = 1  # micro-batches per optimiser step
    log_every: int = 50  # steps, like the three below
    sample_every: int = 1000  # 0: never
    checkpoint_every: int = 1000
    keep: int = 2  # checkpoints
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)  # beside metrics.jsonl
    peak_tflops: float = 0.0  # of one device by its data sheet, to log how much of it is used; 0: not stated

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"run.{name} is {getattr(self, name)}, expected at least 1: correct it")
        for name in ("minutes", "seed", "grad_clip", "sample_every", "peak_tflops"):
            if getattr(self, name) < 0:
                raise InputError(f"run.{name} is {getattr(self, name)}, expected at least 0: correct it")


class Run:
    """One training run in one folder: `config.json`, `metrics.jsonl`, `checkpoints/`, `pictures/`, `tensorboard/`."""

    def __init__(self, out: str | Path, config: RunConfig, full_config: Mapping[str, Any], resume: bool) -> None:
        """`full_config`: the whole config as plain values (`to_dict`), kept with the run and compared on resume.

        Raises InputError if the folder cannot be written, is being written by another process, holds a run that was
        not asked to be resumed or that was made with another config, if a number of the config is not finite, or if the
        batch size does not divide by processes times accumulation.
        """
        self.out, self.config = Path(out), config
        ranges.check(full_config, ranged=False)
        self.full_config: dict[str, Any] = json.loads(json.dumps(full_config))  # as it will read from the disk
        self.accelerator = Accelerator(log_with=_trackers(config.trackers), project_dir=self.out)
        self.device: torch.device = self.accelerator.device
        allow_tf32(self.device)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        parts = self.world * config.accumulate
        if config.batch_size % parts:
            raise InputError(
                f"run.batch_size is {config.batch_size}, expected a multiple of {parts} ({self.world} processes x "
                f"{config.accumulate} accumulated micro-batches): change one of them"
            )
        self.micro_batch_size = config.batch_size // parts  # pictures per process and forward pass: the pipeline's size
        self.step = 0  # finished steps
        self.images = 0  # pictures seen by all processes
        self.tracked = TrainState(self.accelerator, in_pieces=config.sharding == "fsdp2" and self.world > 1)
        self._means = Means()  # of what was logged since the last line
        self._notes = Means()  # of what the main process alone knows
        self.throughput = Throughput(config.peak_tflops, self.world)
        self._seconds = 0.0  # of training, over all starts of this run
        self._total_steps = TotalSteps(config.steps, config.minutes)
        self._stop = StopRequest(self.say)
        self.progress = Progress(None, unit="steps", rate_unit="images", bar=False)  # until steps() begins
        self._resumed_from = to_continue(self.out, self.full_config, resume)
        self._open(resume)
        self.seed(rank=0, step=0)

    # ---- what the trainer's loop uses

    def prepare(self, *objects: Any) -> Any:
        """Networks (and optimisers) moved to the device and wrapped for the processes of this run by accelerate."""
        return self.accelerator.prepare(*objects)

    def distribute(self, network: nn.Module, blocks: Iterable[nn.Module] = (), *, learns: bool = True) -> Any:
        """A network on the device, as a copy (DDP) or in pieces (FSDP2, each of `blocks` gathered by itself).

        learns: False for one that only follows, such as averaged weights, whose copies exchange no gradients.
        """
        if self.config.sharding == "none":
            return self.prepare(network) if learns else network.to(self.device)
        from star.generators.training.fsdp import shard

        network.to(self.device)
        shard(network, blocks, self.device)
        return network

    def whole(self, network: Network, build: Callable[[], Network]) -> Network:
        """The network itself, or in the main process a whole copy of one that is in pieces.

        Every process must ask for it; what the others get is no use to them. build: makes one with any weights.
        """
        if self.config.sharding == "none" or self.world == 1:
            return network
        from star.generators.training.fsdp import whole_state

        state = whole_state(network)
        if not self.is_main:
            return network
        copy = build()
        copy.load_state_dict(state)
        return copy.to(self.device)

    def unwrap(self, module: nn.Module) -> Any:
        """The network itself, without the wrapper of `prepare`."""
        return self.accelerator.unwrap_model(module)

    def track(self, **named: Stateful) -> None:
        """Makes objects part of the saved state: all that changes while training, under names that stay the same."""
        self.tracked.add(**named)

    def restore(self) -> int:
        """Loads the newest checkpoint into what is tracked, and returns the number of finished steps (0: a new run).

        Raises InputError if the names tracked now differ from those saved, or a state does not fit its object.
        """
        if self._resumed_from is None:
            return 0
        state = self.tracked.restore(self._resumed_from)
        self.step, self.images, self._seconds = int(state["step"]), int(state["images"]), float(state["seconds"])
        if state.get("finished"):
            self._total_steps.steps = self.step
        self._means.load_state_dict(state["means"])
        self._notes.load_state_dict(state.get("notes", {}))
        self.say(f"continued from step {self.step} in {self.out}")
        return self.step

    @property
    def first_batch(self) -> int:
        """The index of the next micro-batch, for `pipeline.batches(start=...)`."""
        return self.step * self.config.accumulate

    @property
    def total_steps(self) -> int:
        """How many steps the run will have at its end, for schedules: `steps`, or what the clock leaves time for."""
        return self._total_steps.steps

    def steps(self) -> Iterator[int]:
        """Steps from the restored one to the last; the body between two of them is one optimiser step.

        Before each: seeds. After each: counts, log line, checkpoint where due, and on SIGINT, SIGTERM or SIGHUP a
        checkpoint and `Stopped`. A second signal ends the process at once.
        """
        if self._resumed_from is not None and self.step != self._resumed_from.step:
            raise RuntimeError("call restore() before steps(): this run is to be continued")
        self._init_trackers()
        self.progress = Progress(
            self.config.steps, unit="steps", rate_unit="images", start=self.step, enabled=self.is_main
        )
        self._began_at = time.monotonic() - self._seconds
        self._images_before = self.images
        try:
            with self._stop:
                while self.step < self._look_ahead():
                    self.seed(rank=self.rank, step=self.step)
                    self.throughput.begin()
                    yield self.step
                    if hint := self.throughput.end():
                        self.say(hint)
                    self._finish_step()
            self.say(f"{self.step} steps and {self.images} images in {clock(self._seconds)}; wrote {self.out}")
        finally:
            self.progress.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def feed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; the time spent waiting for them is logged, and told where it starves the device."""
        return self.throughput.feed(batches)

    def micro_steps(self, *modules: nn.Module) -> Iterator[int]:
        """The micro-batches of one optimiser step; gradients of `modules` are exchanged in the last one only."""
        last = self.config.accumulate - 1
        for micro in range(self.config.accumulate):
            with contextlib.ExitStack() as stack:
                for module in modules:
                    if self.config.sharding == "fsdp2" and self.world > 1:
                        module.set_requires_gradient_sync(micro == last)  # type: ignore[operator]  # an FSDPModule
                    elif micro < last:
                        stack.enter_context(self.accelerator.no_sync(module))
                yield micro

    def autocast(self) -> torch.autocast:
        """bfloat16 where the config asks for it; needed around every forward pass and its loss.

        Networks in pieces use each weight once, and keeping a lowered copy of all of them would undo the cutting.
        """
        enabled, kept = self.config.precision == "bf16", self.config.sharding == "none"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=kept)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, a mean over its micro-batch; accumulated micro-batches weigh equally."""
        self.accelerator.backward(loss / self.config.accumulate)

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, in every one of them."""
        return self.accelerator.reduce(value, "mean") if self.world > 1 else value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of networks that were not given to `prepare`, averaged over all processes."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None = None) -> Tensor:
        """Scales gradients down to `limit`, if not given `grad_clip` (0: leaves them), and returns their norm before
        that, a scalar on the device."""
        limit = self.config.grad_clip if limit is None else limit
        norm = nn.utils.clip_grad_norm_(list(parameters), limit or math.inf)
        if self.config.sharding == "none":
            return norm
        from star.generators.training.fsdp import whole

        return whole(norm)

    def due(self, step: int, every: int) -> bool:
        """Whether something done `every` so many steps is due in this one, the last step included; 0 is never.

        Raises DivergenceError where it is, and would be made with weights that are no longer finite.
        """
        is_due = every > 0 and ((step + 1) % every == 0 or step + 1 >= self.total_steps)
        if is_due and not self.tracked.in_pieces:  # pieces are looked at where all processes meet
            self._refuse(self.tracked.not_finite(), step + 1)
        return is_due

    def sample_due(self, step: int) -> bool:
        """Whether sample pictures are due in this step."""
        return self.due(step, self.config.sample_every)

    def log(self, values: Mapping[str, float | Tensor], images: int = 0) -> None:
        """Adds to the means of the next log line; call it as often as wanted, it never waits for the device.

        A vector becomes `name/0`, `name/1`, ... (losses per scale). `images`: pictures this process learnt from.
        """
        self.images += images * self.world
        self._means.add(values)

    def note(self, values: Mapping[str, float | Tensor]) -> None:
        """Adds to the next log line what only the main process knows; the others' notes are dropped."""
        if self.is_main:
            self._notes.add(values)

    def picture(self, name: str, pixels_3HW: Tensor, step: int) -> Path:
        """Writes uint8 pixels to `pictures/<name>-<finished steps>.png` and to the trackers; returns the path."""
        from star.data.images import save_png

        path = self.out / "pictures" / f"{name}-{step + 1:08d}.png"
        if self.is_main:
            path.parent.mkdir(exist_ok=True)
            save_png(pixels_3HW, path)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.writer.add_image(name, pixels_3HW.cpu().numpy(), step + 1)
        return path

    def say(self, text: str) -> None:
        """Prints a line on the main process without tearing the progress bar."""
        if self.is_main:
            self.progress.say(text)

    def seed(self, *, rank: int, step: int) -> None:
        """Seeds Python, NumPy and torch from (seed, rank, step)."""
        words = np.random.SeedSequence([self.config.seed, rank, step]).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(words[1])  # noqa: NPY002  (for libraries that draw from it; ours use generators)
        torch.manual_seed(int(words[2]))

    def save(self) -> Path:
        """Writes a checkpoint of the finished steps.

        Raises DivergenceError instead if a loss or a weight is not finite, and InputError if the disk refuses.
        """
        self._check_finite()
        folder = self.out / CHECKPOINTS
        counters = {
            "step": self.step,
            "images": self.images,
            "seconds": self._seconds,
            "finished": self.step >= self.total_steps,
            "means": self._means.state_dict(),
            "notes": self._notes.state_dict(),
        }
        about = {
            "step": self.step,
            "images": self.images,
            "processes": self.world,
            "torch": str(torch.__version__),
            "config": self.full_config,
        }
        self.tracked.save(folder, self.step, counters, about, keep=self.config.keep)
        return folder / f"step-{self.step:08d}"

    # ---- what happens between two steps

    def _finish_step(self) -> None:
        self.step += 1
        self._seconds = time.monotonic() - self._began_at
        last = self.step >= self._total_steps.steps
        if self.step % self.config.log_every == 0 or last:
            self._write_line()
        signal_number = self._agreed_signal()
        if signal_number or self.step % self.config.checkpoint_every == 0 or last:
            self.save()
        images, self._images_before = self.images - self._images_before, self.images
        self.progress.update(1, done=images)
        if signal_number and not last:
            name = signal.Signals(signal_number).name
            self.say(
                f"stopped by {name} after step {self.step} of {self.total_steps}, checkpoint in {self.out}; "
                "the same command with --resume continues"
            )
            raise Stopped(128 + signal_number)

    def _look_ahead(self) -> int:
        """The horizon before the next step, the same in every process: the main one's clock decides."""
        self._total_steps.look(self.step, self._seconds)
        if self.config.minutes and self.world > 1:
            mine = torch.tensor([self._total_steps.steps if self.is_main else 0], device=self.device)
            self._total_steps.steps = int(self.accelerator.gather(mine).max())
        self.progress.total = self._total_steps.steps
        return self._total_steps.steps

    def _write_line(self) -> None:
        self._check_finite()
        means = self._means.take() | self._notes.take()
        if not self.is_main:
            return
        rate = self.progress.rate
        self.progress.values = {name: value for name, value in means.items() if "/" not in name}
        state = {"step": self.step, "images": self.images, "seconds": round(self._seconds, 3)}
        pace = {"images_per_second": round(rate, 3), **self.throughput.line(rate)}
        with writing(self.out / "metrics.jsonl"):
            append_line(self.out / "metrics.jsonl", {**state, **pace, **means})
        with writing(self.out / "tensorboard"):
            self.accelerator.log({**means, **pace}, step=self.step)

    def _check_finite(self) -> None:
        """A loss, over all processes, or weights that are not finite end the run before they can be saved."""
        broken = self.tracked.not_finite()
        if self.world > 1:
            self._means.reduce(lambda total: self.accelerator.reduce(total.to(self.device), "mean").to(total.device))
            found = self.accelerator.reduce(torch.tensor(float(len(broken)), device=self.device), "sum")
            broken = broken or (["weights"] if float(found) else [])
        self._refuse(self._means.not_finite() or broken, self.step)

    def _refuse(self, names: Sequence[str], step: int) -> None:
        """Raises DivergenceError if anything is no longer finite."""
        if not names:
            return
        kept = snapshots.snapshots(self.out / CHECKPOINTS)
        last = f"the last good checkpoint is {kept[-1].path}" if kept else "there is no checkpoint yet"
        raise DivergenceError(
            f"{', '.join(names)} no longer finite at step {step}; {last}: begin anew with a smaller learning rate"
        )

    # ---- start and stop

    def _open(self, resume: bool) -> None:
        if not self.is_main:
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._claim = Claim.of(self.out)
            text = json.dumps(self.full_config, indent=1) + "\n"
            (self.out / "config.json").write_text(text, encoding="utf-8")
            forget_lines_after(self.out / "metrics.jsonl", self._resumed_from.step if self._resumed_from else 0)
        except OSError as error:
            raise refusal(error, self.out, "cannot be written") or InputError(
                f"{self.out} cannot be written ({error.strerror}), expected a folder for the run: choose another one"
            ) from error
        if resume and self._resumed_from is None:
            self.say(f"{self.out} holds no checkpoint yet: starting at step 0")

    def _init_trackers(self) -> None:
        if self.is_main and self.accelerator.log_with:
            options = {"tensorboard": {"purge_step": self.step + 1 if self.step else None}}
            self.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def _agreed_signal(self) -> int:
        """The signal that any process received: all of them must stop after the same step."""
        mine = self._stop.number
        if self.world == 1:
            return mine
        return int(self.accelerator.gather(torch.tensor([mine], device=self.device)).max())


def _trackers(names: Sequence[str]) -> list[str] | None:
    """The trackers for accelerate, which skips a missing one in silence; only TensorBoard, on by default, may be."""
    missing = [name for name in names if find_spec(name) is None]
    if set(missing) - {"tensorboard"}:
        raise InputError(
            f"run.trackers names {', '.join(missing)}, which is not installed: install star-t2i[track], or leave it out"
        )
    return [name for name in names if name not in missing] or None
