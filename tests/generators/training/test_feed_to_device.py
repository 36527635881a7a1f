"""Batches on their way to a GPU: in page-locked memory, copied while the host goes on; and MFU in every log line."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from star.data.loader.batch import Batch, to_device
from star.generators.training.data_feed import Feed
from star.generators.training.throughput import Throughput


def batch() -> Batch:
    return Batch(
        image_B3HW=torch.rand(2, 3, 4, 4),
        prompts=["a", "b"],
        keys=["0", "1"],
        captions=[("a",), ("b",)],
        info=[{}, {}],
        epochs=[0, 0],
        extra={"codes_L": torch.arange(6).view(2, 3)},
    )


def fed(device: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Batch, list[int]]:
    """The first batch of a feed of such a run, and which of its tensors were pinned, by their sizes."""
    locked: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        locked.append(tensor.numel())
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    feed: Any = Feed.__new__(Feed)
    feed.config = SimpleNamespace(log_samples=False)
    run: Any = SimpleNamespace(device=torch.device(device), feed=lambda batches: batches, first_batch=0)
    pipeline: Any = SimpleNamespace(batches=lambda start: iter([batch()]))
    return next(feed.batches(run, pipeline)), locked


def test_batches_for_a_gpu_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    found, locked = fed("cuda", monkeypatch)
    assert locked == [6, 96]
    assert found.prompts == ["a", "b"]
    assert torch.equal(found.extra["codes_L"], batch().extra["codes_L"])


def test_batches_for_a_cpu_are_left_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fed("cpu", monkeypatch)[1] == []


@pytest.mark.parametrize("pinned", [True, False])
def test_only_pinned_memory_is_copied_without_waiting(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        asked.append(non_blocking)
        return tensor

    monkeypatch.setattr(Tensor, "is_pinned", lambda _tensor: pinned)
    monkeypatch.setattr(Tensor, "to", to)
    to_device(torch.zeros(2), torch.device("cuda"))
    assert asked == [pinned]


def test_utilisation_is_logged_against_a_measured_ceiling_where_none_is_stated() -> None:
    calls: list[int] = []

    def ceiling() -> float:
        calls.append(1)
        return 2e12

    measured = Throughput(world=2, ceiling=ceiling)
    assert "utilisation" not in measured.line(10.0)
    assert not calls, "nothing to hold against it"
    measured.flops_per_image = 1e11
    assert [measured.line(10.0)["utilisation"] for _ in range(2)] == [0.25, 0.25]
    assert len(calls) == 1
    stated = Throughput(4.0, ceiling=ceiling)
    stated.flops_per_image = 1e11
    assert stated.line(10.0)["utilisation"] == 0.25
    assert len(calls) == 1


@pytest.mark.gpu
def test_a_pinned_batch_reaches_the_gpu() -> None:
    found = batch().pinned()
    assert found.image_B3HW.is_pinned()
    assert found.image_B3HW[1:].is_pinned()
    moved = to_device(found.image_B3HW, torch.device("cuda"))
    torch.cuda.synchronize()
    assert torch.equal(moved.cpu(), found.image_B3HW)
