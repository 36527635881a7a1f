"""Randomness of one training step that belongs to pictures rather than to processes.

Drawn for the whole batch from (seed, step, purpose); each process takes its rows, so what a picture gets does not
depend on how many processes there are. What networks draw inside (noise, augmentation) comes from torch's own
generator, which the run seeds.

Z latent width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SampleRng:
    """Random numbers of one step for the process `rank` of `world`."""

    seed: int
    step: int
    rank: int = 0
    world: int = 1

    def latents(self, purpose: str, rows: int, width: int) -> Tensor:
        """latent_BZ of a standard normal distribution, B = `rows`."""
        return self._mine(torch.randn(self.world * rows, width, generator=self.generator(purpose)))

    def flags(self, purpose: str, rows: int, share: float) -> Tensor:
        """(rows,) bool, true with probability `share`."""
        return self._mine(torch.rand(self.world * rows, generator=self.generator(purpose)) < share)

    def chance(self, purpose: str) -> float:
        """One number from 0 to 1, the same in every process."""
        return float(torch.rand((), generator=self.generator(purpose)))

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh generator for one purpose of this step, the same in every process."""
        words = np.random.SeedSequence([self.seed, self.step, *purpose.encode()]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0]) >> 1)

    def _mine(self, every: Tensor) -> Tensor:
        rows = len(every) // self.world
        return every[self.rank * rows : (self.rank + 1) * rows]
