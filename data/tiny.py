"""A text encoder of a few thousand random parameters, for the test generators of every family."""

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from star.data.clip_tokenizer import SMALLEST_VOCABULARY, learn_tokenizer
from star.data.text import TextEncoder


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
