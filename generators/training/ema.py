"""Averaged weights, kept beside the learnt ones: of whole networks, and of networks in pieces (fsdp.py)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """mean = decay mean + (1 - decay) value, the first value as it is; torch's AveragedModel that never waits.

    Theirs asks a number on the device in every update whether it is the first, and so for all that the device has still
    to do. Here the host counts, and the number on the device follows, for the saved state. Networks stay where they
    are: both on the same device.
    """

    n_averaged: Tensor

    def __init__(self, network: nn.Module, decay: Callable[[], float], *, buffers: bool = False) -> None:
        """decay: asked in every update. buffers: they are averaged like parameters; otherwise they are copied."""
        super().__init__(network, use_buffers=buffers)
        self.decay = decay
        self._count: int | None = 0  # updates; None: as many as n_averaged says

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One update from a network of the same shape."""
        if self._count is None:
            self._count = int(self.n_averaged)
        parameters = zip(self.module.parameters(), model.parameters(), strict=True)
        buffers = zip(self.module.buffers(), model.buffers(), strict=True)
        pairs = [(here(mean), here(value), True) for mean, value in parameters]
        pairs += [(here(mean), here(value), self.use_buffers) for mean, value in buffers]
        averaged = [pair[:2] for pair in pairs if self._count and pair[2] and pair[0].is_floating_point()]
        copied = [pair[:2] for pair in pairs if not (self._count and pair[2] and pair[0].is_floating_point())]
        if averaged:
            torch._foreach_lerp_([mean for mean, _ in averaged], [value for _, value in averaged], 1 - self.decay())
        for mean, value in copied:
            mean.copy_(value)
        self.n_averaged += 1
        self._count += 1

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        """As torch's; the next update goes on from the number that was loaded."""
        self._count = None
        return super().load_state_dict(*args, **kwargs)  # type: ignore[arg-type]


def here(tensor: Tensor) -> Tensor:
    """This process's piece of a DTensor, sharing its memory; an undivided tensor itself, without its gradient."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
