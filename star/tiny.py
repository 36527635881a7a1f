"""A whole STAR generator of a few hundred thousand random parameters, for tests: the parts, and the sum of them."""

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from data.text import TextEncoder
from star.clip_tokenizer import SMALLEST_VOCABULARY, learn_tokenizer
from star.transformer import NextScaleTransformer, TransformerConfig
from tokenizer.autoencoder import AutoencoderConfig
from tokenizer.quantizer import QuantizerConfig
from tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig

SIZES = (1, 2, 3, 4)
VOCABULARY, CODE_WIDTH = 32, 4


def tiny_tokenizer(seed: int = 0) -> MultiScaleTokenizer:
    """8 x 8 pixels, 4 scales, 32 codes."""
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
                quantizer=QuantizerConfig(vocabulary=VOCABULARY, code_width=CODE_WIDTH, sizes=SIZES),
            )
        )
        with torch.no_grad():
            tokenizer.quantizer.codebook.weight.normal_()
    return tokenizer.eval().requires_grad_(False)


def tiny_text_encoder(seed: int = 0, max_tokens: int = 16, width: int = 32) -> TextEncoder:
    """A one-layer CLIP text tower over bytes and hardly a word."""
    bpe = learn_tokenizer(["a red circle above a blue square"], SMALLEST_VOCABULARY + 8, max_tokens)
    config = CLIPTextConfig(
        vocab_size=len(bpe),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=max_tokens,
        bos_token_id=bpe.bos_token_id,
        eos_token_id=bpe.eos_token_id,
        pad_token_id=bpe.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = CLIPTextModel(config)
        with torch.no_grad():  # transformers starts near zero, where all prompts look alike
            for parameter in tower.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(20)
    return TextEncoder(tower, bpe)


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
