"""How the next-scale transformer starts, before it has learnt anything."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from star.model.transformer import NextScaleTransformer


@torch.no_grad()
def init_weights(transformer: "NextScaleTransformer") -> None:
    """Everything random starts here.

    | parameter                                       | start                                              |
    |-------------------------------------------------|----------------------------------------------------|
    | linear layers, embeddings, positions            | normal, std 1/sqrt(3 C), cut at 2; biases 0        |
    | head                                            | the same times 0.02                                |
    | self-attention output, second layer of the MLP  | the same over sqrt(2 depth); not cross-attention   |
    | log_scale (temperature of the heads)            | log 4                                              |
    | AdaLN: gains; scales and shifts; head           | times 1e-5; 0.5; 0.5 (offsets from 1/sqrt(C))      |
    """
    std = math.sqrt(1 / (3 * transformer.config.width))
    for name, parameter in transformer.named_parameters():
        if name.endswith("log_scale"):
            parameter.fill_(math.log(4.0))
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            nn.init.trunc_normal_(parameter, std=std)
    transformer.head.weight.mul_(0.02)
    for block in transformer.each_block():
        for linear in (block.attention.output, block.mlp.down):
            linear.weight.div_(math.sqrt(2 * transformer.config.depth))
        if block.modulation is not None:
            block.modulation.weight[: 2 * transformer.config.width].mul_(1e-5)
            block.modulation.weight[2 * transformer.config.width :].mul_(0.5)
        if block.modulation_offset is not None:
            block.modulation_offset.normal_(std=transformer.config.width**-0.5)
            block.modulation_offset[:, :, :2].mul_(1e-5)
            block.modulation_offset[:, :, 2:].mul_(0.5)
    if transformer.head_modulation is not None:
        transformer.head_modulation.weight.mul_(0.5)
