"""A training run: steps, state that survives a kill, a log, and stops on signals. The trainer owns its loop.

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

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from star.data.disk import refusal
from star.data.errors import DivergenceError, InputError
from star.data.progress import Progress, clock
from star.generators.training import checkpoint as snapshots
from star.generators.training import ranges
from star.generators.training.folder_lock import Claim
from star.generators.training.processes import Processes
from star.generators.training.run_log import RunLog, installed_trackers
from star.generators.training.signals import Stopped, StopRequest
from star.generators.training.throughput import Throughput
from star.generators.training.total_steps import TotalSteps
from star.generators.training.train_state import CHECKPOINTS, Stateful, TrainState, to_continue

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long, how large and how loud a run is; what is learnt belongs to the trainer's own config."""

    steps: int  # optimiser steps
    minutes: float = 0.0  # of training, after which it ends before its steps, with schedules to match; 0: no limit
    seed: int = 0
    batch_size: int = 32  # pictures per optimiser step, over all processes and accumulated micro-batches
    precision: Literal["no", "bf16"] = "no"  # no: float32, whose products a GPU computes in TF32 (precision.py)
    sharding: Literal["none", "fsdp2"] = "none"  # over processes: copies (DDP), or pieces (FSDP2, see fsdp.py)
    grad_clip: float = 1.0  # largest gradient norm; 0 leaves gradients as they are
    accumulate: int = 1  # micro-batches per optimiser step
    log_every: int = 50  # steps, like the three below
    sample_every: int = 1000  # 0: never
    checkpoint_every: int = 1000
    keep: int = 2  # checkpoints
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)  # beside metrics.jsonl
    peak_tflops: float = 0.0  # of one device by its data sheet, to log how much of it is used; 0: measured

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"run.{name} is {getattr(self, name)}, expected at least 1: correct it")
        for name in ("minutes", "seed", "grad_clip", "sample_every", "peak_tflops"):
            if getattr(self, name) < 0:
                raise InputError(f"run.{name} is {getattr(self, name)}, expected at least 0: correct it")


class Run(Processes):
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
        super().__init__(
            precision=config.precision,
            sharding=config.sharding,
            accumulate=config.accumulate,
            grad_clip=config.grad_clip,
            seed=config.seed,
            log_with=installed_trackers(config.trackers),
            project_dir=self.out,
        )
        parts = self.world * config.accumulate
        if config.batch_size % parts:
            raise InputError(
                f"run.batch_size is {config.batch_size}, expected a multiple of {parts} ({self.world} processes x "
                f"{config.accumulate} accumulated micro-batches): change one of them"
            )
        self.micro_batch_size = config.batch_size // parts  # pictures per process and forward pass: the pipeline's size
        self.step = 0  # finished steps
        self.images = 0  # pictures seen by all processes
        self.tracked = TrainState(self.accelerator, in_pieces=self.in_pieces)
        self._log = RunLog(self.out, self)
        self.throughput = Throughput(config.peak_tflops, self.world, self._ceiling)
        self._seconds = 0.0  # of training, over all starts of this run
        self._total_steps = TotalSteps(config.steps, config.minutes)
        self._stop = StopRequest(self.say)
        self.progress = Progress(None, unit="steps", rate_unit="images", bar=False)  # until steps() begins
        self._resumed_from = to_continue(self.out, self.full_config, resume)
        self._open(resume)
        self.seed(rank=0, step=0)

    # ---- what the trainer's loop uses

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
        self._log.load_state_dict(state)
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
        self._log.open_trackers(self.step)
        self.progress = Progress(
            self.config.steps, unit="steps", rate_unit="images", start=self.step, enabled=self.is_main
        )
        self._began_at = time.monotonic() - self._seconds
        self._images_before = self.images
        try:
            with self._stop:
                while self.step < self._agreed_total_steps():
                    self.seed(rank=self.rank, step=self.step)
                    self.throughput.begin()
                    yield self.step
                    if hint := self.throughput.end():
                        self.say(hint)
                    self._finish_step()
            self.say(f"{self.step} steps and {self.images} images in {clock(self._seconds)}; wrote {self.out}")
        finally:
            self.progress.close()
            self._log.close()

    def feed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; the time spent waiting for them is logged, and told where it starves the device."""
        return self.throughput.feed(batches)

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
        self._log.means.add(values)

    def note(self, values: Mapping[str, float | Tensor]) -> None:
        """Adds to the next log line what only the main process knows; the others' notes are dropped."""
        if self.is_main:
            self._log.notes.add(values)

    def picture(self, name: str, pixels_3HW: Tensor, step: int) -> Path:
        """Writes uint8 pixels to `pictures/<name>-<finished steps>.png` and to the trackers; returns the path."""
        return self._log.picture(name, pixels_3HW, step + 1)

    def say(self, text: str) -> None:
        """Prints a line on the main process without tearing the progress bar."""
        if self.is_main:
            self.progress.say(text)

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
            **self._log.state_dict(),
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
        signal_number = self.agreed(self._stop.number)  # all must stop after the same step
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

    def _agreed_total_steps(self) -> int:
        """How many steps the run will have, the same in every process: the main one's clock decides."""
        self._total_steps.update(self.step, self._seconds)
        if self.config.minutes:
            self._total_steps.steps = self.agreed(self._total_steps.steps if self.is_main else 0)
        self.progress.total = self._total_steps.steps if self._total_steps.known else None
        return self._total_steps.steps

    def _write_line(self) -> None:
        self._check_finite()
        rate = self.progress.rate
        counts = {"step": self.step, "images": self.images, "seconds": round(self._seconds, 3)}
        speed = {"images_per_second": round(rate, 3), **self.throughput.line(rate)} if self.is_main else {}
        means = self._log.write(counts, speed)
        if self.is_main:
            self.progress.values = {name: value for name, value in means.items() if "/" not in name}

    def _ceiling(self) -> float:
        """FLOP/s of products on this device in the type of the run, with no trace in what is drawn at random."""
        from star.generators.measuring import matmul_ceiling

        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            kind = "bfloat16" if self.config.precision == "bf16" else "float32"
            return matmul_ceiling(self.device, kind, side=8192 if cuda else 1024)

    def _check_finite(self) -> None:
        """A loss, over all processes, or weights that are not finite end the run before they can be saved."""
        broken = self.tracked.not_finite()
        if self.world > 1:
            self._log.reduce()
            found = self.accelerator.reduce(torch.tensor(float(len(broken)), device=self.device), "sum")
            broken = broken or (["weights"] if float(found) else [])
        self._refuse(self._log.means.not_finite() or broken, self.step)

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
            self._log.continue_at(self._resumed_from.step if self._resumed_from else 0)
        except OSError as error:
            raise refusal(error, self.out, "cannot be written") or InputError(
                f"{self.out} cannot be written ({error.strerror}), expected a folder for the run: choose another one"
            ) from error
        if resume and self._resumed_from is None:
            self.say(f"{self.out} holds no checkpoint yet: starting at step 0")
