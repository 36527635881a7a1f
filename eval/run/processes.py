"""The processes that share one evaluation: who this one is, what it draws on, and how it waits for the others.

One process needs nothing. Several are started by torchrun (torchrun --nproc_per_node 8 -m star.cli eval ...); they
exchange nothing but files, and meet between two stages of the work.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from star.generators.devices import usable

LONGEST_WAIT = timedelta(days=30)  # for the slowest process of a stage; torchrun itself ends all when one fails

Thing = TypeVar("Thing")


def _alone() -> None:
    """Nobody to wait for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among `world`; rank 0 writes what there is one of."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    wait: Callable[[], None] = _alone  # until every process has come here

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """Every world-th of them, from the rank on."""
        return things[self.rank :: self.world]


def join(device: str | None = None) -> Processes:
    """This process as torchrun, or nobody, started it; on a GPU of its own where there is one, or on `device`."""
    if device:
        usable(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available() or device == "cpu"
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    return Processes(
        rank=state.process_index,
        world=state.num_processes,
        device=device or str(state.device),
        wait=state.wait_for_everyone,
    )


def leave() -> None:
    """Ends the exchange between processes, where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
