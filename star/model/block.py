"""One block of the next-scale transformer: self-attention, cross-attention, MLP, each added to the residual stream.

B batch, l tokens, L of all keys, C model width.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.model.attention import CrossAttention, KeyValueCache, SelfAttention
from star.model.attention_backends import ScaleCausality
from star.model.linear import dense
from star.model.rope import Rotation
from star.model.state import BlockText

if TYPE_CHECKING:
    from star.model.prepared import BlockPrepared
    from star.model.transformer import TransformerConfig


class Mlp(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BlC: Tensor) -> Tensor:
        return dense(self.down, dense(self.up, x_BlC, activation="gelu"))


class AdaLN(NamedTuple):
    """What a condition does to one branch (Peebles & Xie 2023), each (B, 1, C); as it stands nothing.

    gain: of the branch's output, 1 if None. scale, shift: of its normalised input, 0 if None.
    """

    gain_B1C: Tensor | None = None
    scale_B1C: Tensor | None = None
    shift_B1C: Tensor | None = None

    def before(self, normed_BlC: Tensor) -> Tensor:
        """The branch's input."""
        if self.scale_B1C is None or self.shift_B1C is None:
            return normed_BlC
        return normed_BlC * (1 + self.scale_B1C) + self.shift_B1C

    def after(self, branch_BlC: Tensor) -> Tensor:
        """The branch's output."""
        return branch_BlC if self.gain_B1C is None else self.gain_B1C * branch_BlC


PLAIN = (AdaLN(), AdaLN())  # of self-attention and MLP


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each behind a LayerNorm without parameters and added to the stream."""

    def __init__(self, config: "TransformerConfig") -> None:
        super().__init__()
        self.norm_eps, self.dropout = config.norm_eps, config.dropout
        self.attention = SelfAttention(config.width, config.heads, qk_norm=config.qk_norm, backend=config.attention)
        self.cross_attention = (
            CrossAttention(
                config.width, config.heads, config.text_width, qk_norm=config.qk_norm, backend=config.attention
            )
            if config.cross_attention
            else None
        )
        self.mlp = Mlp(config.width, round(config.width * config.mlp_ratio))
        self.modulation = nn.Linear(config.width, 6 * config.width) if config.modulation == "adaln" else None
        self.modulation_offset = (
            nn.Parameter(torch.empty(1, 1, 6, config.width)) if config.modulation == "shared-adaln" else None
        )

    def norm(self, x_BlC: Tensor) -> Tensor:
        """LayerNorm without parameters."""
        return F.layer_norm(x_BlC, x_BlC.shape[-1:], eps=self.norm_eps)

    def adaln(self, condition_BC: Tensor | None, shared_B6C: Tensor | None) -> tuple[AdaLN, AdaLN]:
        """Those of self-attention and MLP; the released order is gain1, gain2, scale1, scale2, shift1, shift2."""
        if self.modulation is not None and condition_BC is not None:
            six = self.modulation(F.silu(condition_BC)).unflatten(-1, (6, 1, -1)).unbind(1)
        elif self.modulation_offset is not None and shared_B6C is not None:
            six = (self.modulation_offset[0] + shared_B6C).unsqueeze(2).unbind(1)
        else:
            return PLAIN
        return AdaLN(*six[0::2]), AdaLN(*six[1::2])

    def drop(self, branch_BlC: Tensor, path_B11: Tensor | None = None) -> Tensor:
        """Dropout, and the sample's path (see `draw_paths`) where there is one; no dropout outside training."""
        if self.training and self.dropout:
            # The same channels for all tokens of a picture: next to no random numbers, and nothing to copy from a
            # neighbouring token (Gal & Ghahramani 2016).
            keep = 1.0 - self.dropout
            mask_B1C = branch_BlC.new_empty(len(branch_BlC), 1, branch_BlC.shape[2]).bernoulli_(keep)
            branch_BlC = branch_BlC * (mask_B1C / keep)
        return branch_BlC if path_B11 is None else branch_BlC * path_B11.to(branch_BlC.dtype)

    def forward(
        self,
        x_BlC: Tensor,
        adaln: tuple[AdaLN, AdaLN] = PLAIN,
        rotation: Rotation | None = None,
        mask: ScaleCausality | Tensor | None = None,
        text: BlockText | None = None,
        cache: KeyValueCache | None = None,
        paths_2B11: Tensor | None = None,
        prepared: "BlockPrepared | None" = None,
    ) -> Tensor:
        """(B, l, C) -> (B, l, C).

        adaln: of self-attention and MLP, see `adaln`. mask: of self-attention, see SelfAttention. text: what
        cross-attention reads. paths_2B11: of `draw_paths`, for self-attention and MLP. prepared: of this block.
        """
        constants, temperature = (None, None) if prepared is None else (prepared.attention, prepared.reading_1N11)
        adaln1, adaln2 = adaln
        path1, path2 = (None, None) if paths_2B11 is None else paths_2B11.unbind()
        branch_BlC = self.attention(adaln1.before(self.norm(x_BlC)), rotation, mask, cache, constants)
        x_BlC = x_BlC + self.drop(adaln1.after(branch_BlC), path1)
        if self.cross_attention is not None and text is not None:
            x_BlC = x_BlC + self.drop(self.read(self.cross_attention, self.norm(x_BlC), text, temperature))
        branch_BlC = self.mlp(adaln2.before(self.norm(x_BlC)))
        return x_BlC + self.drop(adaln2.after(branch_BlC), path2)

    def read(
        self, cross_attention: CrossAttention, normed_BlC: Tensor, text: BlockText, temperature: Tensor | None
    ) -> Tensor:
        """Cross-attention to the text; see TextKeys for what the released mode does."""
        keys, values = cross_attention.encode_text(text.text) if isinstance(text.text, Tensor) else text.text
        read_BlC: Tensor = cross_attention(normed_BlC, keys, values, text.mask_B11T, temperature_1N11=temperature)
        return read_BlC.chunk(2)[0].repeat(2, 1, 1) if text.released else read_BlC


def draw_paths(depth: int, drop_path: float, batch: int, device: torch.device) -> Tensor:
    """Stochastic depth (Huang et al. 2016): factors (depth, 2, B, 1, 1), float32, of the branches of every block.

    0 where a sample goes around a branch, else 1 / P(it does not); that chance falls linearly from 1 in the first block
    to 1 - drop_path in the last. Drawn for all blocks at once and handed to them as tensors: a probability of its own
    as a Python number would make torch.compile write another graph for every block.
    """
    keep_D = 1 - drop_path * torch.arange(depth, device=device) / max(depth - 1, 1)
    keep_D1111 = keep_D.view(depth, 1, 1, 1, 1)
    return (torch.rand(depth, 2, batch, 1, 1, device=device) < keep_D1111) / keep_D1111
