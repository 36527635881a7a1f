"""Which of several kernels computes something, and why: what a dispatch hands back beside the numbers.

A package that is not there, was built for another torch, or fails on this device is no mistake of the user: its reason
is kept, and the next kernel is asked. Only what has given the right numbers once is ever chosen.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 0.05  # of a trial in half precision, whose numbers are of the size of 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel that was chosen for a use, such as "drawing", in a form, such as "packed"; and why it was."""

    use: str
    form: str
    kernel: str
    reason: str

    def __str__(self) -> str:
        """One line, for tables and logs."""
        return f"{self.use}: {self.form}, {self.kernel} ({self.reason})"


def announce(choice: Choice, *, asked: bool = False) -> None:
    """Logs a choice. asked: the user named a kernel and gets another, which is a warning."""
    logger.log(logging.WARNING if asked else logging.INFO, "attention %s", choice)


def trial(run: Callable[[], tuple[Tensor, Tensor]]) -> str:
    """Why a kernel is of no use here, "" if it is of use. run: its numbers for a small problem, and the right ones,
    float32.

    Runs in a thread of its own, for nothing of the caller's state goes there: its mode of gradients, autocast, or a
    block that is just being computed a second time. Waits for the device: not to be begun while a CUDA graph is
    recorded.
    """
    try:
        with ThreadPoolExecutor(1) as apart:
            found, right = apart.submit(run).result()
        if not torch.allclose(found, right, rtol=TOLERANCE, atol=TOLERANCE):
            return "gives other numbers than the formula"
    except Exception as error:  # whatever a compiled package raises on a device that it was not built for
        return f"fails here ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    return ""
