"""What a pass of the transformer carries beside its tokens: the text's keys, and, while drawing, all that is cached.

B batch, T text tokens, D text width, l tokens of the coarsest scale, C model width, N heads, d channels of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from star.model.attention import CrossAttention, KeyValueCache
from star.model.packed_text import PackedText, text_sight
from star.model.tables import PyramidTables

if TYPE_CHECKING:
    from star.data.text import TextFeatures
    from star.model.prepared import Prepared
    from star.model.transformer import TransformerConfig


class BlockText(NamedTuple):
    """What one block's cross-attention reads.

    text: keys and values, (B, N, T, d) each, or the text tokens (B, T, D) that the block makes its own from. released:
    see TextKeys.
    """

    text: Tensor | tuple[Tensor, Tensor]
    mask_B11T: Tensor | PackedText
    released: bool = False


@dataclass(slots=True)
class TextKeys:
    """Keys and values of the text for every block, and which of its tokens count.

    released: the rows are B / 2 conditional and as many unconditional ones, and the latter get the cross-attention
    output of the former, as the official STAR code does for one prompt (see star/sampling/sampler.py).
    """

    keys_values: list[tuple[Tensor, Tensor]]  # (B, N, T, d) each; none while training: blocks make their own
    tokens_BTD: Tensor
    mask_B11T: Tensor | PackedText  # additive; or tokens, keys and values lie packed, see packed_text.py
    released: bool = False

    @classmethod
    def of(
        cls,
        config: "TransformerConfig",
        text: "TextFeatures",
        readers: Sequence[CrossAttention],
        dtype: torch.dtype,
        released: bool = False,
    ) -> Self:
        """What the readers, if any, make of the text. dtype: of the queries."""
        tokens_BTD, mask = text_sight(config, text.tokens_BTD, text.mask_BT, dtype)
        return cls([reader.encode_text(tokens_BTD) for reader in readers], tokens_BTD, mask, released)

    def of_block(self, i: int) -> BlockText:
        """What block i is given."""
        return BlockText(self.keys_values[i] if self.keys_values else self.tokens_BTD, self.mask_B11T, self.released)

    def first(self, count: int) -> "TextKeys":
        """Those of the first `count` rows, which are then no longer paired with others."""
        pairs = [(keys[:count], values[:count]) for keys, values in self.keys_values]
        mask = self.mask_B11T
        kept = mask.first(count) if isinstance(mask, PackedText) else mask[:count]
        return TextKeys(pairs, self.tokens_BTD[:count], kept)


@dataclass(slots=True)
class DrawingState:
    """All that is carried from scale to scale while codes are drawn."""

    start_BlC: Tensor
    condition_BC: Tensor | None
    text: TextKeys | None
    caches: list[KeyValueCache]
    tables: PyramidTables  # of the pictures' shape
    prepared: "Prepared | None" = None  # None: blocks compute it at every scale

    def first(self, count: int) -> "DrawingState":
        """The same state for the first `count` rows of the batch: the conditional ones."""
        return DrawingState(
            self.start_BlC[:count],
            None if self.condition_BC is None else self.condition_BC[:count],
            self.text and self.text.first(count),
            [cache.rows(slice(count)) for cache in self.caches],
            self.tables,
            self.prepared and self.prepared.first(count),
        )
