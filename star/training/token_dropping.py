"""Which tokens of the pyramid a training step computes: all of them, few of the finest scale, or coarse scales alone.

K number of scales, k scale index, L tokens that take part.
A scale never sees finer ones, so the first scales of a picture are a whole targets by themselves, and a cheap one: what
decides the shape of a picture can be learnt from many more pictures than its edges in the same time.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from star.data.errors import InputError
from star.tokenizer.scales import ScaleSchedule
from star.training.targets import draw_kept, kept_lengths, scale_weights


@dataclass(frozen=True, slots=True)
class Part:
    """What a step computes: the first `scales` scales, and of the finest of all, if it is among them, a share."""

    schedule: ScaleSchedule
    scales: int
    keep_last: float = 1.0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each scale that take part."""
        return kept_lengths(self.schedule, self.keep_last)[: self.scales]

    def of(self, schedule: ScaleSchedule) -> "Part":
        """The same part of pictures of other grids."""
        return self if schedule == self.schedule else replace(self, schedule=schedule)

    def draw(self) -> Tensor | None:
        """Which tokens of these scales take part in one step, see targets.draw_kept; None is all of them."""
        return draw_kept(self.schedule, self.keep_last) if self.scales == self.schedule.count else None

    def take(self, codes_BL: Tensor) -> tuple[Tensor | None, Tensor]:
        """kept_L of one step, see `draw`, where the codes lie, and the codes of these tokens."""
        kept_L = self.draw()
        if kept_L is None:
            return None, codes_BL
        kept_L = kept_L.to(codes_BL.device)
        return kept_L, codes_BL[:, kept_L]


@dataclass(frozen=True, slots=True)
class ScaleCurriculum:
    """The parts of a run and their order.

    keep_last: share of the finest scale's tokens that a step computes. whole_last: share of the steps, at the end, that
    compute everything. coarse_scales, coarse_steps: of the steps before those, this share computes only so many scales,
    the others spread evenly among them.
    """

    schedule: ScaleSchedule
    keep_last: float = 1.0
    whole_last: float = 0.0
    coarse_scales: int = 0
    coarse_steps: float = 0.0

    def shares(self) -> dict[Part, float]:
        """Every part that occurs, and its share of the steps."""
        found: dict[Part, float] = {}
        early = 1 - self.whole_last
        for part, share in (
            (self._coarse, early * self.coarse_steps),
            (self._wide, early * (1 - self.coarse_steps)),
            (self._whole, self.whole_last),
        ):
            if share > 0:
                found[part] = found.get(part, 0.0) + share
        return found

    def at(self, step: int, steps: int) -> Part:
        """What step number `step` of `steps` computes."""
        if step >= steps * (1 - self.whole_last):
            return self._whole
        wide = 1 - self.coarse_steps
        # Rounded: 1 - 0.8 is a little less than 0.2, and five times that must count as one.
        return self._wide if round((step + 1) * wide, 9) // 1 > round(step * wide, 9) // 1 else self._coarse

    @property
    def _whole(self) -> Part:
        return Part(self.schedule, self.schedule.count)

    @property
    def _wide(self) -> Part:
        return Part(self.schedule, self.schedule.count, self.keep_last)

    @property
    def _coarse(self) -> Part:
        return Part(self.schedule, self.coarse_scales)


class Curriculum(Protocol):
    """The settings of a training that decide what its steps compute."""

    @property
    def keep_last_scale(self) -> float: ...

    @property
    def coarse_scales(self) -> int: ...

    @property
    def coarse_steps(self) -> float: ...


def check_curriculum(config: Curriculum) -> None:
    """Raises InputError for a setting out of its range."""
    if not 0 < config.keep_last_scale <= 1:
        raise InputError(
            f"keep_last_scale is {config.keep_last_scale}, expected a share above 0 and up to 1: correct it"
        )
    if not 0 <= config.coarse_steps <= 1:
        raise InputError(f"coarse_steps is {config.coarse_steps}, expected a share from 0 to 1: correct it")
    if config.coarse_scales < 0 or (config.coarse_steps > 0) != (config.coarse_scales > 0):
        raise InputError(
            f"coarse_scales is {config.coarse_scales} and coarse_steps {config.coarse_steps}, expected both positive, "
            "or both 0: correct one of them"
        )


def curriculum_of(config: Curriculum, schedule: ScaleSchedule, whole_last: float = 0.0) -> ScaleCurriculum:
    """What each step computes. Raises InputError if there are too few scales for it."""
    if config.coarse_scales >= schedule.count:
        raise InputError(
            f"coarse_scales is {config.coarse_scales}, but the tokenizer has {schedule.count} scales: give fewer"
        )
    return ScaleCurriculum(schedule, config.keep_last_scale, whole_last, config.coarse_scales, config.coarse_steps)


class TokenWeights(dict[Part, Tensor]):
    """The weight (L,) of each token of a part, see targets.scale_weights; computed when it is first asked for."""

    def __init__(self, power: float, device: torch.device) -> None:
        super().__init__()
        self.power, self.device = power, device

    def __missing__(self, part: Part) -> Tensor:
        self[part] = weights_L = scale_weights(part.lengths, self.power).to(self.device)
        return weights_L
