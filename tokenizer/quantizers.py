"""The quantizers that a tokenizer may have, by their configs: one line for each in the tables below.

A new one is a file with four things: a config (`quantizer.PyramidConfig`), a `MultiScaleQuantizer` of it, a config of
how it learns, and a trainer (`QuantizerTrainer`). If its tokens are neither codes nor bits, they are a kind of their
own in `tokens.py`, with a head in star/model/heads.py.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from star.tokenizer.bitwise import BitsConfig, BitsTrainer, BitwiseConfig, BitwiseQuantizer
from star.tokenizer.codebook import CodebookConfig, CodebookTrainer
from star.tokenizer.quantizer import MultiScaleQuantizer, Pyramid, Quantizer, QuantizerConfig
from star.tokenizer.tokens import Usage

AnyQuantizerConfig = QuantizerConfig | BitwiseConfig
AnyTrainerConfig = CodebookConfig | BitsConfig
QUANTIZERS: dict[type, type[MultiScaleQuantizer]] = {QuantizerConfig: Quantizer, BitwiseConfig: BitwiseQuantizer}
TRAINERS: dict[type, tuple[type, Any]] = {  # of a quantizer: how it learns, and what by
    Quantizer: (CodebookConfig, CodebookTrainer),
    BitwiseQuantizer: (BitsConfig, BitsTrainer),
}


class QuantizerTrainer(Protocol):
    """What a training asks of what a quantizer learns by, beside gradients; a module, whose buffers are saved."""

    moves: list[nn.Module]  # parts of the quantizer that gradients leave alone

    def update(self, quantizer: Any, pyramid: Pyramid) -> int | None:
        """After each step's encode; returns how many codes began anew, None where nothing does."""
        ...

    def usage(self) -> Usage:
        """Of lately."""
        ...

    def regulariser(self, quantizer: Any, latent_BEhw: Tensor, pyramid: Pyramid) -> Tensor | None:
        """A loss on the latent before quantisation, weighed; None where there is none."""
        ...


def make_quantizer(config: AnyQuantizerConfig) -> MultiScaleQuantizer:
    """A new quantizer."""
    return QUANTIZERS[type(config)](config)


def make_trainer(quantizer: MultiScaleQuantizer, config: AnyTrainerConfig, *, known: bool = False) -> Any:
    """What a quantizer learns by, a `QuantizerTrainer`. known: the quantizer's tokens mean something already."""
    return TRAINERS[type(quantizer)][1](quantizer, config, known=known)
