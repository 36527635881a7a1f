"""Normalised two-dimensional rotary positions: every scale's grid spans the same range of angles.

L tokens of all scales, l of one scale, P pairs of channels (half a head), d channels of a head, N heads, B batch.
A token in column c and row r of a p x p grid stands at (c, r) / (p - 1) * norm, so corners of all scales coincide.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines, float32 (l, P), by which each token's pairs of channels turn."""

    cos_lP: Tensor
    sin_lP: Tensor

    def part(self, span: slice) -> "Rotation":
        """The rows of some tokens."""
        return Rotation(self.cos_lP[span], self.sin_lP[span])

    def to(self, device: torch.device) -> "Rotation":
        """The same tables on another device."""
        return Rotation(self.cos_lP.to(device), self.sin_lP.to(device))


def scale_rotation(size: int, head_width: int, *, theta: float = 10000.0, norm: float = 64.0) -> Rotation:
    """The tables of one size x size grid; the first half of the pairs turns by column, the second by row.

    A 1 x 1 grid is not turned at all. Raises ValueError unless head_width is a multiple of 4. Computed on the CPU in
    float32, as the released code does: the order (c / (p - 1)) * norm is part of the numbers.
    """
    if head_width % 4:
        raise ValueError(f"rotary positions need a head width that is a multiple of 4, got {head_width}")
    with torch.device("cpu"):  # also where the network itself is being built on the meta device
        exponent = torch.arange(0, head_width, 4, dtype=torch.float32) / head_width
        frequency = 1.0 / theta**exponent
        line = torch.arange(size, dtype=torch.float32)
        if size > 1:
            line = line / (size - 1) * norm
        column, row = line.repeat(size), line.repeat_interleave(size)
        angle_lP = torch.cat((torch.outer(column, frequency), torch.outer(row, frequency)), dim=1)
    return Rotation(angle_lP.cos(), angle_lP.sin())


def pyramid_rotation(sizes: Iterable[int], head_width: int, *, theta: float, norm: float) -> Rotation:
    """The tables of all scales, one after the other: (L, P)."""
    scales = [scale_rotation(size, head_width, theta=theta, norm=norm) for size in sizes]
    return Rotation(torch.cat([s.cos_lP for s in scales]), torch.cat([s.sin_lP for s in scales]))


def rotate(heads_BNld: Tensor, rotation: Rotation) -> Tensor:
    """Turns channels (2m, 2m + 1) of every token by its angle m; computed and returned in float32."""
    even, odd = heads_BNld.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
