"""Teacher forcing: inputs and targets of all scales, from a picture's latent.

B batch, L tokens of all scales, l of one scale, E code width, V codebook, h w finest latent grid, k scale index.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from star.tokenizer.quantizer import MultiScaleQuantizer
from star.tokenizer.scales import ScaleSchedule


@dataclass(frozen=True, slots=True)
class Targets:
    """teacher_input_BlE: (B, L - l_0, E) float32. codes_BL: the right answers, (B, L, ...). L may end after a scale.
    schedule: the grids of the batch's pictures, all scales."""

    teacher_input_BlE: Tensor
    codes_BL: Tensor
    schedule: ScaleSchedule


@torch.no_grad()
def make_targets(
    quantizer: MultiScaleQuantizer,
    latent_BEhw: Tensor,
    *,
    noise: float = 0.0,
    neighbours: int = 0,
    scales: int | None = None,
) -> Targets:
    """Quantises latents into what teacher forcing needs, if asked for with mistakes to repair.

    noise: each picture draws a rate from U(0, noise), and each of its codes is replaced with that probability before
    the following scales are computed; their right answers then describe what the mistakes left over, so
    the network learns to repair what it will get wrong when it draws (Han et al. 2024, "bitwise self-correction").
    Of a token that is a row of bits, each bit is flipped with that probability.
    neighbours: a replacement is one of so many codes nearest to the right one; 0 is any code. Not for bits.
    scales: the targets ends after so many, all if None.
    """
    schedule = quantizer.schedule_of(latent_BEhw)
    count = len(latent_BEhw)
    if not noise:
        return targets_of_codes(quantizer, quantizer.encode(latent_BEhw).codes, scales, schedule)
    rate_B1 = torch.rand(count, 1, device=latent_BEhw.device) * noise
    total_BEhw = quantizer.empty_latent(count, schedule)
    inputs, answers = [], []
    mistaken = quantizer.mistakes(neighbours)
    for k in range(schedule.count):
        right_Bl = quantizer.nearest(quantizer.down(latent_BEhw - total_BEhw, k))
        answers.append(right_Bl)
        if k + 1 == (scales or schedule.count):
            break
        total_BEhw, input_BlE = quantizer.accumulate(total_BEhw, mistaken(right_Bl, rate_B1), k)
        inputs.append(input_BlE)
    known = [i for i in inputs if i is not None]
    empty_BlE = latent_BEhw.new_zeros(count, 0, latent_BEhw.shape[1])
    return Targets(torch.cat(known, dim=1) if known else empty_BlE, torch.cat(answers, dim=1), schedule)


def targets_of_codes(
    quantizer: MultiScaleQuantizer,
    codes: Sequence[Tensor],
    scales: int | None = None,
    schedule: ScaleSchedule | None = None,
) -> Targets:
    """The targets of codes (B, l) that are known, of the first `scales` scales; of all if None.

    schedule: their grids; squares if None.
    """
    codes = codes[:scales]
    teacher_input_BlE = quantizer.teacher_input(codes, schedule)
    return Targets(teacher_input_BlE, torch.cat(list(codes), dim=1), schedule or quantizer.schedule)


def kept_lengths(schedule: ScaleSchedule, keep_last: float) -> tuple[int, ...]:
    """Tokens of each scale that take part where a share of the finest does."""
    *coarser, finest = schedule.lengths
    return (*coarser, max(1, round(keep_last * finest)))


def draw_kept(schedule: ScaleSchedule, keep_last: float) -> Tensor | None:
    """The tokens that take part in a step, int64, ascending: all coarser scales and a random share of the finest.

    None if that is all of them. Ma et al. 2024 train 1024 px so, with 3445 of the finest 4096: memory and time go with
    the tokens. Coarser scales never see the finest, so their losses stay. A token of the finest
    scale misses the neighbours that are left out: its loss is what a full pass would give if nobody saw those, and that
    is the approximation. One draw serves the whole batch (torch's global generator).
    """
    length, kept = schedule.lengths[-1], kept_lengths(schedule, keep_last)[-1]
    if kept == length:
        return None
    start = schedule.length - length
    return torch.cat((torch.arange(start), start + torch.randperm(length)[:kept].sort().values))


def per_scale(loss_BL: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean loss (K,) of each scale of so many tokens, without gradient."""
    return torch.stack([part.mean() for part in loss_BL.detach().split(list(lengths), dim=1)])


def scale_weights(lengths: tuple[int, ...], power: float) -> Tensor:
    """Weight of each token (L,), summing to 1: a scale of l tokens counts as l ** power.

    1 weighs all tokens alike (released); 0 all scales alike, so that the coarse ones are not drowned by the finest.
    """
    total = sum(length**power for length in lengths)
    return torch.cat([torch.full((length,), length ** (power - 1) / total) for length in lengths])
