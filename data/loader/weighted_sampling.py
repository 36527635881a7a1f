"""Which of several weighted sources gives each position of a virtual worker, by (weights, seed, position) alone.

Positions come in blocks of 1,024. In each block every source has its share to the nearest sample, in an order drawn
anew, so any count of positions passed over tells at once how far each source has come.
"""

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from star.data.errors import InputError

BLOCK = 1024


class WeightedSampling:
    """Gives positions to sources by weight. Raises InputError for a weight that no block can give its share."""

    def __init__(self, weights: Sequence[float], seed: str) -> None:
        self.shares = shares(weights)
        self.seed = seed
        self._order = lru_cache(maxsize=2)(self._drawn)

    def source(self, position: int) -> int:
        """The source that stands at this position."""
        block, place = divmod(position, BLOCK)
        return self._order(block)[place] if len(self.shares) > 1 else 0

    def before(self, position: int) -> list[int]:
        """How many of the positions before this one each source has."""
        if len(self.shares) == 1:
            return [position]
        block, place = divmod(position, BLOCK)
        begun = self._order(block)[:place]
        return [block * share + begun.count(source) for source, share in enumerate(self.shares)]

    def _drawn(self, block: int) -> list[int]:
        order = [source for source, share in enumerate(self.shares) for _ in range(share)]
        Random(f"{self.seed}/mix/{block}").shuffle(order)
        return order


def shares(weights: Sequence[float]) -> list[int]:
    """Positions of each source in a block: the weights' share of 1,024, rounded by largest remainder."""
    total = sum(weights)
    exact = [BLOCK * weight / total for weight in weights]
    for weight, share in zip(weights, exact, strict=True):
        if share < 1:
            raise InputError(
                f"A source of weight {weight:g} among {total:g} would get less than one sample in {BLOCK:,}; "
                "raise its weight, or leave it out."
            )
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(counts)), key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: BLOCK - sum(counts)]:
        counts[source] += 1
    return counts
