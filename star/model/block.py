"""One block of the next-scale transformer: read the tokens, read the words, think, each added to the stream.

B batch, l tokens, L of all keys, C model width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.model.attention import CrossAttention, KeyValueCache, SelfAttention
from star.model.attention_backends import ScaleCausality
from star.model.rope import Rotation

if TYPE_CHECKING:
    from star.model.transformer import TransformerConfig


class Mlp(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BlC: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BlC), approximate="tanh"))


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

    def gains(self, condition_BC: Tensor | None, shared_B6C: Tensor | None) -> tuple[Tensor, ...] | None:
        """gamma1, gamma2, scale1, scale2, shift1, shift2, each (B, 1, C), in the released order; None without AdaLN."""
        if self.modulation is not None and condition_BC is not None:
            return self.modulation(F.silu(condition_BC)).unflatten(-1, (6, 1, -1)).unbind(1)
        if self.modulation_offset is not None and shared_B6C is not None:
            return (self.modulation_offset[0] + shared_B6C).unsqueeze(2).unbind(1)
        return None

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
        gains: tuple[Tensor, ...] | None,
        rotation: Rotation | None,
        sight: ScaleCausality | Tensor | None,
        words: tuple[Tensor | tuple[Tensor, Tensor], Tensor, Tensor | None] | None,
        cache: KeyValueCache | None,
        paths_2B11: Tensor | None = None,
    ) -> Tensor:
        """(B, l, C) -> (B, l, C). sight: see SelfAttention. words: the text's keys and values, or
        its tokens (B, T, D); its mask, and source rows. paths_2B11: of `draw_paths`, for self-attention and MLP.
        """
        path1, path2 = (None, None) if paths_2B11 is None else paths_2B11.unbind()
        normed = self.norm(x_BlC)
        if gains is None:
            x_BlC = x_BlC + self.drop(self.attention(normed, rotation, sight, cache), path1)
        else:
            gain1, gain2, scale1, scale2, shift1, shift2 = gains
            normed = normed * (1 + scale1) + shift1
            x_BlC = x_BlC + self.drop(gain1 * self.attention(normed, rotation, sight, cache), path1)
        if self.cross_attention is not None and words is not None:
            text, mask, source_B = words
            keys, values = self.cross_attention.encode_text(text) if isinstance(text, Tensor) else text
            read_BlC = self.cross_attention(self.norm(x_BlC), keys, values, mask)
            x_BlC = x_BlC + self.drop(read_BlC if source_B is None else read_BlC[source_B])
        if gains is None:
            return x_BlC + self.drop(self.mlp(self.norm(x_BlC)), path2)
        return x_BlC + self.drop(gain2 * self.mlp(self.norm(x_BlC) * (1 + scale2) + shift2), path2)


def draw_paths(depth: int, drop_path: float, batch: int, device: torch.device) -> Tensor:
    """Stochastic depth (Huang et al. 2016): factors (depth, 2, B, 1, 1), float32, of the branches of every block.

    0 where a sample goes around a branch, else 1 / P(it does not); that chance falls linearly from 1 in the first block
    to 1 - drop_path in the last. Drawn for all blocks at once and handed to them as tensors: a probability of its own
    as a Python number would make torch.compile write another graph for every block.
    """
    keep_D = 1 - drop_path * torch.arange(depth, device=device) / max(depth - 1, 1)
    keep_D1111 = keep_D.view(depth, 1, 1, 1, 1)
    return (torch.rand(depth, 2, batch, 1, 1, device=device) < keep_D1111) / keep_D1111
