"""Bad samples and shards cost themselves only: counted once, named, logged at a falling rate, never an endless loop."""

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.loader.report import SkipReport
from star.data.shards.faults import Fault

MakeShard = Callable[..., Path]
KEYS = {f"k{number:03d}" for number in range(35)}


@pytest.fixture
def shards(make_shard: MakeShard) -> tuple[str, ...]:
    """Five shards of seven samples, k000 to k034."""
    return tuple(str(make_shard(f"s{number}.tar", range(7 * number, 7 * number + 7))) for number in range(5))


def keys_of_epoch(batches: Iterator[Batch], epoch: int) -> set[str]:
    keys: set[str] = set()
    for batch in batches:
        keys.update(key for key, of in zip(batch.keys, batch.epochs, strict=True) if of == epoch)
        if batch.epochs[-1] > epoch:
            break
    return keys


FAULTS: dict[str, bytes | None] = {
    "k000.png": b"broken",
    "k006.json": None,
    "k007.json": b'{"caption": ""}',
    "k012.png": None,
    "k034.json": b"{",
}
REASONS = {
    "k000": "broken picture",
    "k006": "missing caption",
    "k007": "empty caption",
    "k012": "missing picture",
    "k034": "broken json",
}


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_faults_cost_themselves_only_and_are_named(make_shard: MakeShard, cache: bool, mode: str) -> None:
    paths = tuple(str(make_shard(f"s{n}.tar", range(7 * n, 7 * n + 7), FAULTS, mode)) for n in range(5))
    config = DataConfig(shards=paths, resolution=8, cache=cache)
    pipeline = Pipeline(config, batch_size=4)
    expected = KEYS - REASONS.keys()
    for epoch in range(2):
        assert keys_of_epoch(pipeline.batches(), epoch) == expected
    passed = [key for batch in pipeline.one_pass() for key in batch.keys]
    assert sorted(passed) == sorted(expected)
    assert {fault.key: fault.reason for fault in pipeline.report.named} == REASONS
    assert pipeline.report.counts[paths[0]] == {"broken picture": 1, "missing caption": 1}
    assert pipeline.report.total == 5  # each once, however often it was met
    unbroken = list(islice(Pipeline(config, batch_size=4).batches(), 20))
    for start in (1, 8, 19):
        resumed = next(pipeline.batches(start))
        assert resumed.keys == unbroken[start].keys
        assert torch.equal(resumed.image_B3HW, unbroken[start].image_B3HW)


def test_an_unusable_picture_is_replaced_by_the_next_usable_one(make_shard: MakeShard) -> None:
    broken = {f"k00{number}.png": b"broken" for number in (1, 3, 4, 7)}
    shard = str(make_shard("s.tar", range(8), broken))
    pipeline = Pipeline(DataConfig(shards=(shard,), resolution=8, shuffle=False), batch_size=4)
    first, second = islice(pipeline.batches(), 2)
    assert first.keys == ["k000", "k002", "k002", "k005"]
    assert second.keys == ["k005", "k005", "k006", "k000"]
    assert second.epochs == [0, 0, 0, 1]


def test_a_vanished_shard_costs_itself_only(shards: tuple[str, ...], tmp_path: Path) -> None:
    for world in (1, 5, 11):
        pipelines = [
            Pipeline(DataConfig(shards=shards, resolution=8, shuffle=False), batch_size=2, rank=r, world=world)
            for r in range(world)
        ]
        (tmp_path / "s1.tar").rename(tmp_path / "gone")
        seen = {key for pipeline in pipelines for batch in islice(pipeline.batches(), 40) for key in batch.keys}
        assert seen == KEYS - {f"k{number:03d}" for number in range(7, 14)}
        named = {fault for pipeline in pipelines for fault in pipeline.report.named}
        assert {(fault.shard, fault.reason) for fault in named} == {(shards[1], "cannot be opened")}
        (tmp_path / "gone").rename(tmp_path / "s1.tar")


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("kind", ["broken pictures", "empty shards", "gone"])
def test_data_without_one_usable_sample_is_an_error_not_an_endless_loop(
    make_shard: MakeShard, kind: str, cache: bool
) -> None:
    numbers = range(6) if kind == "broken pictures" else range(0)
    paths = [make_shard(f"s{n}.tar", numbers, {f"k{number:03d}.png": b"" for number in numbers}) for n in range(2)]
    config = DataConfig(shards=tuple(map(str, paths)), resolution=8, cache=cache)
    pipelines = [Pipeline(config, batch_size=4), Pipeline(config, batch_size=4, rank=2, world=3)]
    if kind == "gone":
        for path in paths:
            path.unlink()
    for pipeline in pipelines:
        with pytest.raises(InputError, match="Not one sample of the 2 shards"):
            next(pipeline.batches())
    with pytest.raises(InputError, match="Not one sample"):
        list(pipelines[0].one_pass())


def test_one_usable_sample_among_many_is_enough(make_shard: MakeShard) -> None:
    bad = {f"k{number:03d}.png": b"" for number in range(1, 20)}
    paths = tuple(str(make_shard(f"s{n}.tar", range(10 * n, 10 * n + 10), bad)) for n in range(2))
    for rank in range(3):
        batch = next(Pipeline(DataConfig(shards=paths, resolution=8), batch_size=4, rank=rank, world=3).batches())
        assert set(batch.keys) == {"k000"}


def test_the_log_names_the_first_faults_and_then_grows_quiet(
    make_shard: MakeShard, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {f"k{number:03d}.png": b"" for number in range(60)}
    shard = str(make_shard("s.tar", range(64), broken))
    pipeline = Pipeline(DataConfig(shards=(shard,), resolution=8), batch_size=8)
    with caplog.at_level(logging.WARNING):
        assert [len(batch) for batch in pipeline.one_pass()] == [4]
    assert len(caplog.records) == 5 + 3  # 8, 16 and 32
    assert "k000 in" in caplog.text
    assert "32 for this reason so far" in caplog.text
    text = pipeline.report.text()
    assert "60 skipped" in text
    assert f"{shard}: 60 x broken picture" in text
    pipeline.report.add([Fault(shard, "broken picture", "k000", "again")])
    assert pipeline.report.total == 60


def test_an_empty_report_says_so() -> None:
    assert SkipReport().text() == "nothing was skipped"
    assert SkipReport().total == 0
