"""How the parts of a training are computed: as they always were, to the bit, or in forms that a CPU does faster.

    with faster_forms(config.forms == "fast"):
        ...                                     # filters are products of matrices, variances need no running mean

Both give the same numbers but for rounding, and derivatives of every order; tests/generators/gan/test_forms.py holds
them to it. What a form is chosen for is decided where it is computed, when it is computed; a backward pass follows its
forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor

_FAST: ContextVar[bool] = ContextVar("fast", default=False)


@contextmanager
def faster_forms(on: bool = True) -> Iterator[None]:
    """Whether the forms that a CPU does faster are taken within this block, in this thread."""
    token = _FAST.set(on)
    try:
        yield
    finally:
        _FAST.reset(token)


def fast() -> bool:
    """Whether the faster forms are to be taken here."""
    return _FAST.get()


@lru_cache(maxsize=256)
def _taps_matrix(taps: tuple[float, ...], size: int, up: int, down: int, before: int, after: int) -> Tensor:
    """(size after, size) float32: zeros inserted, padding, a true convolution with the taps, and thinning, in one."""
    padded = before + size * up + after
    reach = len(taps)
    rows = range(0, padded - reach + 1, down)
    matrix = torch.zeros(len(rows), size)
    for row, start in enumerate(rows):
        for tap, weight in enumerate(reversed(taps)):  # a true convolution turns the taps round
            place = start + tap - before
            if 0 <= place < size * up and place % up == 0:
                matrix[row, place // up] += weight
    return matrix


def filter_by_products(
    x_BCHW: Tensor, taps: tuple[float, ...], *, up: int, down: int, pad: tuple[int, int], gain: float
) -> Tensor:
    """What `layers.fir_filter` gives for the outer product of `taps` with itself, as one product of matrices an axis.

    A convolution of one channel by itself leaves a CPU's multipliers idle; a product of the whole map with a banded
    matrix counts zeros too, and is faster for all that up to a hundred pixels.
    """
    height, width = x_BCHW.shape[2:]

    def matrix(size: int) -> Tensor:
        return (gain**0.5 * _taps_matrix(taps, size, up, down, *pad)).to(x_BCHW)

    return matrix(height) @ (x_BCHW @ matrix(width).T)
