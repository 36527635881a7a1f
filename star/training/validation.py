"""Held-out pictures of a training: which they are, what they cost the network, and what they would cost without one.

Every process has a part of them, and all together compute each number, in portions that fit beside the training.

N pictures of this process, B batch, L tokens of all scales, K number of scales.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from star.data.disk import write_text
from star.data.errors import InputError
from star.data.loader.pipeline import Batch, Pipeline
from star.data.text import TextFeatures
from star.generators.training.run import Run
from star.model.transformer import NextScaleTransformer
from star.planning.memory import looked_at_once
from star.tokenizer.tokens import zeros
from star.training.inputs import TrainingInputs
from star.training.targets import per_scale, targets_of_codes


def is_held_out(key: str, share: float) -> bool:
    """Whether a picture is kept for validation: decided by its key alone, so for ever and on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32


class Measured:
    """Pictures whose losses are measured: their codes and words, kept in main memory."""

    def __init__(self, encoder: TrainingInputs, batches: Iterator[Batch]) -> None:
        """batches: encoded once, each picture under its first caption."""
        self.encoder, self.schedule = encoder, encoder.tokenizer.schedule
        self.tokens = encoder.tokenizer.tokens
        codes, texts = [zeros(self.tokens, 0, self.schedule.length)], []
        for batch in batches:
            codes.append(encoder.targets(batch).codes_BL.cpu())
            texts.append(encoder.batch_text(batch, batch.prompts).to("cpu"))
        self.codes_NL = torch.cat(codes)
        self.text_N = TextFeatures.cat(texts) if texts else None

    def __len__(self) -> int:
        return len(self.codes_NL)

    @torch.no_grad()
    def losses(self, network: NextScaleTransformer, run: Run, *, alone: bool = False) -> Tensor:
        """Mean nats per token, or per bit, (K,) of the pictures of all processes; nan where there are none.

        Every process must ask for it, since a network in pieces computes in all of them at once; alone: this process's
        pictures only, for a network that is whole.
        """
        portion = looked_at_once(network.config, half=run.config.precision == "bf16")
        rounds, world = -(-len(self) // portion), 1 if alone else run.world
        if world > 1:
            rounds = int(run.accelerator.gather(torch.tensor([rounds], device=run.device)).max())
        was_training = network.training
        network.eval()
        sum_K1 = torch.zeros(self.schedule.count + 1, dtype=torch.float64, device=run.device)  # and the pictures
        for start in range(0, rounds * portion, portion):
            codes_BL, text, count = self._portion(slice(start, start + portion), run.device)
            targets = targets_of_codes(self.encoder.tokenizer.quantizer, self.schedule.split(codes_BL))
            with run.autocast():
                loss_BL = network(targets.teacher_input_BlE, text, codes_BL=codes_BL)
            sum_K1[:-1] += per_scale(loss_BL, self.schedule.lengths) * count
            sum_K1[-1] += count
        network.train(was_training)
        if reshard := getattr(network, "reshard", None):  # the root of a network in pieces stays whole after a forward
            reshard()
        if world > 1:
            sum_K1 = run.accelerator.reduce(sum_K1, "sum")
        return (sum_K1[:-1] / sum_K1[-1]).float()

    def _portion(self, span: slice, device: torch.device) -> tuple[Tensor, TextFeatures, int]:
        """Codes (B, L), words, and how many pictures count: none where others still have some, and one is made up."""
        codes_BL = self.codes_NL[span].to(device)
        if not len(codes_BL) or self.text_N is None:
            return zeros(self.tokens, 1, self.schedule.length, device), self.encoder.null_text, 0
        rows = torch.arange(len(self))[span]
        return codes_BL, self.text_N[rows].to(device), len(codes_BL)


class Validation:
    """Held-out pictures: what they cost the network, and what they would cost knowing only how frequent codes are."""

    def __init__(self, encoder: TrainingInputs, batches: Iterator[Batch], run: Run, *, share: float = 0.0) -> None:
        """batches: this process's. share: of the training shards, where the held-out pictures are among those; see
        `without_held_out`."""
        self.share, self.run = share, run
        self.measured = Measured(encoder.unprepared(), batches)
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
        held = self.tokens.counts(self.schedule.split(self.measured.codes_NL))
        train = torch.zeros_like(held)
        for batch in shared_out(every, self.run, lambda key: not is_held_out(key, self.share), most):
            train += self.tokens.counts(self.schedule.split(encoder.targets(batch).codes_BL))
        self.unigram_K = self.tokens.unigram_nats(_sum(train, self.run), _sum(held, self.run))

    def losses(self, network: NextScaleTransformer) -> Tensor:
        """Mean nats per token, or per bit, (K,) of the held-out pictures, see Measured; nan where there are none."""
        return self.measured.losses(network, self.run)

    def write(self, path: Path, losses_K: Tensor, step: int) -> None:
        """Both numbers of every scale, for the model card and the logs."""
        scales = zip(self.schedule.sizes, losses_K.tolist(), self.unigram_K.tolist(), strict=True)
        values = [{"size": size, "loss": round(loss, 4), "unigram": round(nats, 4)} for size, loss, nats in scales]
        found = {"step": step + 1, "pictures": self.pictures, "scales": values}
        if self.tokens.unit != "token":
            found["unit"] = self.tokens.unit
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
