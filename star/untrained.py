"""Networks of the released shapes with random weights: what a picture costs does not depend on what it shows.

`star bench untrained:d16-256` times one where the released weights are not at hand. The text encoder is a tiny one of
the right width, so the time of text is not that of the released tower.
"""

import re
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.data.unfilled import unfilled
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.tokenizer.quantizer import QuantizerConfig
from star.tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig

if TYPE_CHECKING:
    from star.generator import StarGenerator

SIZES = {
    64: (1, 2, 3, 4),
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
NAME = re.compile(r"d([1-9]\d?)-(\d+)")
TEXT_TOKENS, TEXT_WIDTH = 77, 1024
Network = TypeVar("Network", bound=nn.Module)


def config_of(name: str) -> TransformerConfig:
    """Depth 16, width 1024, 16 heads and pictures of 256 pixels for "d16-256". Raises InputError for other names."""
    match = NAME.fullmatch(name)
    if match is None or int(match[2]) not in SIZES:
        sides = ", ".join(map(str, SIZES))
        raise InputError(f"the shape is {name!r}, expected d16-256 or the like, of {sides} pixels: correct it")
    depth, sizes = int(match[1]), SIZES[int(match[2])]
    return TransformerConfig(
        sizes=sizes, depth=depth, width=64 * depth, heads=depth, text_width=TEXT_WIDTH, attention="auto"
    )


def untrained(name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> "StarGenerator":
    """A generator of the shape that `config_of` has for a name. Raises InputError for other names."""
    from star.generator import StarGenerator

    config = config_of(name)
    with unfilled():
        transformer = NextScaleTransformer(config)
        tokenizer = MultiScaleTokenizer(TokenizerConfig(quantizer=QuantizerConfig(sizes=config.sizes)))
    chosen = dtype or torch.float32
    return StarGenerator(
        _random(transformer, device, chosen),
        _random(tokenizer, device, torch.float32).draw_in(chosen),
        tiny_text_encoder(max_tokens=TEXT_TOKENS, width=TEXT_WIDTH).to(device=device, dtype=chosen),
    )


@torch.no_grad()
def _random(network: Network, device: str | torch.device, dtype: torch.dtype) -> Network:
    network.requires_grad_(False).to_empty(device=device)
    network.to(dtype)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.normal_(std=0.02)
    return network
