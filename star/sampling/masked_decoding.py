"""Causal-driven stable sampling: a fine scale is revealed over several steps instead of drawn at once.

B pictures, R CFG rows (conditional, then unconditional ones), l tokens of one scale, V codebook, E code width, k scale
index. Ma et al. 2024, released 1024 px sampler. In every step all tokens of the scale are drawn, and some of them are
kept; a kept token is never revised. The first steps of most scales draw from the transformer's own logits, which do not
change; later ones from the refiner, which sees what was kept. Which steps those are is data: `refiner.ScalePlan`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from star.data.text import TextFeatures
from star.model.refiner import Refiner
from star.sampling.sampler import SampleRng, guide
from star.tokenizer.quantizer import MultiScaleQuantizer
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import where, zeros


def unmask_counts(length: int, steps: int) -> tuple[int, ...]:
    """How many of `length` tokens each step reveals: few at first, more and more; rounded, and together all of them.

    Step s takes a share of arccos(1 - s / (steps - 1)), at least one token; the last takes what is left, if anything.
    """
    share = torch.arccos(torch.linspace(1, 0, steps))
    counts = [max(1, round(part)) for part in (share / share.sum() * length).tolist()]
    return (*counts[:-1], max(0, counts[-1] + length - sum(counts)))


@dataclass(slots=True)
class PartialScale:
    """One scale while it is revealed: codes where `step_Bl` names the step that revealed them, -1 where none has."""

    codes_Bl: Tensor
    step_Bl: Tensor

    @property
    def known_Bl(self) -> Tensor:
        """bool, where a code is fixed."""
        return self.step_Bl >= 0

    def reveal(self, drawn_Bl: Tensor, worth_Bl: Tensor, count: int, step: int) -> None:
        """Fixes the codes drawn at the `count` positions of highest worth; those fixed before stay as they are."""
        best = worth_Bl.sort(dim=-1, descending=True, stable=True).indices[:, :count]
        new_Bl = torch.zeros_like(self.known_Bl).scatter(1, best, True) & ~self.known_Bl
        self.codes_Bl = where(new_Bl, drawn_Bl, self.codes_Bl)
        self.step_Bl = self.step_Bl.masked_fill(new_Bl, step)


class MaskedDecoder:
    """Draws the scales that its refiner has a plan for."""

    schedule: ScaleSchedule | None = None

    def __init__(self, refiner: Refiner, quantizer: MultiScaleQuantizer, schedule: ScaleSchedule | None = None) -> None:
        """schedule: the grids of the pictures; squares if None."""
        self.refiner, self.quantizer, self.schedule = refiner, quantizer, schedule

    def covers(self, k: int) -> bool:
        """Whether scale k is revealed step by step."""
        return self.refiner.config.plan(k) is not None

    def draw(
        self,
        hidden_RlC: Tensor,
        logits_BlV: Tensor,
        k: int,
        rows: "TextFeatures | Tensor",
        guidance: float,
        rng: SampleRng,
    ) -> Tensor:
        """Codes (B, l) of scale k; see `reveal`."""
        return self.reveal(hidden_RlC, logits_BlV, k, rows, guidance, rng).codes_Bl

    def reveal(
        self,
        hidden_RlC: Tensor,
        logits_BlV: Tensor,
        k: int,
        rows: "TextFeatures | Tensor",
        guidance: float,
        rng: SampleRng,
    ) -> PartialScale:
        """The whole scale.

        hidden_RlC: the transformer's hidden states; logits_BlV: its logits after guidance. rows: the text of at least
        R rows. guidance: full strength t, at which the refiner's two halves are combined. A plain step first reveals
        the surest tokens, whether or not they are known already, and then as many unknown ones: such a scale may be
        complete before its last step, which then changes nothing. Whether it is would have to be asked of the device,
        and so waited for, in every step.
        """
        plan, schedule = self.refiner.config.plan(k), self.schedule or self.refiner.schedule
        assert plan is not None
        if not isinstance(rows, TextFeatures):
            raise ValueError("the refiner is conditioned on text: give TextFeatures, not class labels")
        B, length, _ = logits_BlV.shape
        cfg_rows = len(hidden_RlC) // B
        text_RSC = self.refiner.text_token(rows.pooled_BD[: len(hidden_RlC)])
        start = zeros(self.quantizer.tokens, B, length, logits_BlV.device)
        canvas = PartialScale(start, torch.full((B, length), -1, device=logits_BlV.device))
        for step, count in enumerate(unmask_counts(length, plan.steps)):
            if step >= plan.plain:
                known_BlE = self.quantizer.vectors(canvas.codes_Bl, k).to(hidden_RlC.dtype)
                logits_RlV = self.refiner(
                    text_RSC,
                    known_BlE.repeat(cfg_rows, 1, 1),
                    canvas.known_Bl.repeat(cfg_rows, 1),
                    hidden_RlC,
                    schedule.slices[k],
                    schedule=schedule,
                )
                logits_BlV = guide(logits_RlV, guidance) if cfg_rows == 2 else logits_RlV
            kept_BlV = rng.keep(logits_BlV, k / max(self.refiner.schedule.count - 1, 1))
            drawn_Bl = rng.pick(kept_BlV, k, step)
            worth_Bl = rng.head.probability(kept_BlV, drawn_Bl)
            if step < plan.plain:
                canvas.reveal(drawn_Bl, worth_Bl, count, step)
            if step < plan.shuffled:
                worth_Bl = rng.order(k, step, length).to(worth_Bl.device, non_blocking=True)
            canvas.reveal(drawn_Bl, worth_Bl.masked_fill(canvas.known_Bl, -1.0), count, step)
        return canvas
