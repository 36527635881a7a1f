"""Learning to say hidden codes of a scale by those that are known: masks, losses, and both on held-out pictures.

B batch, l tokens of one scale, L of all scales, R of those that are refined, E code width, C model width, D text width,
k scale index.

The refined scales are the last ones of the pyramid. Each is computed by itself, with its own copy of the token that
stands for the text, exactly as it is drawn. (The released training computes all in one pass, in which that token hands
on from scale to scale what it saw; `Refiner.mask` has it so. A hidden code could there be told by a finer scale.)
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from star.data.text import TextFeatures
from star.model.heads import head_of
from star.model.refiner import Refiner
from star.model.transformer import NextScaleTransformer
from star.tokenizer.quantizer import MultiScaleQuantizer
from star.tokenizer.scales import ScaleSchedule

SHARES = (0.0, 0.25, 0.5, 0.75)  # of a scale's codes that are known where held-out pictures are measured
HIDDEN = {"uniform": 0.5, "released": 1 - 2 / math.pi}  # share of the codes that are hidden, on average


def draw_known(
    lengths: tuple[int, ...], batch: int, law: Literal["uniform", "released"], device: torch.device
) -> Tensor:
    """Which codes are known (B, R): bool. Each scale of each picture draws a share, and each code is known by it.

    law: of the share. "uniform": from U(0, 1), so that the mean loss of a hidden code is what a picture costs that is
    revealed in random order, code by code. "released": 2/pi arccos(u), mostly above a half (Ma et al. 2024).
    """
    parts = []
    for length in lengths:
        share_B1 = torch.rand(batch, 1, device=device)
        if law == "released":
            share_B1 = share_B1.arccos() * (2 / math.pi)
        parts.append(torch.rand(batch, length, device=device) < share_B1)
    return torch.cat(parts, dim=1)


def known_share(lengths: tuple[int, ...], share: float, device: torch.device) -> Tensor:
    """A share of each scale's tokens, rounded down, the same in every call: bool (R,). Larger shares hold smaller."""
    parts = []
    for place, length in enumerate(lengths):
        order_l = torch.randperm(length, generator=torch.Generator().manual_seed(place))
        parts.append(torch.zeros(length, dtype=torch.bool).index_fill(0, order_l[: int(share * length)], True))
    return torch.cat(parts).to(device)


class MaskedLosses(nn.Module):
    """What the hidden codes of the refined scales cost: the refiner as it learns."""

    def __init__(self, refiner: Refiner, transformer: NextScaleTransformer) -> None:
        super().__init__()
        self.refiner, self.token_head = refiner, head_of(transformer.config.tokens)
        self.first = min(plan.scale for plan in refiner.config.plans)

    def lengths(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """Tokens of each refined scale."""
        return schedule.lengths[self.first :]

    def forward(
        self,
        pooled_BD: Tensor,
        vectors_BRE: Tensor,
        known_BR: Tensor,
        hidden_BRC: Tensor,
        codes_BR: Tensor,
        schedule: ScaleSchedule,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Nats of every token, or per bit, float32 (B, R): 0 where it is known.

        vectors_BRE: what the codes say, of which only the known are read. hidden_BRC: the transformer's states.
        (The published objective, `refiner.masked_loss`, adds for known codes a constant, and a class to all others.)
        """
        text_BSC, lengths = self.refiner.text_token(pooled_BD), list(self.lengths(schedule))
        parts = zip(
            schedule.slices[self.first :],
            *(tensor.split(lengths, dim=1) for tensor in (vectors_BRE, known_BR, hidden_BRC, codes_BR)),
            strict=True,
        )
        losses = []
        for span, vectors_BlE, known_Bl, hidden_BlC, codes_Bl in parts:
            logits_BlV = self.refiner(text_BSC, vectors_BlE, known_Bl, hidden_BlC, span, schedule=schedule)
            losses.append(self.token_head.losses(logits_BlV, codes_Bl, label_smoothing))
        return torch.cat(losses, dim=1).masked_fill(known_BR, 0.0)

    def vectors(self, quantizer: MultiScaleQuantizer, codes_BL: Tensor, schedule: ScaleSchedule) -> Tensor:
        """What the codes of the refined scales say: (B, R, E)."""
        return refined_vectors(quantizer, codes_BL, schedule, range(self.first, schedule.count))


def refined_vectors(quantizer: MultiScaleQuantizer, codes_BL: Tensor, schedule: ScaleSchedule, scales: range) -> Tensor:
    """What the codes of some scales say: (B, R, E)."""
    return torch.cat([quantizer.vectors(codes_BL[:, schedule.slices[k]], k) for k in scales], dim=1)


class Refined(nn.Module):
    """A transformer with a refiner behind it, as held-out pictures are measured (validation.Measured): with a `share`
    of the refined scales' codes known, the loss of the others; of coarser scales the transformer's own, and of all
    while it is `alone`: what the transformer pays for the same codes."""

    def __init__(self, transformer: NextScaleTransformer, masked: MaskedLosses, quantizer: MultiScaleQuantizer) -> None:
        super().__init__()
        self.transformer, self.masked, self.quantizer = transformer, masked, quantizer
        self.config, self.share, self.alone = transformer.config, 0.0, False

    def forward(
        self, teacher_input_BlE: Tensor, text: TextFeatures, *, codes_BL: Tensor, schedule: ScaleSchedule
    ) -> Tensor:
        """Nats of every token (B, L), float32: so scaled that a scale's mean is that of its hidden codes."""
        hidden_BLC, condition_BC = self.transformer.hidden(teacher_input_BlE, text, schedule=schedule)
        start = schedule.offsets[self.masked.first]
        lengths, known_R = self._lengths(schedule), self._known(schedule, codes_BL.device)
        if self.alone:
            loss_BL = self.transformer.losses(hidden_BLC, condition_BC, codes_BL)
            coarse_Bl, loss_BR = loss_BL[:, :start], loss_BL[:, start:].masked_fill(known_R, 0.0)
        else:
            coarse_Bl = self.transformer.losses(hidden_BLC[:, :start], condition_BC, codes_BL[:, :start])
            loss_BR = self.masked(
                text.pooled_BD,
                self.masked.vectors(self.quantizer, codes_BL, schedule),
                known_R.expand(len(codes_BL), -1),
                hidden_BLC[:, start:],
                codes_BL[:, start:],
                schedule,
            )
        factors = [1 / (~known_l).float().mean().expand(len(known_l)) for known_l in known_R.split(lengths)]
        return torch.cat((coarse_Bl, loss_BR * torch.cat(factors)), dim=1)

    def _known(self, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        return known_share(self.masked.lengths(schedule), self.share, device)

    def _lengths(self, schedule: ScaleSchedule) -> list[int]:
        return list(self.masked.lengths(schedule))

    def reshard(self) -> None:
        """A refiner in pieces (FSDP2) is whole after a forward pass: it is cut again."""
        if reshard := getattr(self.masked, "reshard", None):
            reshard()
