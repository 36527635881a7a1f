"""What the numbers of a training config may be, by their names, whichever trainer they are for.

Told before anything is loaded: a rate of 1e30 or NaN ruins a run in its first step, and says so only at its first log.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from star.data.errors import InputError

SHARE = (0.0, 1.0)
DECAY = (0.0, math.nextafter(1.0, 0.0))
RATE = (0.0, 10.0)  # AdamW and Muon move each weight by about so much a step; no network bears a tenth of it
NUMBER = (0.0, 1e9)
# By the last part of the dotted name: smallest and largest, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    "lr": RATE,
    "learning_rate": RATE,
    "lr_discriminator": RATE,
    "lr_projection": (0.0, 1e3),  # of lr, like the next
    "matrix_lr": (0.0, 1e3),
    "lr_floor": SHARE,
    "lr_hold": SHARE,
    "lr_steps": NUMBER,
    "lr_decay_from": NUMBER,
    "warmup": NUMBER,
    "weight_decay": (0.0, 10.0),
    "betas": DECAY,
    "beta2": DECAY,
    "ema": DECAY,
    "smoothing": DECAY,
    "cut": DECAY,
    "guidance": (0.0, 1e4),
    "mismatch": (0.0, 1e4),
    "consistency": (0.0, 1e4),
    "reconstruction": (0.0, 1e6),
    "perceptual_weight": (0.0, 1e6),
    "adversary_weight": (0.0, 1e6),
    "align_weight": (0.0, 1e6),
    "tag_weight": (0.0, 1e6),
    "scale_power": (-10.0, 10.0),
    "workers": (0.0, 1024.0),
    "lanes": (0.0, 2.0**20),
    "validation_pictures": (0.0, 1e9),
    "batch_size": (1.0, 2.0**20),
    "accumulate": (1.0, 2.0**20),
    "seed": (0.0, 2.0**32 - 1),
}


def check(values: Mapping[str, Any], *, ranged: bool = True) -> None:
    """values: a training config as plain values (star.generators.config.to_dict). ranged: False looks for NaN and inf
    alone.

    Raises InputError for a number that is not finite, wherever it is, and for one out of its range.
    """
    _check(values, "", "", RANGES if ranged else {})


def _check(value: Any, name: str, leaf: str, ranges: Mapping[str, tuple[float, float]]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(item, f"{name}.{key}" if name else str(key), str(key), ranges)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _check(item, name, leaf, ranges)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {value}, expected a finite number: correct it")
        low, high = ranges.get(leaf, (-math.inf, math.inf))
        if not low <= value <= high:
            raise InputError(f"{name} is {value:g}, expected a number from {low:g} to {high:g}: correct it")
