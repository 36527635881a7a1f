"""What a pass of the transformer carries beside its tokens: the text's keys, and, while drawing, all that is cached.

B batch, T text tokens, D text width, l tokens of the coarsest scale, C model width, N heads, d channels of a head.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from star.model.attention import KeyValueCache
from star.model.tables import PyramidTables

if TYPE_CHECKING:
    from star.model.prepared import Prepared


class BlockText(NamedTuple):
    """What one block's cross-attention reads.

    text: keys and values, (B, N, T, d) each, or the text tokens (B, T, D) that the block makes its own from. released:
    see TextKeys.
    """

    text: Tensor | tuple[Tensor, Tensor]
    mask_B11T: Tensor
    released: bool = False


@dataclass(slots=True)
class TextKeys:
    """Keys and values of the text for every block, and which of its tokens count.

    released: the rows are B / 2 conditional and as many unconditional ones, and the latter get the cross-attention
    output of the former, as the official STAR code does for one prompt (see star/sampling/sampler.py).
    """

    keys_values: list[tuple[Tensor, Tensor]]  # (B, N, T, d) each; none while training: blocks make their own
    tokens_BTD: Tensor
    mask_B11T: Tensor  # additive
    released: bool = False

    def of_block(self, i: int) -> BlockText:
        """What block i is given."""
        return BlockText(self.keys_values[i] if self.keys_values else self.tokens_BTD, self.mask_B11T, self.released)

    def first(self, count: int) -> "TextKeys":
        """Those of the first `count` rows, which are then no longer paired with others."""
        pairs = [(keys[:count], values[:count]) for keys, values in self.keys_values]
        return TextKeys(pairs, self.tokens_BTD[:count], self.mask_B11T[:count])


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
