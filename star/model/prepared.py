"""What the blocks compute from their parameters and a condition alone: once for a picture, not anew at every scale.

B batch, L tokens of all scales, l of one scale, C model width, N heads. Made when a picture begins, so that parameters
may change between two pictures; the numbers are those that the blocks would compute by themselves.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from star.model.attention import Constants
from star.model.block import PLAIN, AdaLN

if TYPE_CHECKING:
    from star.model.rope import Rotation
    from star.model.tables import PyramidTables
    from star.model.transformer import NextScaleTransformer


class BlockPrepared(NamedTuple):
    """Of one block. reading_1N11: the temperature of cross-attention."""

    attention: Constants
    reading_1N11: Tensor | None = None
    adaln: tuple[AdaLN, AdaLN] = PLAIN


@dataclass(frozen=True, slots=True)
class Prepared:
    """Of all blocks, and of tokens by their place. rotation: of all L tokens. head: scale and shift before the head."""

    blocks: list[BlockPrepared]
    levels_LC: Tensor
    rotation: "Rotation | None"
    head: tuple[Tensor, Tensor] | None

    def first(self, count: int) -> "Prepared":
        """Those of the first `count` rows of the batch."""
        blocks = [
            block._replace(adaln=(_rows(block.adaln[0], count), _rows(block.adaln[1], count))) for block in self.blocks
        ]
        head = None if self.head is None else (self.head[0][:count], self.head[1][:count])
        return replace(self, blocks=blocks, head=head)


def prepare(transformer: "NextScaleTransformer", condition_BC: Tensor | None, tables: "PyramidTables") -> Prepared:
    """tables: of the picture's schedule."""
    shared_B6C, rotation = transformer.shared_condition(condition_BC), tables.rotation(slice(None))
    parts = [
        BlockPrepared(
            block.attention.constants(),
            None if block.cross_attention is None else block.cross_attention.temperature(),
            block.adaln(condition_BC, shared_B6C),
        )
        for block in transformer.each_block()
    ]
    return Prepared(
        parts,
        transformer.level_embedding(tables.levels_L),
        None if rotation is None else rotation.prepared(),
        transformer.head_adaln(condition_BC),
    )


def _rows(adaln: AdaLN, count: int) -> AdaLN:
    return AdaLN(*(None if part is None else part[:count] for part in adaln))
