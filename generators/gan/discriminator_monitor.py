"""When a discriminator has saturated: it makes no more mistakes, and the generator gets no useful gradient."""

import torch
from torch import Tensor, nn

from star.data.errors import DivergenceError


class DiscriminatorMonitor(nn.Module):
    """Counts steps in a row without one mistake; the count is a buffer, so that a run resumes with it."""

    streak: Tensor

    def __init__(self, limit: int) -> None:
        """limit: steps after which `check` raises; 0: never."""
        super().__init__()
        self.limit = limit
        self.register_buffer("streak", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, mistakes: Tensor) -> None:
        """mistakes: how many pictures of one step the discriminator took for what they are not; never waits."""
        self.streak.copy_(torch.where(mistakes > 0, torch.zeros_like(self.streak), self.streak + 1))

    def check(self, step: int) -> None:
        """Raises DivergenceError where the limit is reached; step: finished steps, for the message."""
        if self.limit and int(self.streak) >= self.limit:
            raise DivergenceError(
                f"the discriminator has made no mistake for {int(self.streak)} steps, at step {step}: it has won, and "
                "the generator learns no more; give a lower lr_discriminator, a larger r1.weight or augmentation, or "
                "saturated_after=0 to go on all the same"
            )
