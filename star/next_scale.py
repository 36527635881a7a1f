"""What the generators of text and of classes share: a next-scale transformer and a tokenizer that fit each other."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.protocol import Conditioning, Generator, SampleOptions
from star.model.kernels.choice import asked, choices
from star.model.transformer import NextScaleTransformer
from star.planning.flops import work
from star.sampling.graphs import CudaRecorder, GraphMode, Graphs
from star.sampling.programs import decode_recorded
from star.tokenizer.tokenizer import MultiScaleTokenizer

if TYPE_CHECKING:
    from star.baseline import BaselineGenerator


class NextScaleGenerator(ABC):
    """A transformer and its tokenizer; where they compute and what size of picture they draw.

    graphs: "auto" records passes on a GPU and replays them (star/sampling/graphs.py), "off" never does.
    """

    conditioning: Conditioning
    transformer: NextScaleTransformer
    tokenizer: MultiScaleTokenizer
    graphs: GraphMode = "auto"
    _recorded: Graphs | None = None

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.tokenizer.resolution, self.tokenizer.resolution)

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self.transformer.head.weight.device

    def recorded(self) -> Graphs | None:
        """Where passes are recorded; None where they are not. Forgets them once the networks were changed or moved."""
        device = self.device
        if self.graphs == "off" or (device.type != "cuda" and self._recorded is None):
            return None
        if self._recorded is None:
            self._recorded = Graphs(CudaRecorder(device))
        self._recorded.check((self.transformer, self.tokenizer))
        return self._recorded

    def to_pixels(self, latent_BEhw: Tensor) -> Tensor:
        """pixels_B3HW, uint8, on the CPU."""
        graphs = self.recorded()
        recorded = None if graphs is None else partial(decode_recorded, graphs, self.tokenizer)
        return self.tokenizer.latent_to_pixels(latent_BEhw, recorded)

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


def set_graphs(generator: Generator, mode: GraphMode) -> Generator:
    """The generator with `graphs` set, which means nothing to families of other kinds.

    Raises InputError for what is no mode.
    """
    if mode not in get_args(GraphMode):
        raise InputError(f"graphs is {mode!r}, expected one of {', '.join(get_args(GraphMode))}: choose one")
    if isinstance(generator, NextScaleGenerator):
        generator.graphs = mode
    return generator
