"""Neighbourhood attention tile by tile: queries of a tile share one block of keys, so that matrix products do the work.

A map is taken apart into the residues of its dilation; within one, neighbours are next to each other. Each residue is
cut into tiles of queries, and a tile meets the smallest block of keys that holds all its windows; what lies outside a
query's own window is masked. The work goes in pieces that stay in the cache, and the backward pass computes the
weights anew: all that is kept between the passes is one number for each query.

B batch, N heads, H W map, E head width, h w ranks inside a residue, R S residues of rows and columns, T tiles, t
queries of a tile, u keys of a tile, b side of a bias table (2 kernel - 1).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits in one piece: a few in-cache buffers on a CPU, few launches elsewhere.
PIECE = {"cpu": 2**18}
PIECE_ELSEWHERE = 2**26
SMALLEST_TILE = 4  # on a side; below, products are too small to be fast
HIDDEN = float("-inf")

Plain = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of `length` ranks in tiles of `tile` queries; the keys of a tile start `before` its first query."""

    length: int
    kernel: int
    tile: int
    tiles: int
    before: int
    keys: int
    patterns: tuple[tuple[int, ...], ...]  # first key of each query, counted from the tile's first; the distinct ones
    pattern_of: tuple[int, ...]  # of each tile

    @property
    def padded(self) -> int:
        """Ranks with the padding that completes the last tile and its keys, counted from `before` the first."""
        return (self.tiles - 1) * self.tile + ceil(self.keys / self.tile) * self.tile

    @property
    def size(self) -> int:
        """Pairs of a query and a key, in all tiles."""
        return self.tiles * self.tile * self.keys

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(patterns, t, u): the row of the bias table for each pair, and whether the query sees the key."""
        first_Pt = torch.tensor(self.patterns, device=device)
        key_u = torch.arange(self.keys, device=device) - self.before
        query_t = torch.arange(self.tile, device=device)
        index_tu = key_u - query_t[:, None] + self.kernel - 1
        seen_Ptu = (key_u >= first_Pt[..., None]) & (key_u < first_Pt[..., None] + self.kernel)
        return index_tu.clamp(0, 2 * self.kernel - 2).expand_as(seen_Ptu), seen_Ptu


@cache
def cut(length: int, kernel: int, tile: int) -> Axis:
    """Queries that only complete the last tile get the last window, so that every row of logits has a finite one."""
    tiles = ceil(length / tile)
    firsts = [
        tuple(min(max(tile * i + j - kernel // 2, 0), length - kernel) - tile * i for j in range(tile))
        for i in range(tiles)
    ]
    before = max(0, -min(map(min, firsts)))
    keys = before + max(map(max, firsts)) + kernel
    patterns = tuple(dict.fromkeys(firsts))
    return Axis(length, kernel, tile, tiles, before, keys, patterns, tuple(patterns.index(first) for first in firsts))


@cache
def plan(height: int, width: int, kernel: int, head_width: int) -> tuple[Axis, Axis]:
    """The tiles of least cost: logits that are computed (exponentials and products), keys that are copied.

    The weights of the two are nanoseconds per number on a CPU, measured with `python -m
    star.generators.stylenat.neighborhood`.
    """

    def candidates(length: int) -> list[Axis]:
        sides = {*range(min(SMALLEST_TILE, length), min(16, length) + 1), length}
        return [cut(length, kernel, side) for side in sorted(sides)]

    def cost(axes: tuple[Axis, Axis]) -> float:
        queries = axes[0].tile * axes[1].tile
        keys = axes[0].keys * axes[1].keys
        each = queries * keys * (2.2 + 0.12 * head_width) + keys * head_width
        return axes[0].tiles * axes[1].tiles * each

    return min(product(candidates(height), candidates(width)), key=cost)


def residues(x_BNHWE: Tensor, dilation: int) -> Iterator[Tensor]:
    """Views (B, R, S, N, h, w, E) that share out the map; up to four, since residues may differ by one in length."""

    def spans(length: int) -> list[tuple[int, int]]:
        longer = length % dilation
        return [(first, count) for first, count in ((0, longer), (longer, dilation - longer)) if count]

    for (top, rows), (left, columns) in product(spans(x_BNHWE.shape[2]), spans(x_BNHWE.shape[3])):
        view = x_BNHWE[:, :, top:, left:].unfold(2, rows, dilation).unfold(3, columns, dilation)
        yield view.permute(0, 5, 6, 1, 2, 3, 4)


def into_tiles(x_BRSNhwE: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """(B R S N T, t, E): the queries of every tile."""
    missing = (rows.tiles * rows.tile - rows.length, columns.tiles * columns.tile - columns.length)
    if any(missing):
        x_BRSNhwE = F.pad(x_BRSNhwE, (0, 0, 0, missing[1], 0, missing[0]))
    tiles = x_BRSNhwE.unflatten(5, (columns.tiles, columns.tile)).unflatten(4, (rows.tiles, rows.tile))
    return tiles.transpose(5, 6).reshape(-1, rows.tile * columns.tile, x_BRSNhwE.shape[-1])


def out_of_tiles(tiles: Tensor, into_BRSNhwE: Tensor, rows: Axis, columns: Axis) -> None:
    """The inverse of `into_tiles`, written into a view."""
    outside, width = into_BRSNhwE.shape[:4], into_BRSNhwE.shape[-1]
    tiles = tiles.reshape(*outside, rows.tiles, columns.tiles, rows.tile, columns.tile, width).transpose(5, 6)
    whole = tiles.reshape(*outside, rows.tiles * rows.tile, columns.tiles * columns.tile, width)
    into_BRSNhwE.copy_(whole[..., : rows.length, : columns.length, :])


def into_blocks(x_BRSNhwE: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """(B R S N T, u, E): the keys of every tile, those of neighbouring tiles overlapping; zeros outside the map."""
    below = rows.padded - rows.before - rows.length
    right = columns.padded - columns.before - columns.length
    padded = F.pad(x_BRSNhwE, (0, 0, columns.before, right, rows.before, below))
    blocks = padded.unfold(4, rows.keys, rows.tile).unfold(5, columns.keys, columns.tile)  # (..., Th, Tw, E, uh, uw)
    blocks = blocks[:, :, :, :, : rows.tiles, : columns.tiles]
    return blocks.permute(0, 1, 2, 3, 4, 5, 7, 8, 6).reshape(-1, rows.keys * columns.keys, x_BRSNhwE.shape[-1])


def out_of_blocks(blocks: Tensor, into_BRSNhwE: Tensor, rows: Axis, columns: Axis) -> None:
    """The adjoint of `into_blocks`: what came from one place is summed there; written into a view."""
    outside, width = into_BRSNhwE.shape[:4], into_BRSNhwE.shape[-1]
    blocks = blocks.reshape(*outside, rows.tiles, columns.tiles, rows.keys, columns.keys, width).transpose(5, 6)
    padded = blocks.new_zeros(*outside, rows.padded, columns.padded, width)
    for top, left in product(range(0, rows.keys, rows.tile), range(0, columns.keys, columns.tile)):
        part = blocks[..., top : top + rows.tile, :, left : left + columns.tile, :]
        place = padded[..., top : top + rows.tiles * rows.tile, left : left + columns.tiles * columns.tile, :]
        place = place.unflatten(5, (columns.tiles, columns.tile)).unflatten(4, (rows.tiles, rows.tile))
        place[..., : part.shape[5], :, : part.shape[7], :].add_(part)
    top, left = rows.before, columns.before
    into_BRSNhwE.copy_(padded[..., top : top + rows.length, left : left + columns.length, :])


class Offsets:
    """What is added to the logits of all tiles: the bias of the relative position, or minus infinity."""

    def __init__(self, table_Nbb: Tensor | None, rows: Axis, columns: Axis, like: Tensor) -> None:
        self.rows, self.columns = rows, columns
        (row_Ptu, row_seen_Ptu), (column_Ptu, column_seen_Ptu) = rows.tables(like.device), columns.tables(like.device)
        side = 2 * rows.kernel - 1
        self.index_Ptu = _pairs(row_Ptu * side, column_Ptu, torch.add)
        seen_Ptu = _pairs(row_seen_Ptu, column_seen_Ptu, torch.logical_and)
        dtype = _wide(like.dtype)
        if table_Nbb is None:
            values_NPtu = like.new_zeros(1, *seen_Ptu.shape, dtype=dtype)
        else:
            values_NPtu = table_Nbb.detach().to(dtype).flatten(1)[:, self.index_Ptu]
        self.values_NPtu = values_NPtu.masked_fill(~seen_Ptu, HIDDEN)
        row_T, column_T = (torch.tensor(axis.pattern_of, device=like.device) for axis in (rows, columns))
        self.pattern_T = (row_T[:, None] * len(columns.patterns) + column_T).flatten()

    def of_heads(self, heads: slice) -> Tensor:
        """(N, T, t, u), or for all heads alike (1, T, t, u)."""
        values_NPtu = self.values_NPtu if len(self.values_NPtu) == 1 else self.values_NPtu[heads]
        return values_NPtu.index_select(1, self.pattern_T)

    def to_table(self, gradient_NTtu: Tensor) -> Tensor:
        """The gradient (N, b, b) of the table from that of the logits, summed over the batch."""
        heads, side = len(gradient_NTtu), 2 * self.rows.kernel - 1
        by_pattern = gradient_NTtu.new_zeros(heads, *self.index_Ptu.shape)
        by_pattern.index_add_(1, self.pattern_T, gradient_NTtu)
        table = gradient_NTtu.new_zeros(heads, side * side)
        return table.index_add_(1, self.index_Ptu.flatten(), by_pattern.flatten(1)).reshape(heads, side, side)


def _pairs(row_Ptu: Tensor, column_Ptu: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Two tables of one axis each to one of the map, (P, t, u) with row-major P, t and u."""
    both = combine(row_Ptu[:, None, :, None, :, None], column_Ptu[None, :, None, :, None, :])
    return both.flatten(4, 5).flatten(2, 3).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is computed at once: some pictures and heads of one share of the map."""

    rows: Axis
    columns: Axis
    offsets: Offsets
    offsets_NTtu: Tensor
    heads: slice
    views: list[Tensor]  # (B, R, S, N, h, w, E) of the tensors that were asked for

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B R S N T, t, u), at least float32; minus infinity where a query does not see a key."""
        products = torch.bmm(queries, keys.transpose(1, 2))
        products = products.to(self.offsets_NTtu.dtype)
        products.view(-1, *self.views[0].shape[3:4], *self.offsets_NTtu.shape[1:]).add_(self.offsets_NTtu)
        return products


def pieces(kernel: int, dilation: int, table_Nbb: Tensor | None, *tensors: Tensor) -> Iterator[Piece]:
    """Shares out maps (B, N, H, W, any) so that every place of them belongs to one piece."""
    head_width = tensors[0].shape[-1]
    limit = PIECE.get(tensors[0].device.type, PIECE_ELSEWHERE)
    for views in zip(*(residues(tensor, dilation) for tensor in tensors), strict=True):
        batch, row_residues, column_residues, heads, height, width = views[0].shape[:6]
        rows, columns = plan(height, width, kernel, head_width)
        offsets = Offsets(table_Nbb, rows, columns, views[0])
        each = row_residues * column_residues * rows.size * columns.size  # logits of one picture and head
        heads_at_once = min(max(limit // each, 1), heads)
        pictures_at_once = max(limit // (each * heads_at_once), 1)
        for first_head in range(0, heads, heads_at_once):
            some = slice(first_head, first_head + heads_at_once)
            offsets_NTtu = offsets.of_heads(some)
            for first in range(0, batch, pictures_at_once):
                parts = [view[first : first + pictures_at_once, :, :, some] for view in views]
                yield Piece(rows, columns, offsets, offsets_NTtu, some, parts)


class TiledAttention(torch.autograd.Function):
    """q, k, v of (B, N, H, W, E) and a table (N, b, b) or None to the attended values (B, N, H, W, E).

    Gradients are exact. `plain` is a differentiable function of the same result, used where the gradient itself is
    to be differentiated.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor | None,
        kernel: int,
        dilation: int,
        scale: float,
        plain: Plain,
    ) -> Tensor:
        output, normaliser = _beside(query), _beside(query[..., :1], _wide(query.dtype))
        with torch.autocast(query.device.type, enabled=False):
            for piece in pieces(kernel, dilation, table, query, key, value, output, normaliser):
                axes = piece.rows, piece.columns
                q, k, v, into, into_normaliser = piece.views
                logits = piece.logits(into_tiles(q, *axes) * scale, into_blocks(k, *axes))
                largest = logits.amax(dim=-1, keepdim=True)
                weights = logits.sub_(largest).exp_()
                total = weights.sum(dim=-1, keepdim=True)
                tiles = torch.bmm(weights.to(q.dtype), into_blocks(v, *axes))
                out_of_tiles(tiles / total.to(q.dtype), into, *axes)
                out_of_tiles(total.log_().add_(largest), into_normaliser, *axes)
        ctx.settings = kernel, dilation, scale, plain
        ctx.save_for_backward(query, key, value, table, output, normaliser)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, table, output, normaliser = ctx.saved_tensors
        kernel, dilation, scale, plain = ctx.settings
        (gradient,) = gradients
        needs = ctx.needs_input_grad
        wanted = [x for x, needed in zip((query, key, value, table), needs[:4], strict=True) if needed]
        if torch.is_grad_enabled():
            again = plain(query, key, value, kernel, dilation, table, scale)
            found = iter(torch.autograd.grad(again, wanted, gradient, create_graph=True))
            return tuple(next(found) if needed else None for needed in needs)
        gradients_qkv = [_beside(query) for _ in range(3)]
        to_table = torch.zeros_like(table) if needs[3] else None
        tensors = (query, key, value, output, normaliser, gradient, *gradients_qkv)
        with torch.autocast(query.device.type, enabled=False):
            for piece in pieces(kernel, dilation, table, *tensors):
                axes = piece.rows, piece.columns
                q, k, v, o, z, g, into_q, into_k, into_v = piece.views
                queries, keys, given = into_tiles(q, *axes) * scale, into_blocks(k, *axes), into_tiles(g, *axes)
                weights = piece.logits(queries, keys).sub_(into_tiles(z, *axes)).exp_()
                out_of_blocks(torch.bmm(weights.to(q.dtype).transpose(1, 2), given), into_v, *axes)
                slopes = torch.bmm(given, into_blocks(v, *axes).transpose(1, 2)).to(weights.dtype)
                mean = into_tiles((o * g).sum(dim=-1, keepdim=True), *axes)
                slopes = slopes.sub_(mean).mul_(weights)  # of the logits
                if to_table is not None:
                    summed_NTtu = slopes.view(-1, q.shape[3], *piece.offsets_NTtu.shape[1:]).sum(dim=0)
                    to_table[piece.heads] += piece.offsets.to_table(summed_NTtu)
                slopes = slopes.to(q.dtype)
                out_of_tiles(torch.bmm(slopes, keys) * scale, into_q, *axes)
                out_of_blocks(torch.bmm(slopes.transpose(1, 2), queries), into_k, *axes)
        return *gradients_qkv, to_table, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _beside(x_BNHWE: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of the same shape with heads beside channels in memory, as a linear layer wants them next."""
    batch, heads, height, width, channels = x_BNHWE.shape
    return x_BNHWE.new_empty(batch, height, width, heads, channels, dtype=dtype or x_BNHWE.dtype).permute(0, 3, 1, 2, 4)
