"""Attention that nobody is hidden from, without the scores in memory: FlashAttention (Dao 2023, FlashAttention-2).

| kernel      | whole rows                                | packed rows                             |
|-------------|-------------------------------------------|-----------------------------------------|
| flash-attn  | the package's flash_attn_func             | its flash_attn_varlen_func              |
| torch-flash | scaled_dot_product_attention, held to its | torch.nn.attention.varlen.varlen_attn,  |
|             | flash kernel                              | from torch 2.11 on                      |

Both take float16 and bfloat16 on CUDA devices of compute capability 8.0 or higher, heads of at most 256 channels in
steps of 8. `refusal` says why one cannot be used: it tries a small problem, forward and backward, once for each device,
type and width of a head.

B rows, N heads, l tokens of the queries, L of the keys, d channels of a head; of packed rows Q queries and P keys in
all, one row behind the other, where row i begins and ends at entries i and i + 1 of the (B + 1,) int32 `starts`.
"""

import importlib
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from star.generators.kernel_choice import trial

DEVICES: tuple[str, ...] = ("cuda",)
DTYPES: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
WIDEST, STEP = 256, 8  # channels of a head
CAPABILITY = (8, 0)
NAMES = ("flash-attn", "torch-flash")  # the order in which they are asked

Whole = Callable[[Tensor, Tensor, Tensor, float], Tensor]
VARLEN = {  # where the function of packed rows is, and what it calls the scale
    "flash-attn": ("flash_attn", "flash_attn_varlen_func", "softmax_scale"),
    "torch-flash": ("torch.nn.attention.varlen", "varlen_attn", "scale"),
}
Packed = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# What has passed its trial. Compiled code reads these tables, and never the packages.
WHOLE_ROWS: dict[str, Whole] = {}
PACKED_ROWS: dict[str, Packed] = {}


def refusal(name: str, device: torch.device, dtype: torch.dtype, head_width: int, *, packed: bool) -> str:
    """Why a kernel cannot compute such rows here; "" if it can, and then it is in WHOLE_ROWS or PACKED_ROWS."""
    if device.type not in DEVICES:
        return f"{name} knows no {device.type}"
    if dtype not in DTYPES:
        return f"{name} knows no {str(dtype).removeprefix('torch.')}"
    if head_width > WIDEST or head_width % STEP:
        return f"{name} takes heads of at most {WIDEST} channels in steps of {STEP}, not {head_width}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"{name} needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]}"
    return _tried(name, device, dtype, head_width, packed)


@cache
def _tried(name: str, device: torch.device, dtype: torch.dtype, head_width: int, packed: bool) -> str:
    try:
        if packed:
            PACKED_ROWS[name] = _packed(*VARLEN[name])
        else:
            WHOLE_ROWS[name] = {"flash-attn": _package_whole, "torch-flash": _torch_whole}[name]()
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # an import that fails half-way, too
        return f"{name} is not there ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    problem = _packed_problem if packed else _whole_problem
    if why := trial(lambda: problem(name, device, dtype, head_width)):
        (PACKED_ROWS if packed else WHOLE_ROWS).pop(name, None)
        return f"{name} {why}"
    return ""


def _package_whole() -> Whole:
    function = importlib.import_module("flash_attn").flash_attn_func

    def whole(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        beside = (tensor.transpose(1, 2) for tensor in (queries, keys, values))  # (B, l or L, N, d)
        output: Tensor = function(*beside, softmax_scale=scale)
        return output.transpose(1, 2)

    return whole


def _torch_whole() -> Whole:
    def whole(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(queries, keys, values, scale=scale)

    return whole


def _packed(module: str, name: str, scale_name: str) -> Packed:
    """Both libraries' functions of packed rows take the same, in the same order, but for the scale's name."""
    function = getattr(importlib.import_module(module), name)

    def packed(
        queries_QNd: Tensor,
        keys_PNd: Tensor,
        values_PNd: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        most_queries: int,
        most_keys: int,
        scale: float,
    ) -> Tensor:
        output: Tensor = function(
            queries_QNd,
            keys_PNd,
            values_PNd,
            query_starts,
            key_starts,
            most_queries,
            most_keys,
            **{scale_name: scale},
        )
        return output

    return packed


def _formula(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """In float32, heads before tokens."""
    return (queries.float() @ keys.float().transpose(-2, -1) * scale).softmax(dim=-1) @ values.float()


def _whole_problem(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> tuple[Tensor, Tensor]:
    """Two rows of 3 queries and 5 keys."""
    scale = 1 / head_width

    def kernel(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return WHOLE_ROWS[name](queries, keys, values, scale)

    def formula(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return _formula(queries, keys, values, scale)

    return _with_gradients(kernel, formula, (2, 2, 3, head_width), (2, 2, 5, head_width), device, dtype)


def _packed_problem(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> tuple[Tensor, Tensor]:
    """Two rows of 3 queries, of which one has 4 keys, the other 1."""
    scale = 1 / head_width
    query_starts, key_starts = (
        torch.tensor(starts, dtype=torch.int32, device=device) for starts in ((0, 3, 6), (0, 4, 5))
    )

    def kernel(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return PACKED_ROWS[name](queries, keys, values, query_starts, key_starts, 3, 4, scale)

    def formula(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows = []
        for own_queries, words in ((slice(0, 3), slice(0, 4)), (slice(3, 6), slice(4, 5))):
            part = [tensor.transpose(0, 1) for tensor in (queries[own_queries], keys[words], values[words])]
            rows.append(_formula(part[0], part[1], part[2], scale).transpose(0, 1))
        return torch.cat(rows)

    return _with_gradients(kernel, formula, (6, 2, head_width), (5, 2, head_width), device, dtype)


def _with_gradients(
    kernel: Attend,
    formula: Attend,
    query_shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Of a kernel and of the formula all values and gradients, for queries, keys and values from -1 to 1."""
    found = []
    for function in (kernel, formula):
        leaves = []
        for turn, shape in enumerate((query_shape, key_shape, key_shape), start=1):
            count = torch.arange(torch.Size(shape).numel(), device=device, dtype=torch.float32)
            leaves.append((count * turn).sin().view(shape).to(dtype).requires_grad_())
        output = function(*leaves)
        gradients = torch.autograd.grad(output.float().square().sum(), leaves)
        found.append(torch.cat([tensor.float().flatten() for tensor in (output, *gradients)]).detach())
    return found[0], found[1]
