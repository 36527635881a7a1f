"""Neighbourhood attention: every place of a map attends to a window of k x k places around it, d apart.

    output_BNHWE = neighborhood_attention(query, key, value, kernel=7, dilation=4, table_Nbb=table)

Along an axis of length L, places with the same remainder by the dilation d form a group; the window of a place is k
consecutive members of its group, centred where the group allows it and shifted at its ends, so always k of them. The
bias of a pair depends on how many members lie between the two. Hassani et al. 2023 ("Neighborhood attention
transformer"), Hassani & Shi 2022 (dilation), Walton et al. 2022 (heads in groups of their own windows).

One backend is chosen by its name:

    tiled   tiles of queries against blocks of keys, see neighborhood_tiles.py; any size, device and type
    gather  a copy of its window for every place: the plain rule, which the others are tested against
    dense   all pairs, hidden outside of the windows; for small maps
    natten  the kernels of the package natten, on CUDA devices, see neighborhood_natten.py; since its version 0.20 they
            know no bias, so that attention with a table goes to `tiled` there too
    auto    natten where it can be used, else tiled: `choose` says which, and why

`python -m star.generators.stylenat.neighborhood` measures them. B batch, N heads, H W map, E head width, k kernel, b
side of a bias table (2k - 1), G groups of heads, L length of an axis.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.generators.kernel_choice import Choice, announce
from star.generators.stylenat import neighborhood_natten
from star.generators.stylenat.neighborhood_tiles import TiledAttention

Backend = Callable[[Tensor, Tensor, Tensor, int, int, Tensor | None, float], Tensor]


@cache
def windows(length: int, kernel: int, dilation: int) -> tuple[tuple[int, ...], ...]:
    """The k places that each place of an axis attends to, in ascending order."""
    found = []
    for place in range(length):
        rank, remainder = divmod(place, dilation)
        members = -(-(length - remainder) // dilation)
        first = min(max(rank - kernel // 2, 0), members - kernel)
        found.append(tuple(remainder + dilation * (first + j) for j in range(kernel)))
    return tuple(found)


def check_window(height: int, width: int, kernel: int, dilation: int) -> None:
    """Raises ValueError unless windows fit into the map."""
    if kernel < 1 or dilation < 1:
        raise ValueError(f"a window of kernel {kernel} and dilation {dilation} was asked for, expected at least 1 each")
    if kernel * dilation > min(height, width):
        raise ValueError(
            f"a kernel of {kernel} with dilation {dilation} spans {kernel * dilation} places, the map has {height} x "
            f"{width}: choose a smaller kernel or dilation"
        )


def neighborhood_attention(
    query_BNHWE: Tensor,
    key_BNHWE: Tensor,
    value_BNHWE: Tensor,
    *,
    kernel: int,
    dilation: int = 1,
    table_Nbb: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """(B, N, H, W, E): the mean of each window's values under softmax(scale q.k + bias).

    table: the bias for a key i rows and j columns of its group further on is at [i + k - 1, j + k - 1]. scale: by
    default 1 / sqrt(E). Differentiable twice. Raises ValueError if a window does not fit into the map
    or shapes do not fit each other, InputError for a backend that is unknown or cannot be used here.
    """
    heads, height, width, head_width = query_BNHWE.shape[1:]
    check_window(height, width, kernel, dilation)
    if not query_BNHWE.shape == key_BNHWE.shape == value_BNHWE.shape:
        shapes = [tuple(tensor.shape) for tensor in (query_BNHWE, key_BNHWE, value_BNHWE)]
        raise ValueError(f"queries, keys and values have shapes {shapes}, expected the same")
    side = 2 * kernel - 1
    if table_Nbb is not None and table_Nbb.shape != (heads, side, side):
        raise ValueError(f"the table has shape {tuple(table_Nbb.shape)}, expected {(heads, side, side)}")
    if backend not in (*BACKENDS, "auto"):
        raise InputError(
            f"the backend {backend!r} was given, expected one of {', '.join(BACKENDS)} or auto: choose one"
        )
    if backend == "auto":
        backend = choose(query_BNHWE.device, query_BNHWE.dtype, head_width, kernel, table_Nbb is not None).kernel
    scale = head_width**-0.5 if scale is None else scale
    return BACKENDS[backend](query_BNHWE, key_BNHWE, value_BNHWE, kernel, dilation, table_Nbb, scale)


def partitioned_attention(
    query_BNHWE: Tensor,
    key_BNHWE: Tensor,
    value_BNHWE: Tensor,
    *,
    kernels: Sequence[int],
    dilations: Sequence[int],
    tables: Sequence[Tensor] | None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Heads in G consecutive groups, each with its kernel, dilation and table (heads of the group, b, b).

    Without tables the groups are those of `split_heads`.
    """
    parts, first = [], 0
    even = split_heads(query_BNHWE.shape[1], len(kernels))
    given: Sequence[Tensor | None] = [None] * len(kernels) if tables is None else tables
    for kernel, dilation, table_Nbb, count in zip(kernels, dilations, given, even, strict=True):
        some = slice(first, first + (count if table_Nbb is None else len(table_Nbb)))
        parts.append(
            neighborhood_attention(
                query_BNHWE[:, some],
                key_BNHWE[:, some],
                value_BNHWE[:, some],
                kernel=kernel,
                dilation=dilation,
                table_Nbb=table_Nbb,
                scale=scale,
                backend=backend,
            )
        )
        first = some.stop
    if first != query_BNHWE.shape[1]:
        raise ValueError(f"the tables are for {first} heads, there are {query_BNHWE.shape[1]}")
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def split_heads(heads: int, groups: int) -> tuple[int, ...]:
    """Heads of each group: as even as can be, the last groups taking one more where it does not come out even."""
    each, left = divmod(heads, groups)
    return tuple(each + (i >= groups - left) for i in range(groups))


@cache
def choose(device: torch.device, dtype: torch.dtype, head_width: int, kernel: int, has_table: bool) -> Choice:
    """The backend that `auto` stands for, and why; natten is tried once for each device, type and width of a head."""
    why = neighborhood_natten.refusal(device, dtype, head_width, kernel, has_table, _rule)
    name = "tiled" if why else "natten"
    kind = f"takes {str(dtype).removeprefix('torch.')} heads of {head_width} channels on {device.type}"
    chosen = Choice("neighbourhoods", f"{kernel} x {kernel}", name, why or kind)
    announce(chosen)
    return chosen


def window_logits(
    query_BNHWE: Tensor, key_BNHWE: Tensor, kernel: int, dilation: int, table_Nbb: Tensor | None, scale: float
) -> Tensor:
    """(B, N, H, W, k * k): each place against its window, row by row, with the bias."""
    near = _near(key_BNHWE, kernel, dilation)
    logits = (near @ (query_BNHWE * scale)[..., None]).squeeze(-1)
    if table_Nbb is None:
        return logits
    axes = [
        (torch.tensor(windows(length, kernel, dilation)) - torch.arange(length)[:, None]) // dilation + kernel - 1
        for length in query_BNHWE.shape[2:4]
    ]
    row_Hk, column_Wk = (axis.to(table_Nbb.device) for axis in axes)
    bias = table_Nbb[:, row_Hk[:, None, :, None], column_Wk[None, :, None, :]].flatten(-2)
    return logits + bias.to(logits.dtype)


def gather(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int, table: Tensor | None, scale: float
) -> Tensor:
    """The rule itself; like all backends (B, N, H, W, E) to the same."""
    weights = window_logits(query, key, kernel, dilation, table, scale).softmax(dim=-1)
    return (weights[..., None, :] @ _near(value, kernel, dilation)).squeeze(-2)


def _near(x_BNHWE: Tensor, kernel: int, dilation: int) -> Tensor:
    """(B, N, H, W, k * k, E): a copy of everybody's window."""
    row_Hk, column_Wk = (
        torch.tensor(windows(length, kernel, dilation), device=x_BNHWE.device) for length in x_BNHWE.shape[2:4]
    )
    return x_BNHWE[:, :, row_Hk[:, None, :, None], column_Wk[None, :, None, :]].flatten(4, 5)


def dense(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int, table: Tensor | None, scale: float
) -> Tensor:
    height, width = query.shape[2:4]
    index, seen = [], []
    for length in (height, width):
        key_Lk = torch.tensor(windows(length, kernel, dilation), device=query.device)
        place_L = torch.arange(length, device=query.device)
        seen.append(torch.zeros(length, length, dtype=torch.bool, device=query.device).scatter_(1, key_Lk, True))
        index.append(((place_L - place_L[:, None]) // dilation + kernel - 1).clamp(0, 2 * kernel - 2))
    seen_HWHW = seen[0][:, None, :, None] & seen[1][None, :, None, :]
    bias = query.new_zeros(1, height * width, height * width)
    if table is not None:
        bias = table[:, index[0][:, None, :, None], index[1][None, :, None, :]].flatten(1, 2).flatten(2).to(query.dtype)
    mask = bias.masked_fill(~seen_HWHW.flatten(0, 1).flatten(1), float("-inf"))
    q, k, v = (tensor.flatten(2, 3) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).unflatten(2, (height, width))


def tiled(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int, table: Tensor | None, scale: float
) -> Tensor:
    output: Tensor = TiledAttention.apply(query, key, value, table, kernel, dilation, scale, gather)
    return output


def natten(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int, table: Tensor | None, scale: float
) -> Tensor:
    why = neighborhood_natten.refusal(query.device, query.dtype, query.shape[-1], kernel, table is not None, _rule)
    if why:
        raise InputError(
            f"the backend natten was given on {query.device.type}, where {why}, expected a CUDA device, its compiled "
            "library, no bias and heads in steps of 8 channels: choose auto"
        )
    output: Tensor = neighborhood_natten.NattenAttention.apply(query, key, value, kernel, dilation, scale, _rule)
    return output


def _rule(query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int, scale: float) -> Tensor:
    """`gather` without a table."""
    return gather(query, key, value, kernel, dilation, None, scale)


BACKENDS: dict[str, Backend] = {"tiled": tiled, "gather": gather, "dense": dense, "natten": natten}


if __name__ == "__main__":
    from star.generators.stylenat.neighborhood_bench import main

    main()
