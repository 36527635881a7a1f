"""The reference that a training step is shown against: the same losses by the arithmetic of the released code.

Attention goes under a dense additive mask of all tokens by all tokens in float32, queries and keys are turned and
normalised by plain formulas whose gradients autograd derives, each block makes its keys of the text, the logits of all
tokens are there at once in float32, and nothing is compiled (Tian et al. 2024 and Ma et al. 2024, released trainers).
With torch 2 that code calls `scaled_dot_product_attention`; without it the products are written out, which
`written_out` has. It works on the weights of a network of ours, so that both give the same losses within rounding.
B batch, L tokens of all scales, T text tokens, C model width, N heads, d = C / N.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.model.attention import MAX_LOG_SCALE, CrossAttention, SelfAttention
from star.model.attention_backends import additive
from star.model.block import Block, draw_paths
from star.model.rope import Rotation, rotate
from star.model.transformer import NextScaleTransformer

if TYPE_CHECKING:
    from star.data.text import TextFeatures


class BaselineNetwork(nn.Module):
    """Losses of a network by the released arithmetic; the weights are that network's own."""

    mask_LL: Tensor

    def __init__(self, network: NextScaleTransformer, *, written_out: bool = False) -> None:
        """written_out: products and softmax one by one, under a mask in the type of the products.

        Raises ValueError for a network whose blocks are modulated by a class: the released trainer of those is another.
        """
        super().__init__()
        if network.config.modulation != "none":
            raise ValueError("the baseline step trains networks without AdaLN: give one with modulation='none'")
        self.network, self.written_out = network, written_out
        level_L = network.schedule.level_ids_L()
        mask_LL = additive(level_L[:, None] >= level_L[None, :], torch.float32)
        self.register_buffer("mask_LL", mask_LL.to(network.start_position.device), persistent=False)

    def forward(
        self,
        teacher_input_BlE: Tensor,
        text: "TextFeatures | Tensor",
        codes_BL: Tensor,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Nats of every token, float32 (B, L); see NextScaleTransformer.forward. All scales of squares take part."""
        network, config = self.network, self.network.config
        condition_BC, start_BlC = network.encode_condition(text)
        tokens_BlC = network.input_projection(teacher_input_BlE)
        whole = slice(0, network.schedule.length)
        x_BLC = network.embed(torch.cat((start_BlC.to(tokens_BlC.dtype), tokens_BlC), dim=1), whole, network.tables)
        paths = None
        if self.training and config.drop_path:
            paths = draw_paths(config.depth, config.drop_path, len(x_BLC), x_BLC.device)
        rotation = network.tables.rotation(whole)
        for i, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            x_BLC = self._block(block, x_BLC, rotation, text, None if paths is None else paths[i])
        logits_BLV = network.logits(x_BLC, condition_BC)
        return network.token_head.losses(logits_BLV, codes_BL, label_smoothing)

    def _block(
        self,
        block: Block,
        x_BLC: Tensor,
        rotation: Rotation | None,
        text: "TextFeatures | Tensor",
        paths_2B11: Tensor | None,
    ) -> Tensor:
        path1, path2 = (None, None) if paths_2B11 is None else paths_2B11.unbind()
        branch_BLC = self._attention(block.attention, block.norm(x_BLC), rotation)
        x_BLC = x_BLC + block.drop(branch_BLC, path1)
        if block.cross_attention is not None and not isinstance(text, Tensor):
            x_BLC = x_BLC + block.drop(self._read(block.cross_attention, block.norm(x_BLC), text))
        hidden = F.gelu(block.mlp.up(block.norm(x_BLC)), approximate="tanh")
        return x_BLC + block.drop(block.mlp.down(hidden), path2)

    def _attention(self, attention: SelfAttention, x_BLC: Tensor, rotation: Rotation | None) -> Tensor:
        bias = torch.cat((attention.query_bias, attention.key_bias, attention.value_bias))
        fused = F.linear(x_BLC, attention.query_key_value.weight, bias)
        queries, keys, values = (attention.split(part) for part in fused.chunk(3, dim=-1))
        if rotation is not None:
            queries, keys = rotate(queries, rotation).to(values.dtype), rotate(keys, rotation).to(values.dtype)
        return self._mix(attention, queries, keys, values, self.mask_LL)

    def _read(self, attention: CrossAttention, x_BLC: Tensor, text: "TextFeatures") -> Tensor:
        queries = attention.split(F.linear(x_BLC, attention.query.weight, attention.query_bias))
        bias = torch.cat((attention.key_bias, attention.value_bias))
        fused = F.linear(text.tokens_BTD, attention.key_value.weight, bias)
        keys, values = (attention.split(part) for part in fused.chunk(2, dim=-1))
        mask_B11T = additive(text.mask_BT[:, None, None, :].bool(), torch.float32)
        return self._mix(attention, queries, keys, values, mask_B11T)

    def _mix(
        self, attention: SelfAttention | CrossAttention, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """(B, N, L, d) tensors to (B, L, C), through the output projection."""
        kind = values.dtype
        if attention.log_scale is not None:
            temperature = attention.log_scale.float().clamp(max=MAX_LOG_SCALE).exp()
            queries = (F.normalize(queries.float(), dim=-1) * temperature).to(kind)
            keys = F.normalize(keys.float(), dim=-1).to(kind)
        if self.written_out:
            scores = (queries * attention.scale) @ keys.transpose(-2, -1) + mask.to(kind)
            mixed = scores.softmax(dim=-1) @ values
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, mask.to(kind), scale=attention.scale)
        merged: Tensor = attention.output(mixed.transpose(1, 2).flatten(2))
        return merged
