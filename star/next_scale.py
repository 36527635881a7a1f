"""What the generators of text and of classes share: a next-scale transformer and a tokenizer that fit each other."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from star.generators.protocol import Conditioning, SampleOptions
from star.model.kernels.choice import asked, choices
from star.model.transformer import NextScaleTransformer
from star.planning.flops import work
from star.tokenizer.tokenizer import MultiScaleTokenizer

if TYPE_CHECKING:
    from star.baseline import BaselineGenerator


class NextScaleGenerator(ABC):
    """A transformer and its tokenizer; where they compute and what size of picture they draw."""

    conditioning: Conditioning
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

    @abstractmethod
    def conditions(self, prompts: Sequence[str], options: SampleOptions) -> tuple[Any, Any]:
        """What the transformer is conditioned on: of the prompts, and of the one row that draws without."""

    def baseline(self) -> "BaselineGenerator":
        """The same networks, drawn with as the released code does: what speed is measured against. Takes them over."""
        from star.baseline import BaselineGenerator

        return BaselineGenerator(self)

    def flops(self, *, guided: bool) -> int:
        """Of the transformer's matrix products for one picture; guided: with an unconditional row beside."""
        config, text_tokens = self.transformer.config, getattr(getattr(self, "text_encoder", None), "max_tokens", 0)
        counted = work(replace(config, attention="scalewise"), config.schedule.lengths, text_tokens)
        return counted.forward * (2 if guided else 1)

    def kernels(self) -> tuple[str, ...]:
        """What attention runs on while drawing, and why: one line for each use."""
        config, dtype = self.transformer.config, self.transformer.head.weight.dtype
        found = choices(asked(config.attention), self.device, dtype, config.head_width)
        return tuple(str(one) for one in found if one.use in ("drawing", "text")[: 1 + config.cross_attention])
