"""A whole STAR generator of a few hundred thousand random parameters, for tests: the parts, and the sum of them."""

import torch

from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.tokenizer.autoencoder import AutoencoderConfig
from star.tokenizer.bitwise import BitwiseConfig
from star.tokenizer.quantizer import Quantizer, QuantizerConfig
from star.tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig

SIZES = (1, 2, 3, 4)
VOCABULARY, CODE_WIDTH = 32, 4


def tiny_tokenizer(seed: int = 0, *, bits: bool = False) -> MultiScaleTokenizer:
    """8 x 8 pixels, 4 scales, 32 codes; or tokens of 4 bits."""
    quantizer = QuantizerConfig(vocabulary=VOCABULARY, code_width=CODE_WIDTH, sizes=SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = MultiScaleTokenizer(
            TokenizerConfig(
                autoencoder=AutoencoderConfig(
                    channels=8,
                    multipliers=(1, 2),
                    encoder_blocks=1,
                    decoder_blocks=1,
                    code_width=CODE_WIDTH,
                    norm_groups=4,
                ),
                quantizer=BitwiseConfig(bits=CODE_WIDTH, sizes=SIZES) if bits else quantizer,
            )
        )
        with torch.no_grad():
            if isinstance(tokenizer.quantizer, Quantizer):
                tokenizer.quantizer.codebook.weight.normal_()
    return tokenizer.eval().requires_grad_(False)


def tiny_transformer(seed: int = 0, *, sharpness: float = 50.0, **changes: object) -> NextScaleTransformer:
    """Two blocks of width 32 that fit the other two; `sharpness` makes up for the small start of the head."""
    settings = {
        "sizes": SIZES,
        "vocabulary": VOCABULARY,
        "code_width": CODE_WIDTH,
        "text_width": 32,
        "width": 32,
        "depth": 2,
        "heads": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = NextScaleTransformer(TransformerConfig(**settings | changes))  # type: ignore[arg-type]
        with torch.no_grad():
            transformer.head.weight.mul_(sharpness)
    return transformer.eval()
