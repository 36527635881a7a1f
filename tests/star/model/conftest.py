"""Flash kernels where there are none: the stand-in for flash-attn in place of the package."""

import sys
from collections.abc import Iterator

import pytest
import torch

from star.model.kernels import flash
from star.model.kernels.choice import choose
from tests.star.model.flash_double import FlashDouble


def forget() -> None:
    """What was chosen and tried before."""
    choose.cache_clear()
    flash._tried.cache_clear()
    flash.WHOLE_ROWS.clear()
    flash.PACKED_ROWS.clear()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Flash kernels are asked for on the CPU and in float32, too; no package is there."""
    monkeypatch.setattr(flash, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(flash, "DTYPES", (*flash.DTYPES, torch.float32))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    forget()
    yield monkeypatch
    forget()


@pytest.fixture
def double(allowed: pytest.MonkeyPatch) -> FlashDouble:
    """In place of the package."""
    found = FlashDouble()
    allowed.setitem(sys.modules, "flash_attn", found)
    return found
