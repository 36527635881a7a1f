"""Normalised two-dimensional rotary positions: every scale's grid spans the same range of angles.

L tokens of all scales, l of one scale, P pairs of channels (half a head), d channels of a head, N heads, B batch.
A token in column c and row r of an h x w grid stands at (c / (w - 1), r / (h - 1)) * norm, so corners of all scales
coincide, and of all aspects.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = int | tuple[int, int]  # the side of a square, or (h, w)


class Rotation(NamedTuple):
    """Cosines and sines, float32 (l, P), by which each token's pairs of channels turn.

    turn_lP: both as complex numbers, where they are used so often that it pays to make these beforehand (`prepared`).
    """

    cos_lP: Tensor
    sin_lP: Tensor
    turn_lP: Tensor | None = None

    def part(self, span: slice | Tensor) -> "Rotation":
        """The rows of some tokens, a slice or their numbers."""
        return Rotation(self.cos_lP[span], self.sin_lP[span], None if self.turn_lP is None else self.turn_lP[span])

    def prepared(self) -> "Rotation":
        """The same with complex numbers."""
        return Rotation(self.cos_lP, self.sin_lP, torch.complex(self.cos_lP, self.sin_lP))


def scale_rotation(grid: Grid, head_width: int, *, theta: float = 10000.0, norm: float = 64.0) -> Rotation:
    """The tables of one grid; the first half of the pairs turns by column, the second by row.

    A 1 x 1 grid is not turned at all. Raises ValueError unless head_width is a multiple of 4. Computed on the CPU in
    float32, as the released code does: the order (c / (w - 1)) * norm is part of the numbers.
    """
    if head_width % 4:
        raise ValueError(f"rotary positions need a head width that is a multiple of 4, got {head_width}")
    with torch.device("cpu"):  # also where the network itself is being built on the meta device
        exponent = torch.arange(0, head_width, 4, dtype=torch.float32) / head_width
        frequency = 1.0 / theta**exponent
        h, w = (grid, grid) if isinstance(grid, int) else grid
        column, row = _line(w, norm).repeat(h), _line(h, norm).repeat_interleave(w)
        angle_lP = torch.cat((torch.outer(column, frequency), torch.outer(row, frequency)), dim=1)
    return Rotation(angle_lP.cos(), angle_lP.sin())


def _line(size: int, norm: float) -> Tensor:
    """Places of so many columns or rows, from 0 to norm; of a single one 0."""
    line = torch.arange(size, dtype=torch.float32)
    return line / (size - 1) * norm if size > 1 else line


def pyramid_rotation(grids: Iterable[Grid], head_width: int, *, theta: float, norm: float) -> Rotation:
    """The tables of all scales, one after the other: (L, P)."""
    scales = [scale_rotation(grid, head_width, theta=theta, norm=norm) for grid in grids]
    return Rotation(torch.cat([s.cos_lP for s in scales]), torch.cat([s.sin_lP for s in scales]))


def rotate(heads_BNld: Tensor, rotation: Rotation) -> Tensor:
    """Turns channels (2m, 2m + 1) of every token by its angle m; computed and returned in float32."""
    even, odd = heads_BNld.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.cos_lP, rotation.sin_lP
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rotate_to_unit(heads_BNld: Tensor, rotation: Rotation | None) -> Tensor:
    """Turns every token and brings it to length 1; computed and returned in float32, whatever autocast says.

    The gradient is written out, which on a CPU makes both ways three times as fast as what autograd derives; a compiler
    gets the plain formula, which it fuses by itself.
    """
    if torch.compiler.is_compiling():
        return F.normalize(heads_BNld.float() if rotation is None else rotate(heads_BNld, rotation), dim=-1)
    turn_lP = None if rotation is None else rotation.turn_lP
    if rotation is not None and turn_lP is None:
        turn_lP = rotation.prepared().turn_lP
    if torch.is_inference_mode_enabled() and heads_BNld.device.type != "cpu":
        return unit_by_rms(heads_BNld.float(), turn_lP)
    return _RotateToUnit.apply(heads_BNld, turn_lP)


def unit_by_rms(heads_BNld: Tensor, turn_lP: Tensor | None) -> Tensor:
    """The same by the root of mean squares, for which GPUs have one kernel: it is the length over the root of d."""
    width = heads_BNld.shape[-1]
    unit = F.rms_norm(heads_BNld, (width,), _root(width, heads_BNld.device), eps=1e-24)
    return unit if turn_lP is None else _turned(unit, turn_lP)


@cache
def _root(width: int, device: torch.device) -> Tensor:
    """One over the root of d, (d,)."""
    return torch.full((width,), width**-0.5, device=device)


class _RotateToUnit(torch.autograd.Function):
    """y = R x / |x| with a rotation R, which keeps lengths; dx = R' (g - y (y . g)) / |x|."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, turn_lP: Tensor | None) -> Tensor:
        heads = heads.float()
        inverse = torch.linalg.vector_norm(heads, dim=-1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        unit = heads * inverse if turn_lP is None else _turned(heads, turn_lP).mul_(inverse)
        ctx.save_for_backward(unit, inverse, turn_lP)
        return unit

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        unit, inverse, turn_lP = ctx.saved_tensors
        along = (gradients[0] * unit).sum(dim=-1, keepdim=True)
        across = torch.addcmul(gradients[0], unit, along, value=-1).mul_(inverse)
        return across if turn_lP is None else _turned(across, turn_lP.conj()), None


def _turned(heads: Tensor, turn_lP: Tensor) -> Tensor:
    """Pairs of channels as complex numbers, times the turns."""
    if heads.stride(-1) != 1:  # gradients of a transposed product come with channels far apart
        heads = heads.contiguous()
    pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn_lP).flatten(-2)
