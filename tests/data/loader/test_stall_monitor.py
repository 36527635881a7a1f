"""A hungry device is told of once for each stretch of hunger; the speeds of a loader are measured, not guessed."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from star.data.errors import InputError
from star.data.images import decode
from star.data.loader.pipeline import DataConfig
from star.data.loader.stall_monitor import StallMonitor
from star.data.loader.throughput import loader_speeds, table


def told(watch: StallMonitor, waits: list[float]) -> list[int]:
    """The steps of one second each after which a line came."""
    return [step for step, wait in enumerate(waits) if watch.step(wait, 1.0)]


def test_waiting_is_told_once_a_stretch() -> None:
    hungry, fed = [0.43] * 30, [0.0] * 30
    assert told(StallMonitor(steps=10), [0.0, *hungry]) == [10]
    assert told(StallMonitor(steps=10), [0.0, *fed, *hungry, *fed, *hungry]) == [36, 96]
    assert told(StallMonitor(steps=10), [0.0, *([0.24] * 100)]) == []
    assert told(StallMonitor(steps=10, share=0.2), [0.0, *([0.24] * 100)]) == [10]


def test_the_line_names_the_share_and_the_ways_out() -> None:
    watch = StallMonitor(steps=50)
    lines = [watch.step(0.43, 1.0) for _ in range(51)]
    assert lines[:-1] == [None] * 50
    assert lines[-1] == (
        "the device waits for data: 43 % of the last 50 steps was waiting for pictures; more workers, or "
        "`star data encode`, may help"
    )
    assert watch.waiting == pytest.approx(0.43)


def test_the_start_of_the_workers_is_no_stall() -> None:
    assert told(StallMonitor(steps=5), [1000.0] + [0.1] * 20) == []


def test_impossible_watches_are_refused() -> None:
    for options in ({"share": 0.0}, {"share": 1.0}, {"steps": 0}):
        with pytest.raises(InputError, match="cannot be watched"):
            StallMonitor(**options)


def test_a_slow_reader_is_measured_slow(make_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shard = str(make_shard("a.tar", range(8)))
    config = DataConfig(shards=(shard,), resolution=8)

    def slowly(data: bytes) -> Image.Image:
        time.sleep(0.005)
        return decode(data)

    monkeypatch.setattr("star.data.loader.virtual_workers.decode", slowly)
    (slow,) = loader_speeds(config, 4, [0], seconds=0.1)
    assert slow.workers == 0
    assert 0 < slow.per_second < 200
    assert slow.first_batch > 0.02


def test_tables_are_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
