"""Held-out pictures of a training: which they are, what they cost the network, and what they would cost without one.

Every process has a part of them, and all together compute each number, in portions that fit beside the training.

N pictures of this process, B batch, L tokens of all scales, K number of scales.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from star.data.disk import write_text
from star.data.errors import InputError
from star.data.loader.pipeline import Batch, Pipeline
from star.data.text import TextFeatures
from star.generators.training.run import Run
from star.model.transformer import TransformerConfig
from star.planning.memory import looked_at_once
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import TokenKind, zeros
from star.training.inputs import TrainingInputs
from star.training.targets import per_scale, targets_of_codes


def is_held_out(key: str, share: float) -> bool:
    """Whether a picture is kept for validation: decided by its key alone, so for ever and on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32


class Network(Protocol):
    """What is measured: a transformer, or one with something behind it, that gives the loss of every token."""

    config: TransformerConfig
    training: bool

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def __call__(self, teacher_input_BlE: Tensor, text: TextFeatures, **given: Any) -> Tensor: ...


class Measured:
    """Pictures whose losses are measured: their codes and words, kept in main memory."""

    def __init__(
        self, encoder: TrainingInputs, batches: Iterator[Batch], schedules: Sequence[ScaleSchedule] = ()
    ) -> None:
        """batches: encoded once, each picture under its first caption. schedules: of all shapes that come; squares
        where none are given."""
        self.encoder, self.schedule = encoder, encoder.tokenizer.schedule
        kind, null_text = encoder.tokenizer.tokens, encoder.null_text
        self.shapes = {schedule: _Shape(schedule, null_text, kind) for schedule in schedules or (self.schedule,)}
        for batch in batches:
            targets = encoder.targets(batch)
            self.shapes[targets.schedule].add(
                targets.codes_BL.cpu(), encoder.batch_text(batch, batch.prompts).to("cpu")
            )

    def __len__(self) -> int:
        return sum(len(shape) for shape in self.shapes.values())

    def losses(self, network: Network, run: Run, *, alone: bool = False) -> Tensor:
        """Mean nats per token (K,) of the pictures of all processes; nan where there are none. See `sums`."""
        return means(self.sums(network, run, alone=alone).sum(dim=0))

    @torch.no_grad()
    def sums(self, network: Network, run: Run, *, alone: bool = False) -> Tensor:
        """Sums over pictures of mean nats per token or bit of each scale, and their number: float64 (shapes, K + 1).

        Every process must ask for it, since a network in pieces computes in all of them at once; alone: this process's
        pictures only, for a network that is whole.
        """
        portion = looked_at_once(network.config, half=run.config.precision == "bf16")
        rounds = torch.tensor([-(-len(shape) // portion) for shape in self.shapes.values()], device=run.device)
        world = 1 if alone else run.world
        if world > 1:
            rounds = run.accelerator.gather(rounds).view(world, -1).amax(dim=0)
        was_training = network.training
        network.eval()
        sum_SK1 = torch.zeros(len(rounds), self.schedule.count + 1, dtype=torch.float64, device=run.device)
        for sum_K1, shape, times in zip(sum_SK1, self.shapes.values(), rounds.tolist(), strict=True):
            for start in range(0, times * portion, portion):
                codes_BL, text, count = shape.portion(slice(start, start + portion), run.device)
                codes, schedule = shape.schedule.split(codes_BL), shape.schedule
                targets = targets_of_codes(self.encoder.tokenizer.quantizer, codes, schedule=schedule)
                with run.autocast():
                    loss_BL = network(targets.teacher_input_BlE, text, codes_BL=codes_BL, schedule=schedule)
                sum_K1[:-1] += per_scale(loss_BL, schedule.lengths) * count
                sum_K1[-1] += count
        network.train(was_training)
        if reshard := getattr(network, "reshard", None):  # the root of a network in pieces stays whole after a forward
            reshard()
        return run.accelerator.reduce(sum_SK1, "sum") if world > 1 else sum_SK1


class _Shape:
    """The pictures of one shape."""

    def __init__(self, schedule: ScaleSchedule, null_text: TextFeatures, tokens: TokenKind) -> None:
        self.schedule, self.null_text, self.tokens = schedule, null_text, tokens
        self._codes = [zeros(tokens, 0, schedule.length)]
        self._texts: list[TextFeatures] = []

    def add(self, codes_BL: Tensor, text: TextFeatures) -> None:
        """Takes some pictures, on the CPU."""
        self._codes.append(codes_BL)
        self._texts.append(text)

    def __len__(self) -> int:
        return sum(len(codes_BL) for codes_BL in self._codes)

    @property
    def codes_NL(self) -> Tensor:
        """Those of all pictures."""
        if len(self._codes) > 1:
            self._codes = [torch.cat(self._codes)]
        return self._codes[0]

    def portion(self, span: slice, device: torch.device) -> tuple[Tensor, TextFeatures, int]:
        """Codes (B, L), words, and how many pictures count: none where others still have some, and one is made up."""
        codes_BL = self.codes_NL[span].to(device)
        if not len(codes_BL):
            return zeros(self.tokens, 1, self.schedule.length, device), self.null_text, 0
        if len(self._texts) > 1:
            self._texts = [TextFeatures.cat(self._texts)]
        return codes_BL, self._texts[0][torch.arange(len(self))[span]].to(device), len(codes_BL)


def means(sum_K1: Tensor) -> Tensor:
    """Mean nats per token (K,), float32, of sums and the number of pictures."""
    return (sum_K1[:-1] / sum_K1[-1]).float()


class Validation:
    """Held-out pictures: what they cost the network, and what they would cost knowing only how frequent codes are."""

    def __init__(
        self,
        encoder: TrainingInputs,
        batches: Iterator[Batch],
        run: Run,
        *,
        share: float = 0.0,
        schedules: Sequence[ScaleSchedule] = (),
    ) -> None:
        """batches: this process's. share: of the training shards, where the held-out pictures are among those; see
        `without_held_out`. schedules: see Measured."""
        self.share, self.run = share, run
        self.measured = Measured(encoder.unprepared(), batches, schedules)
        self.of_shapes: dict[str, Tensor] = {}  # the latest losses (K,) of each shape, where there are several
        self.pictures = int(_sum(torch.tensor(len(self.measured)), run))
        self.schedule, self.tokens = encoder.tokenizer.schedule, encoder.tokenizer.tokens
        self.unigram_K = torch.full((self.schedule.count,), float("nan"))

    def without_held_out(self, batch: Batch) -> Batch:
        """The batch with each held-out picture replaced by another one of it, so that its size stays."""
        if not self.share:
            return batch
        good = [row for row, key in enumerate(batch.keys) if not is_held_out(key, self.share)]
        if len(good) == len(batch):
            return batch
        if not good:
            raise InputError(
                f"all {len(batch)} pictures of a batch are held out for validation: lower held_out from {self.share}"
            )
        places = [row if row in set(good) else good[row % len(good)] for row in range(len(batch))]
        return batch.pick(places)

    @torch.no_grad()
    def count_codes(self, encoder: TrainingInputs, every: Pipeline, most: int = 20000) -> None:
        """Counts the codes of up to `most` training pictures and measures the held-out ones against them.

        The pictures are shared out over the processes, all of which must ask for it.
        """
        if not self.pictures:
            return
        shapes = self.measured.shapes.values()
        held = torch.stack([self.tokens.counts(shape.schedule.split(shape.codes_NL)) for shape in shapes]).sum(dim=0)
        train = torch.zeros_like(held)
        for batch in shared_out(every, self.run, lambda key: not is_held_out(key, self.share), most):
            targets = encoder.targets(batch)
            train += self.tokens.counts(targets.schedule.split(targets.codes_BL))
        self.unigram_K = self.tokens.unigram_nats(_sum(train, self.run), _sum(held, self.run))

    def losses(self, network: Network) -> Tensor:
        """Mean nats per token (K,) of the held-out pictures, see Measured; nan where there are none."""
        sum_SK1 = self.measured.sums(network, self.run)
        if len(sum_SK1) > 1:
            names = ("{}x{}".format(*schedule.grid) for schedule in self.measured.shapes)
            found = zip(names, sum_SK1, strict=True)
            self.of_shapes = {name: means(sum_K1) for name, sum_K1 in found if float(sum_K1[-1])}
        return means(sum_SK1.sum(dim=0))

    def write(self, path: Path, losses_K: Tensor, step: int) -> None:
        """Both numbers of every scale, for the model card and the logs."""
        scales = zip(self.schedule.sizes, losses_K.tolist(), self.unigram_K.tolist(), strict=True)
        values = [{"size": size, "loss": round(loss, 4), "unigram": round(nats, 4)} for size, loss, nats in scales]
        found = {"step": step + 1, "pictures": self.pictures, "scales": values}
        if self.tokens.unit != "token":
            found["unit"] = self.tokens.unit
        if self.of_shapes:  # by the finest grid, h x w
            found["shapes"] = {
                shape: [round(loss, 4) for loss in of_K.tolist()] for shape, of_K in self.of_shapes.items()
            }
        write_text(path, json.dumps(found, indent=1) + "\n")
        self.table = values


def rows(batch: Batch, chosen: Sequence[bool]) -> Batch:
    """The chosen samples of a batch."""
    return batch.pick([row for row, good in enumerate(chosen) if good])


def shared_out(pipeline: Pipeline, run: Run, chosen: Callable[[str], bool], most: int) -> Iterator[Batch]:
    """The part of this process of the first `most` samples whose keys are chosen.

    Which samples these are does not depend on the number of processes: each decodes its turn of the windows of one
    pass, and after every round they agree how far they have come. All must iterate to the end.
    """
    windows, left = pipeline.windows(run.rank, run.world), most
    while left > 0:
        window = next(windows, None)
        batch = None if window is None else rows(window, [chosen(key) for key in window.keys])
        mine = torch.tensor([-1 if batch is None else len(batch)], device=run.device)
        found = (run.accelerator.gather(mine) if run.world > 1 else mine).tolist()
        if max(found) < 0:
            return
        before = sum(max(0, count) for count in found[: run.rank])
        left, room = left - sum(max(0, count) for count in found), left - before
        if batch is not None and (taken := min(len(batch), room)) > 0:
            yield batch.pick(range(taken))


def _sum(tensor: Tensor, run: Run) -> Tensor:
    """The sum over all processes, on the CPU."""
    return run.accelerator.reduce(tensor.to(run.device), "sum").cpu() if run.world > 1 else tensor
