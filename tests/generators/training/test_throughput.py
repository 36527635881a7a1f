"""The clocks of a run: waiting for data is told apart from computing, and utilisation from throughput."""

import itertools
from collections.abc import Iterator

import pytest

from star.generators.training import throughput as pace
from star.generators.training.throughput import Throughput


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_waiting_for_batches_is_a_share_of_the_time(clock: Clock) -> None:
    def slow() -> Iterator[int]:
        for number in itertools.count():
            clock.now += 1.0
            yield number

    ours = Throughput()
    batches = ours.feed(slow())
    for step in range(4):
        ours.begin()
        assert next(batches) == step
        clock.now += 3.0
        assert ours.end() is None
    assert ours.line(10.0) == {"data_wait": 0.25}
    clock.now += 5.0
    assert ours.line(10.0) == {"data_wait": 0.0}, "each line tells of its own stretch"


def test_a_data_stall_is_reported_once(clock: Clock) -> None:
    def slow() -> Iterator[int]:
        while True:
            clock.now += 1.0
            yield 0

    ours = Throughput()
    batches = ours.feed(slow())
    told = []
    for _ in range(60):
        ours.begin()
        next(batches)
        clock.now += 1.0
        told.append(ours.end())
    assert [line for line in told if line] == [
        "the device waits for data: 50 % of the last 50 steps was waiting for pictures; more workers, or `star data "
        "encode`, may help"
    ]


def test_batches_that_end_end(clock: Clock) -> None:
    assert list(Throughput().feed(iter([1, 2]))) == [1, 2]


def test_utilisation_is_told_where_both_sides_of_it_are_known(clock: Clock) -> None:
    ours = Throughput(peak_tflops=2.0, world=2)
    assert "utilisation" not in ours.line(100.0)
    ours.flops_per_image = 1e10
    assert ours.line(100.0) == {"data_wait": 0.0, "tflops": 1.0, "utilisation": 0.25}
    unstated = Throughput()
    unstated.flops_per_image = 1e10
    assert unstated.line(100.0) == {"data_wait": 0.0, "tflops": 1.0}
