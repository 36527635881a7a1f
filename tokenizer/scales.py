"""The pyramid of token grids that a picture is written in, coarse to fine.

L tokens of all scales, l of one scale, K number of scales, k scale index.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScaleSchedule:
    """The sides of the K square token grids, e.g. (1, 2, 3, 4, 6, 8); scale k holds sizes[k]**2 tokens.

    Raises ValueError if a side is not positive, or if the sides decrease. Tian et al. 2024, §3.2.
    """

    sizes: tuple[int, ...]

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

    @property
    def count(self) -> int:
        """K, the number of scales."""
        return len(self.sizes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens l of every scale."""
        return tuple(size * size for size in self.sizes)

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

    @property
    def finest(self) -> int:
        """Side h = w of the finest grid, which is the latent's side."""
        return self.sizes[-1]

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
