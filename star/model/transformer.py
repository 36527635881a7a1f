"""The next-scale transformer: from the scales drawn so far to the codes of the next one.

B batch, T text tokens, D text width, L tokens of all scales, l of one scale, C model width, N heads, V numbers of the
head for a token: codes, or bits; E code width, K number of scales, k scale index.
One network covers STAR (text; rotary positions; cross-attention in every block) and the class-conditional VAR
(AdaLN, own or shared; absolute positions). It is handed embeddings and returns logits; it never sees the tokenizer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from star.generators.config import UNLESS_DEFAULT, check_choices, check_ranges
from star.model.attention import KeyValueCache
from star.model.attention_backends import ScaleCausality
from star.model.block import Block, draw_paths
from star.model.heads import head_of
from star.model.initialisation import init_weights
from star.model.kernels.choice import Attention
from star.model.linear import dense
from star.model.losses import tokens_at_once
from star.model.prepared import BlockPrepared, prepare
from star.model.rope import Rotation
from star.model.state import DrawingState, TextKeys
from star.model.tables import PyramidTables, tables_of
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import Bits, Codes, TokenKind

if TYPE_CHECKING:
    from star.data.text import TextFeatures


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Shape of the network; the defaults are the released STAR d16 at 256 pixels."""

    sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    depth: int = 16
    width: int = 1024
    heads: int = 16
    mlp_ratio: float = 4.0
    vocabulary: int = 4096
    code_width: int = 32
    conditioning: Literal["text", "class"] = "text"
    text_width: int = 1024
    classes: int = 1000  # for conditioning "class"; label number `classes` means unconditional
    modulation: Literal["none", "adaln", "shared-adaln"] = "none"
    positions: Literal["rope", "absolute"] = "rope"
    cross_attention: bool = True
    qk_norm: bool = True
    logit_norm: bool = True
    rope_theta: float = 10000.0
    rope_norm: float = 64.0
    norm_eps: float = 1e-6
    dropout: float = 0.0  # on what every branch adds; ours, for small data
    drop_path: float = 0.0  # of the last block, rising linearly from 0 (Huang et al. 2016); not on cross-attention
    attention: Attention = "sdpa"  # see star/model/kernels/choice.py
    checkpointing: bool = False  # only blocks' inputs are kept, the rest is computed twice (Chen et al. 2016)
    head_float32: bool = True  # False lets autocast lower the precision of the last matrix product
    bits: int = field(default=0, metadata=UNLESS_DEFAULT)  # D of a token that is a row of bits; 0: it is a code

    def __post_init__(self) -> None:
        check_ranges(
            self,
            depth=(1, 512),
            width=(1, 2**14),
            heads=(1, 1024),
            mlp_ratio=(1e-3, 64),
            vocabulary=(1, 2**20),
            code_width=(1, 2**12),
            text_width=(1, 2**14),
            classes=(0, 2**20),
            rope_theta=(1e-3, 1e12),
            rope_norm=(0, 1e6),
            norm_eps=(0, 1),
            dropout=(0, 1),
            drop_path=(0, 1),
            bits=(0, 2**12),
        )
        ScaleSchedule(self.sizes)  # refuses sizes that are none
        check_choices(self, "conditioning", "modulation", "positions")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; change either")
        if self.positions == "rope" and self.head_width % 4:
            raise ValueError(f"rotary positions need width / heads to be a multiple of 4, got {self.head_width}")
        if self.conditioning == "class" and self.cross_attention:
            raise ValueError("a class has no words to attend to; set cross_attention=False")
        if self.modulation != "none" and (self.conditioning != "class" or not self.logit_norm):
            raise ValueError("modulation needs conditioning='class' and logit_norm=True, as in VAR")

    @property
    def head_width(self) -> int:
        """Channels d of one head."""
        return self.width // self.heads

    @property
    def schedule(self) -> ScaleSchedule:
        """The pyramid of token grids."""
        return ScaleSchedule(self.sizes)

    @property
    def tokens(self) -> TokenKind:
        """What a token is."""
        return Bits(self.bits) if self.bits else Codes(self.vocabulary)


class NextScaleTransformer(nn.Module):
    """Predicts every token of a scale at once from the coarser scales and the prompt. Tian et al. 2024, §3."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.schedule = config, config.schedule
        self.token_head = head_of(config.tokens)
        width, first = config.width, self.schedule.lengths[0]
        if config.conditioning == "text":
            self.text_projection = nn.Linear(config.text_width, width)
        else:
            self.class_embedding = nn.Embedding(config.classes + 1, width)
        self.start_position = nn.Parameter(torch.empty(1, first, width))
        self.input_projection = nn.Linear(config.code_width, width)
        self.level_embedding = nn.Embedding(self.schedule.count, width)
        self.position_embedding = (
            nn.Parameter(torch.empty(1, self.schedule.length, width)) if config.positions == "absolute" else None
        )
        self.shared_modulation = nn.Linear(width, 6 * width) if config.modulation == "shared-adaln" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width) if config.modulation != "none" else None
        self.head = nn.Linear(width, config.tokens.outputs)
        self.tables = tables_of(config)
        self._causality: dict[tuple[tuple[int, ...], torch.dtype, torch.device], ScaleCausality] = {}
        init_weights(self)

    def forward(
        self,
        teacher_input_BlE: Tensor,
        text: "TextFeatures | Tensor",
        kept_L: Tensor | None = None,
        codes_BL: Tensor | None = None,
        label_smoothing: float = 0.0,
        schedule: ScaleSchedule | None = None,
    ) -> Tensor:
        """Logits of all scales at once, each scale seeing only coarser ones (teacher forcing); or their losses.

        teacher_input_BlE: (B, L - l_0, E), what the tokenizer's teacher_input gives; L may end after any scale. text:
        TextFeatures, or class labels (B,) int64 for conditioning "class". kept_L: the tokens that take part, see
        star.training.targets.draw_kept; all if None. schedule: the grids of the pictures; squares if None. Returns
        float32 (B, L, V), with as many L as take part; where codes_BL, their right answers, are given, the nats (per
        bit) of every token (B, L), without ever holding all logits. Raises ValueError for an input of other scales.
        """
        hidden_BLC, condition_BC = self.hidden(teacher_input_BlE, text, kept_L, schedule)
        if codes_BL is None:
            return self.logits(hidden_BLC, condition_BC)
        return self.losses(hidden_BLC, condition_BC, codes_BL, label_smoothing)

    def hidden(
        self,
        teacher_input_BlE: Tensor,
        text: "TextFeatures | Tensor",
        kept_L: Tensor | None = None,
        schedule: ScaleSchedule | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Before the head: states (B, L, C), not yet normalised, and AdaLN's condition; see `forward`."""
        tables = self.tables.of(schedule)
        first, (rows, length, width) = self.schedule.lengths[0], teacher_input_BlE.shape
        if first + length not in tables.schedule.offsets[1:] or width != self.config.code_width:
            raise ValueError(
                f"teacher input is (B, L - l_0, E) = (B, {tables.schedule.length - first}, {self.config.code_width}), "
                f"or ends after a coarser scale, got {(rows, length, width)}; does the tokenizer have the same scales?"
            )
        condition_BC, start_BlC = self.encode_condition(text)
        span: slice | Tensor = slice(0, first + length)
        if kept_L is not None:
            span, teacher_input_BlE = kept_L, teacher_input_BlE[:, kept_L[first:] - first]
        tokens_BlC = self.input_projection(teacher_input_BlE)
        x_BLC = self.embed(torch.cat((start_BlC.to(tokens_BlC.dtype), tokens_BlC), dim=1), span, tables)
        # A block in pieces (FSDP2) is whole only while it computes, so here each makes its own text keys.
        keys, mask = self.encode_text(text, beforehand=False), self.causality(x_BLC, tables.schedule)
        return self.run_blocks(x_BLC, tables.rotation(span), condition_BC, keys, mask), condition_BC

    def begin(
        self, text: "TextFeatures | Tensor", *, released: bool = False, schedule: ScaleSchedule | None = None
    ) -> DrawingState:
        """Everything that depends on the prompts alone, and empty caches for all L tokens. released: see TextKeys."""
        condition_BC, start_BlC = self.encode_condition(text)
        config, tables, dtype = self.config, self.tables.of(schedule), self._compute_dtype()
        shape = (len(start_BlC), config.heads, tables.schedule.length, config.head_width)
        caches = [KeyValueCache.empty(shape, dtype, start_BlC.device) for _ in self.blocks]
        keys, prepared = self.encode_text(text, released=released), prepare(self, condition_BC, tables)
        return DrawingState(start_BlC, condition_BC, keys, caches, tables, prepared)

    def step(self, input_BlE: Tensor | None, k: int, state: DrawingState) -> Tensor:
        """One scale through all blocks, after the scales before it: hidden states (B, l, C), not yet normalised.

        input_BlE: what the tokenizer's `accumulate` returned for scale k; None for scale 0, which starts from the text.
        """
        if (input_BlE is None) != (k == 0):
            raise ValueError(f"scale 0 takes no input and every other needs one; got k = {k}")
        tables, span = state.tables, state.tables.schedule.slices[k]
        if input_BlE is None:
            x_BlC = state.start_BlC
        else:  # the latent is float32 whatever the network computes in
            x_BlC = dense(self.input_projection, input_BlE.to(self.input_projection.weight.dtype))
        if (prepared := state.prepared) is None:
            prepared = prepare(self, state.condition_BC, tables)
        x_BlC = self.place(x_BlC + prepared.levels_LC[span], span)
        rotation = prepared.rotation and prepared.rotation.part(span)
        return self.run_blocks(
            x_BlC, rotation, state.condition_BC, state.text, caches=state.caches, prepared=prepared.blocks
        )

    # ---- embed, blocks, head

    def encode_condition(self, text: "TextFeatures | Tensor") -> tuple[Tensor | None, Tensor]:
        """AdaLN's condition (B, C), None for text, and the start tokens (B, l_0, C) of the coarsest scale."""
        if self.config.conditioning == "text":
            if isinstance(text, Tensor):
                raise ValueError("this network is conditioned on text: give TextFeatures, not class labels")
            pooled_BC = self.text_projection(text.pooled_BD)
            return None, pooled_BC.unsqueeze(1) + self.start_position
        if not isinstance(text, Tensor):
            raise ValueError("this network is conditioned on classes: give labels (B,), not text")
        condition_BC = self.class_embedding(text)
        return condition_BC, condition_BC.unsqueeze(1) + self.start_position

    def encode_text(
        self, text: "TextFeatures | Tensor", *, beforehand: bool = True, released: bool = False
    ) -> TextKeys | None:
        """Keys and values of the text for every block, once per prompt; only its tokens unless `beforehand`."""
        if not self.config.cross_attention or isinstance(text, Tensor):
            return None
        readers = [block.cross_attention for block in self.each_block() if block.cross_attention and beforehand]
        return TextKeys.of(self.config, text, readers, self._compute_dtype(), released)

    def embed(self, x_BlC: Tensor, span: slice | Tensor, tables: PyramidTables) -> Tensor:
        """Adds what tells tokens apart: the scale, and the place where positions are absolute."""
        return self.place(x_BlC + self.level_embedding(tables.levels_L[span]), span)

    def place(self, x_BlC: Tensor, span: slice | Tensor) -> Tensor:
        """Adds the place alone."""
        return x_BlC if self.position_embedding is None else x_BlC + self.position_embedding[:, span]

    def run_blocks(
        self,
        x_BlC: Tensor,
        rotation: Rotation | None,
        condition_BC: Tensor | None,
        text: TextKeys | None,
        mask: ScaleCausality | Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
        prepared: list[BlockPrepared] | None = None,
    ) -> Tensor:
        """All blocks. rotation: of these tokens. mask: of training; caches, prepared: of drawing."""
        shared_B6C, paths = None if prepared else self.shared_condition(condition_BC), None
        if self.training and self.config.drop_path:
            paths = draw_paths(self.config.depth, self.config.drop_path, len(x_BlC), x_BlC.device)
        for i, block in enumerate(self.each_block()):
            words, cache = None if text is None else text.of_block(i), None if caches is None else caches[i]
            path = None if paths is None else paths[i]
            own = None if prepared is None else prepared[i]
            adaln = block.adaln(condition_BC, shared_B6C) if own is None else own.adaln
            given = (x_BlC, adaln, rotation, mask, words, cache, path, own)
            if self.config.checkpointing and self.training and torch.is_grad_enabled():
                x_BlC = checkpoint(block, *given, use_reentrant=False)
            else:
                x_BlC = block(*given)
        return x_BlC

    def shared_condition(self, condition_BC: Tensor | None) -> Tensor | None:
        """What blocks add their offsets to, (B, 6, C), where they share AdaLN."""
        if self.shared_modulation is None or condition_BC is None:
            return None
        return self.shared_modulation(F.silu(condition_BC)).unflatten(-1, (6, -1))

    def head_adaln(self, condition_BC: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Scale and shift (B, 1, C) before the head, where there are any."""
        if self.head_modulation is None or condition_BC is None:
            return None
        return self.head_modulation(F.silu(condition_BC)).unflatten(-1, (2, 1, -1)).unbind(1)

    def logits(
        self,
        hidden_BlC: Tensor,
        condition_BC: Tensor | None = None,
        adaln: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The head: normalisation and classifier, float32 (B, l, V). adaln: `head_adaln` where it is known."""
        kind = hidden_BlC.device.type
        lowered = torch.is_autocast_enabled(kind) and not self.config.head_float32
        with torch.autocast(kind, enabled=lowered):
            if self.config.head_float32:
                hidden_BlC = hidden_BlC.to(self.head.weight.dtype)
            if self.config.logit_norm:
                hidden_BlC = F.layer_norm(hidden_BlC, hidden_BlC.shape[-1:], eps=self.config.norm_eps)
            if (adaln := adaln or self.head_adaln(condition_BC)) is not None:
                hidden_BlC = hidden_BlC * (1 + adaln[0]) + adaln[1]
            return dense(self.head, hidden_BlC).float()

    def losses(
        self, hidden_BlC: Tensor, condition_BC: Tensor | None, codes_Bl: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Nats of every token, or per bit, (B, l): some tokens' logits at a time, made again in the backward pass."""

        def part(hidden: Tensor, codes: Tensor) -> Tensor:
            return self.token_head.losses(self.logits(hidden, condition_BC), codes, label_smoothing)

        length = max(1, tokens_at_once(self.config.tokens.outputs) // max(1, len(codes_Bl)))
        if codes_Bl.shape[1] <= length:
            return part(hidden_BlC, codes_Bl)
        pairs = zip(hidden_BlC.split(length, dim=1), codes_Bl.split(length, dim=1), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([part(*pair) for pair in pairs], dim=1)
        return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in pairs], dim=1)

    def causality(self, x_BLC: Tensor, schedule: ScaleSchedule | None = None) -> ScaleCausality:
        """The attention mask: a token attends to its own scale and coarser ones. Kept between calls.

        Where tokens are missing they are of the finest scales, and which ones makes no difference to the mask.
        """
        ends = [min(end, x_BLC.shape[1]) for end in (schedule or self.schedule).offsets]
        lengths = tuple(end - start for start, end in pairwise(ends) if end > start)
        key = (lengths, self._compute_dtype(), x_BLC.device)
        if key not in self._causality:
            self._causality[key] = ScaleCausality(lengths, self.config.attention, *key[1:])
        return self._causality[key]

    def _compute_dtype(self) -> torch.dtype:
        """The type that matrix products run in: autocast's, or that of the weights."""
        weight = self.input_projection.weight
        kind = weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype

    def each_block(self) -> Iterator[Block]:
        """The blocks, with their type."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block
