"""Aspect-ratio buckets: a few sizes, and which of them a picture goes to; `aspect_batches` makes batches of them.

Sizes are (height, width) in pixels.
"""

from collections.abc import Sequence
from math import log

from star.data.errors import InputError


def check_buckets(buckets: Sequence[tuple[int, int]]) -> None:
    """Raises InputError for a size without pixels, and for two of one aspect, the second of which would stay empty."""
    seen: dict[float, tuple[int, int]] = {}
    for height, width in buckets:
        if min(height, width) < 1:
            raise InputError(f"buckets holds {height} x {width}; give a height and width of at least 1 pixel.")
        first = seen.setdefault(height / width, (height, width))
        if first != (height, width) or buckets.count((height, width)) > 1:
            raise InputError(
                f"buckets holds {first[0]} x {first[1]} and {height} x {width}, which have one aspect; keep one."
            )


def nearest(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> int:
    """The bucket whose aspect is nearest to that of a picture, by ratio: 2:1 is as far from 1:1 as 1:2 is."""
    aspect = log(size[0] / size[1])
    return min(range(len(buckets)), key=lambda place: abs(log(buckets[place][0] / buckets[place][1]) - aspect))
