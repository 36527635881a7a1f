"""Cross-attention to prompts of several lengths: under a mask, or with the words of all prompts one behind the other.

Packed, padding is neither multiplied nor masked: row i of the queries reads the words from entry i to entry i + 1 of
`starts`. What is packed are the tokens of the text, before any block makes keys of them, into a tensor of the same
shape: words first, then padding that nobody reads. So shapes do not depend on the prompts, nothing waits for the
device, and compiled code and CUDA graphs see no difference.

B rows, T text tokens of a row, D text width, N heads, l tokens of the queries, d channels of a head; Q = B l queries
and P = B T places for words in all.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star.model.attention_backends import additive, attend
from star.model.kernels import flash
from star.model.kernels.choice import PACKED, asked, choose

if TYPE_CHECKING:
    from star.model.transformer import TransformerConfig

GROUPED = "grouped"  # the packed form in plain torch, on any device: what the kernels are tested against


@dataclass(frozen=True, slots=True)
class PackedText:
    """Where the words of each row begin, and the kernel that reads them."""

    starts: Tensor  # (B + 1,) int32; the last entry is the end
    kernel: str

    def first(self, count: int) -> "PackedText":
        """Of the first `count` rows: their words come first as well."""
        return PackedText(self.starts[: count + 1], self.kernel)

    def first_mask_111T(self, tokens: int) -> Tensor:
        """The first row's words as an additive mask, 0 or -inf, over its own `tokens` places."""
        places_T = torch.arange(tokens, device=self.starts.device)
        return additive(places_T < self.starts[1], torch.float32)[None, None, None]

    def attend(self, queries_BNld: Tensor, keys_BNTd: Tensor, values_BNTd: Tensor, scale: float) -> Tensor:
        """(B, N, l, d): softmax(scale q k) v over each row's own words. Keys and values lie packed."""
        rows, _, length, _ = queries_BNld.shape
        queries_QNd, keys_PNd, values_PNd = (
            tensor.transpose(1, 2).flatten(0, 1) for tensor in (queries_BNld, keys_BNTd, values_BNTd)
        )
        if keys_PNd.requires_grad or values_PNd.requires_grad:
            # Kernels leave the gradient of what nobody reads as the memory was: here it ends.
            unread_P11 = (torch.arange(len(keys_PNd), device=self.starts.device) >= self.starts[-1])[:, None, None]
            keys_PNd, values_PNd = keys_PNd.masked_fill(unread_P11, 0), values_PNd.masked_fill(unread_P11, 0)
        query_starts = torch.arange(rows + 1, dtype=torch.int32, device=self.starts.device) * length
        kernel = grouped if self.kernel == GROUPED else flash.PACKED_ROWS[self.kernel]
        read_QNd = kernel(
            queries_QNd, keys_PNd, values_PNd, query_starts, self.starts, length, keys_BNTd.shape[2], scale
        )
        return read_QNd.unflatten(0, (rows, length)).transpose(1, 2)


def pack(tokens_BTD: Tensor, mask_BT: Tensor, kernel: str) -> tuple[Tensor, PackedText]:
    """The same tokens, (B, T, D), those that count (bool) before all others, and where each row's begin."""
    order_P = (~mask_BT.bool()).flatten().to(torch.uint8).argsort(stable=True)
    counts_B = mask_BT.bool().sum(dim=1)
    starts = torch.cat((counts_B.new_zeros(1), counts_B.cumsum(dim=0))).to(torch.int32)
    return tokens_BTD.flatten(0, 1)[order_P].view_as(tokens_BTD), PackedText(starts, kernel)


def text_sight(
    config: "TransformerConfig", tokens_BTD: Tensor, mask_BT: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | PackedText]:
    """The tokens to make keys of, and who reads which: packed, or as they are under an additive mask (B, 1, 1, T).

    dtype: of the queries. mask_BT: true for tokens that count.
    """
    chosen = choose("text", asked(config.attention), tokens_BTD.device, dtype, config.head_width)
    if chosen.form == PACKED:
        return pack(tokens_BTD, mask_BT, chosen.kernel)
    return tokens_BTD, additive(mask_BT[:, None, None, :].bool(), dtype)


def grouped(
    queries_QNd: Tensor,
    keys_PNd: Tensor,
    values_PNd: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    _most_queries: int,
    _most_keys: int,
    scale: float,
) -> Tensor:
    """A packed kernel in plain torch: rows with as many queries and keys as each other go through attention together.

    Asks the device how long rows are, and waits for it.
    """
    spans = list(zip(_spans(query_starts), _spans(key_starts), strict=True))
    output_QNd = torch.empty_like(queries_QNd)
    for shape in sorted({(len(queries), len(keys)) for queries, keys in spans}):
        alike = [pair for pair in spans if (len(pair[0]), len(pair[1])) == shape]
        places_bl, words_bk = (
            torch.tensor([list(span) for span in part], device=queries_QNd.device, dtype=torch.int64)
            for part in zip(*alike, strict=True)
        )
        queries, keys, values = (
            tensor[places].transpose(1, 2)
            for tensor, places in ((queries_QNd, places_bl), (keys_PNd, words_bk), (values_PNd, words_bk))
        )
        read = attend(queries, keys, values, None, scale, "sdpa").transpose(1, 2)
        output_QNd = output_QNd.index_copy(0, places_bl.flatten(), read.flatten(0, 1))
    return output_QNd


def _spans(starts: Tensor) -> list[range]:
    ends = starts.tolist()
    return [range(start, stop) for start, stop in pairwise(ends)]
