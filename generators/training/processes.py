"""The processes of one training: networks among them, gradients, precision, randomness.

    processes = Processes(precision="bf16", sharding="none", accumulate=2, grad_clip=1.0, seed=0)
    model = processes.prepare(model)
    for _ in processes.micro_steps(model):
        with processes.autocast():
            loss = model(next(batches)).mean()
        processes.backward(loss)
    processes.clip(model.parameters())

A `Run` is one with a folder, a log and a state that survives a kill.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from star.generators.precision import allow_tf32

Network = TypeVar("Network", bound=nn.Module)


class Processes:
    """This process and its fellows, as accelerate or torchrun started them; one alone where nobody did."""

    def __init__(
        self,
        *,
        precision: Literal["no", "bf16"],
        sharding: Literal["none", "fsdp2"],
        accumulate: int,
        grad_clip: float,
        seed: int,
        **accelerate: Any,
    ) -> None:
        """precision, sharding, accumulate, grad_clip, seed: see RunConfig. accelerate: other options of Accelerator."""
        self._precision, self._sharding, self._accumulate = precision, sharding, accumulate
        self._grad_clip, self._seed = grad_clip, seed
        self.accelerator = Accelerator(**accelerate)
        self.device: torch.device = self.accelerator.device
        allow_tf32(self.device)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process

    @property
    def in_pieces(self) -> bool:
        """Whether networks lie in pieces over several processes."""
        return self._sharding == "fsdp2" and self.world > 1

    def prepare(self, *objects: Any) -> Any:
        """Networks (and optimisers) moved to the device and wrapped for the processes of this run by accelerate."""
        return self.accelerator.prepare(*objects)

    def distribute(self, network: nn.Module, blocks: Iterable[nn.Module] = (), *, learns: bool = True) -> Any:
        """A network on the device, as a copy (DDP) or in pieces (FSDP2, each of `blocks` gathered by itself).

        learns: False for one that only follows, such as averaged weights, whose copies exchange no gradients.
        """
        if self._sharding == "none":
            return self.prepare(network) if learns else network.to(self.device)
        from star.generators.training.fsdp import shard

        network.to(self.device)
        shard(network, blocks, self.device)
        return network

    def whole(self, network: Network, build: Callable[[], Network]) -> Network:
        """The network itself, or in the main process a whole copy of one that is in pieces.

        Every process must ask for it; what the others get is no use to them. build: makes one with any weights.
        """
        if self._sharding == "none" or self.world == 1:
            return network
        from star.generators.training.fsdp import whole_state

        state = whole_state(network)
        if not self.is_main:
            return network
        copy = build()
        copy.load_state_dict(state)
        return copy.to(self.device)

    def unwrap(self, module: nn.Module) -> Any:
        """The network itself, without the wrapper of `prepare`."""
        return self.accelerator.unwrap_model(module)

    def micro_steps(self, *modules: nn.Module) -> Iterator[int]:
        """The micro-batches of one optimiser step; gradients of `modules` are exchanged in the last one only."""
        last = self._accumulate - 1
        for micro in range(self._accumulate):
            with contextlib.ExitStack() as stack:
                for module in modules:
                    if self.in_pieces:
                        module.set_requires_gradient_sync(micro == last)  # type: ignore[operator]  # an FSDPModule
                    elif micro < last:
                        stack.enter_context(self.accelerator.no_sync(module))
                yield micro

    def autocast(self) -> torch.autocast:
        """bfloat16 where the config asks for it; needed around every forward pass and its loss.

        Networks in pieces use each weight once, and keeping a lowered copy of all of them would undo the cutting.
        """
        enabled, kept = self._precision == "bf16", self._sharding == "none"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=kept)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, a mean over its micro-batch; accumulated micro-batches weigh equally."""
        self.accelerator.backward(loss / self._accumulate)

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, in every one of them."""
        return self.accelerator.reduce(value, "mean") if self.world > 1 else value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of networks that were not given to `prepare`, averaged over all processes."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None = None) -> Tensor:
        """Scales gradients down to `limit`, if not given `grad_clip` (0: leaves them), and returns their norm before
        that, a scalar on the device."""
        limit = self._grad_clip if limit is None else limit
        norm = nn.utils.clip_grad_norm_(list(parameters), limit or math.inf)
        if self._sharding == "none":
            return norm
        from star.generators.training.fsdp import whole

        return whole(norm)

    def seed(self, *, rank: int, step: int) -> None:
        """Seeds Python, NumPy and torch from (seed, rank, step)."""
        words = np.random.SeedSequence([self._seed, rank, step]).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(words[1])  # noqa: NPY002  (for libraries that draw from it; ours use generators)
        torch.manual_seed(int(words[2]))

    def agreed(self, number: int) -> int:
        """The largest of a whole number over all processes, in every one of them."""
        if self.world == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.device)).max())
