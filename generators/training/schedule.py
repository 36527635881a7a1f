"""Learning rates as a pure function of the step, so that a continued run needs no scheduler state."""

import math
from typing import Literal

from torch.optim import Optimizer


def lr_at(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup: int = 0,
    shape: Literal["cosine", "linear", "constant"] = "cosine",
    floor: float = 0.0,
    hold: float = 0.0,
) -> float:
    """The learning rate of step 0 <= step < steps: linear up to `peak` over `warmup` steps, then down to floor * peak.

    The first step already learns (peak / warmup), and the floor is reached in the last one. hold: share of the steps
    after the warm-up that stay at `peak` before it falls.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    passed = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    passed = max(0.0, (passed - hold) / (1 - hold))
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * passed)), "linear": 1 - passed, "constant": 1.0}[shape]
    return peak * (floor + (1 - floor) * fall)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the rate of every group, times the group's own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
