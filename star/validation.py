"""Held-out pictures of a training: which they are, what they cost the network, and what they would cost without one.

B batch, L tokens of all scales, K number of scales.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.disk import write_text
from data.errors import InputError
from data.pipeline import Batch, Pipeline
from generators.run import Run
from star.encoded import Lessons
from star.teaching import per_scale, token_losses, unigram_nats
from star.transformer import NextScaleTransformer


def is_held_out(key: str, share: float) -> bool:
    """Whether a picture is kept for validation: decided by its key alone, so for ever and on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32


class Validation:
    """Held-out pictures: what they cost the network, and what they would cost knowing only how frequent codes are."""

    def __init__(self, encoder: Lessons, batches: Iterator[Batch], *, share: float = 0.0) -> None:
        """share: of the training shards, where the held-out pictures are among those; see `without_held_out`."""
        self.share = share
        plain = encoder.unprepared()
        self.lessons, self.texts, self.pictures = [], [], 0
        for batch in batches:
            self.lessons.append(plain.lesson(batch))
            self.texts.append(plain.batch_text(batch, batch.prompts))
            self.pictures += len(batch)
        self.schedule, self.vocabulary = encoder.tokenizer.schedule, encoder.tokenizer.vocabulary
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
    def count_codes(self, encoder: Lessons, every: Pipeline, most: int = 20000) -> None:
        """Counts the codes of up to `most` training pictures and measures the held-out ones against them."""
        if not self.lessons:
            return
        codes, seen = [], 0
        for batch in every.one_pass():
            batch = rows(batch, [not is_held_out(key, self.share) for key in batch.keys])
            if len(batch):
                codes.append(encoder.lesson(batch).codes_BL)
            seen += len(batch)
            if seen >= most:
                break
        held_BL = torch.cat([lesson.codes_BL for lesson in self.lessons])
        self.unigram_K = unigram_nats(torch.cat(codes), held_BL, self.schedule.lengths, self.vocabulary).cpu()

    @torch.no_grad()
    def losses(self, network: NextScaleTransformer, run: Run) -> Tensor:
        """Mean nats per token (K,) of the held-out pictures; nan where there are none."""
        was_training = network.training
        network.eval()
        total_K = torch.zeros(self.schedule.count, device=run.device)
        for lesson, text in zip(self.lessons, self.texts, strict=True):
            with run.autocast():
                loss_BL = token_losses(network(lesson.teacher_input_BlE, text), lesson.codes_BL)
            total_K += per_scale(loss_BL, self.schedule.lengths) * len(loss_BL)
        network.train(was_training)
        return total_K / self.pictures if self.pictures else total_K + float("nan")

    def write(self, path: Path, losses_K: Tensor, step: int) -> None:
        """Both numbers of every scale, for the model card and the logs."""
        scales = zip(self.schedule.sizes, losses_K.tolist(), self.unigram_K.tolist(), strict=True)
        values = [{"size": size, "loss": round(loss, 4), "unigram": round(nats, 4)} for size, loss, nats in scales]
        found = {"step": step + 1, "pictures": self.pictures, "scales": values}
        write_text(path, json.dumps(found, indent=1) + "\n")
        self.table = values


def rows(batch: Batch, chosen: Sequence[bool]) -> Batch:
    """The chosen samples of a batch."""
    return batch.pick([row for row, good in enumerate(chosen) if good])


def some(batches: Iterator[Batch], most: int) -> Iterator[Batch]:
    """The first samples, at most so many."""
    seen = 0
    for batch in batches:
        if seen >= most:
            return
        batch = batch.pick(range(min(len(batch), most - seen)))
        seen += len(batch)
        if len(batch):
            yield batch
