"""The pyramid of token grids that a picture is written in, coarse to fine: squares, or rectangles of another aspect.

    schedule = ScaleSchedule((1, 2, 3, 4, 5, 6, 8, 16))
    wide = schedule.at(*schedule.grid_of("3:2"))      # grids up to 14 x 21, about as many tokens

L tokens of all scales, l of one scale, K number of scales, k scale index, h w a grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import gcd, sqrt

import torch
from torch import Tensor

from star.data.errors import InputError

MOST_ASPECT = 4  # of the longer side over the shorter
MOST_AREA = 2  # of the finest grid, over the square's, or the square's over it
MOST_OFF = 1.25  # the same, up to which exact multiples of a ratio are preferred to rounded sides


@dataclass(frozen=True, slots=True)
class ScaleSchedule:
    """The K token grids of a picture. Raises ValueError for sides or grids that cannot be.

    sizes: the sides of square grids, e.g. (1, 2, 3, 4, 6, 8), by which a model's config holds them (Tian et al. 2024,
    §3.2). finest_grid: (h, w) of the finest grid where that is no square, see `at`.
    """

    sizes: tuple[int, ...]
    finest_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.sizes) > 64 or any(type(size) is not int or size > 1024 for size in self.sizes):
            raise ValueError(
                f"a scale schedule has up to 64 sides of up to 1024, got {len(self.sizes)}, the largest "
                f"{max(self.sizes)}; give e.g. (1, 2, 3, 4, 6, 8)"
            )
        if not self.sizes or any(size < 1 for size in self.sizes):
            raise ValueError(f"a scale schedule needs positive sides, got {self.sizes}; give e.g. (1, 2, 3, 4, 6, 8)")
        if any(b < a for a, b in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ValueError(f"a scale schedule grows from coarse to fine, got {self.sizes}; sort the sides")
        if self.finest_grid is not None:
            self._check(*self.finest_grid)

    def _check(self, h: int, w: int) -> None:
        n = self.finest
        if (
            h == w
            or min(h, w) < self.sizes[0]
            or max(h, w) > MOST_ASPECT * min(h, w)
            or not n * n <= MOST_AREA * h * w <= MOST_AREA**2 * n * n
        ):
            raise InputError(
                f"a finest grid of {h} x {w} was asked for, expected {n} x {n}, or a rectangle up to {MOST_ASPECT}:1 "
                "of half to twice as many cells: choose another size"
            )

    @property
    def count(self) -> int:
        """K, the number of scales."""
        return len(self.sizes)

    @property
    def finest(self) -> int:
        """Side h = w of the finest square grid, which is the side of the latent of a square picture."""
        return self.sizes[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the finest grid, which is the latent's."""
        return self.finest_grid or (self.finest, self.finest)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of every scale.

        Each is the finest one made smaller as the square of its scale is: h_k = h n_k / n, w_k likewise, rounded, at
        least 1. So a square gives the squares, sides grow from scale to scale, and a scale has about as many tokens as
        its square. The coarsest stays the square: as many tokens begin every picture. (Infinity, Han et al. 2024, has
        lists of its own for each ratio, which keep the ratio exactly and the number of tokens less so; their coarsest
        are squares, too.)
        """
        if self.finest_grid is None:
            return tuple((size, size) for size in self.sizes)
        h, w = self.finest_grid
        first, rest = self.sizes[0], self.sizes[1:]
        found = [(first, first)]
        for size in rest:
            before = found[-1]
            found.append((max(before[0], round(size * h / self.finest)), max(before[1], round(size * w / self.finest))))
        return tuple(found) if rest else (self.finest_grid,)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens l of every scale."""
        return tuple(h * w for h, w in self.grids)

    @property
    def length(self) -> int:
        """L, the tokens of all scales."""
        return sum(self.lengths)

    @property
    def offsets(self) -> tuple[int, ...]:
        """K + 1 positions that partition 0..L."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each scale's tokens stand among the L."""
        return tuple(slice(a, b) for a, b in zip(self.offsets, self.offsets[1:], strict=False))

    def at(self, h: int, w: int) -> "ScaleSchedule":
        """The schedule of a latent of h x w; this one's squares where that is one of the finest side.

        Raises InputError for a grid that is too long, too small or too large to be drawn from these scales.
        """
        return ScaleSchedule(self.sizes, None if h == w == self.finest else (h, w))

    def grid_of(self, aspect: str) -> tuple[int, int]:
        """(h, w) of the finest grid for an aspect "width:height", with about as many cells as the square n x n.

        The whole multiple of the ratio that is nearest in cells, which gives the finest grids that Infinity was
        released with (14 x 21 for 3:2 of 16 x 16); where that is more than a quarter off, rounded sides (12 x 21 for
        16:9). Raises InputError for anything that is no such ratio.
        """
        width, height = ratio(aspect)
        n = self.finest
        times = max(1, round(n / sqrt(width * height)))
        cells = times * times * width * height
        if n * n <= MOST_OFF * cells <= MOST_OFF**2 * n * n:
            return times * height, times * width
        return max(1, round(n * sqrt(height / width))), max(1, round(n * sqrt(width / height)))

    def of_aspect(self, aspect: str) -> "ScaleSchedule":
        """The schedule of `grid_of` an aspect. Raises InputError for one that cannot be drawn."""
        return self.at(*self.grid_of(aspect))

    def level_ids_L(self) -> Tensor:
        """int64 (L,): the scale index of every token."""
        return torch.repeat_interleave(torch.arange(self.count), torch.tensor(self.lengths))

    def split(self, tokens_BL: Tensor) -> list[Tensor]:
        """Cuts (B, L, ...) into K pieces (B, l, ...)."""
        if tokens_BL.shape[1] != self.length:
            raise ValueError(f"{tokens_BL.shape[1]} tokens given, but the schedule {self.sizes} holds {self.length}")
        return list(tokens_BL.split(self.lengths, dim=1))

    def __iter__(self) -> Iterator[int]:
        return iter(self.sizes)


def ratio(aspect: str) -> tuple[int, int]:
    """Width and height of an aspect as "3:2", without common divisors. Raises InputError for anything else."""
    width, colon, height = aspect.partition(":")
    if not colon or not all(
        side.isascii() and side.isdigit() and 1 <= int(side[:5]) <= 1000 for side in (width, height)
    ):
        raise InputError(f"an aspect is {aspect!r:.40}, expected width:height as in 3:2: correct it")
    common = gcd(int(width), int(height))
    return int(width) // common, int(height) // common
