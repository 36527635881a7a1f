"""What the training of a refiner adds to that of a transformer: the network, and how its scales will be revealed.

K number of scales, k scale index.
"""

from dataclasses import dataclass
from typing import Literal

from star.data.errors import InputError
from star.model.refiner import RefinerConfig, ScalePlan
from star.tokenizer.scales import ScaleSchedule


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerTraining:
    """A refiner behind a transformer that stays as it is (star/model/refiner.py). steps, plain and shuffled count for
    drawing alone, see ScalePlan: one number for each refined scale, coarse to fine, or one for all."""

    depth: int = 3  # blocks
    scales: int = 1  # so many of the finest are refined
    steps: tuple[int, ...] = (8,)  # in which a scale is revealed
    plain: tuple[int, ...] = (0,)  # of these, the first draw from the transformer alone
    shuffled: tuple[int, ...] = (8,)  # and so many of the first reveal in random order
    known: Literal["uniform", "released"] = "uniform"  # how many codes are shown in training, see masking.draw_known
    masks: int = 1  # for each picture of a batch, whose hidden states are computed once
    flip: float = 0.0  # share of the pictures that are mirrored, so that the transformer does not know them by heart
    shift: int = 0  # pixels by which they are moved at most, for the same reason

    def __post_init__(self) -> None:
        if self.depth < 1 or self.scales < 1 or self.masks < 1:
            raise InputError(
                f"refiner.depth is {self.depth}, scales {self.scales} and masks {self.masks}, expected at least 1 of "
                "each: correct them"
            )
        if not 0 <= self.flip <= 1 or self.shift < 0:
            raise InputError(
                f"refiner.flip is {self.flip} and shift {self.shift}, expected a share from 0 to 1 and at least 0 "
                "pixels: correct them"
            )
        for name in ("steps", "plain", "shuffled"):
            if len(getattr(self, name)) not in (1, self.scales):
                raise InputError(
                    f"refiner.{name} has {len(getattr(self, name))} numbers for {self.scales} scales, expected one for "
                    "all or one for each: correct it"
                )
        self._plans(tuple(range(1, self.scales + 1)))  # refuses what cannot be drawn

    @property
    def alters(self) -> bool:
        """Whether pictures are altered before they are encoded, and so cannot be encoded beforehand."""
        return self.flip > 0 or self.shift > 0

    def network(self, schedule: ScaleSchedule) -> RefinerConfig:
        """The refiner on these scales. Raises InputError if there are too few of them: the first is never refined."""
        if self.scales >= schedule.count:
            raise InputError(
                f"refiner.scales is {self.scales}, but the tokenizer has {schedule.count} scales, the first of which "
                "is never refined: give fewer"
            )
        return RefinerConfig(
            depth=self.depth, plans=self._plans(tuple(range(schedule.count - self.scales, schedule.count)))
        )

    def _plans(self, scales: tuple[int, ...]) -> tuple[ScalePlan, ...]:
        rows = [_for_each(values, len(scales)) for values in (self.steps, self.plain, self.shuffled)]
        try:
            return tuple(
                ScalePlan(scale=k, steps=steps, plain=plain, shuffled=shuffled)
                for k, steps, plain, shuffled in zip(scales, *rows, strict=True)
            )
        except ValueError as error:
            raise InputError(f"refiner: {error}") from error


def _for_each(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    return values * count if len(values) == 1 else values
