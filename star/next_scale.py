"""What the generators of text and of classes share: a next-scale transformer and a tokenizer that fit each other."""

import torch

from star.model.transformer import NextScaleTransformer
from star.tokenizer.tokenizer import MultiScaleTokenizer


class NextScaleGenerator:
    """A transformer and its tokenizer; where they compute and what size of picture they draw."""

    transformer: NextScaleTransformer
    tokenizer: MultiScaleTokenizer

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.tokenizer.resolution, self.tokenizer.resolution)

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self.transformer.head.weight.device
