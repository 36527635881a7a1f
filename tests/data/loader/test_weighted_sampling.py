"""Several sources: each has its share, its own epochs, and its place in a resumed run."""

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.loader.weighted_sampling import BLOCK, WeightedSampling, shares

MakeShard = Callable[..., Path]


@pytest.fixture
def sources(make_shard: MakeShard) -> tuple[tuple[tuple[str, ...], float], ...]:
    """Two shards of 20 samples, k000 to k039, weigh 3; one of 10, k100 to k109, weighs 1."""
    large = tuple(str(make_shard(f"large{n}.tar", range(20 * n, 20 * n + 20))) for n in range(2))
    return ((large, 3.0), ((str(make_shard("small.tar", range(100, 110))),), 1.0))


def test_shares_add_up_and_follow_the_weights() -> None:
    assert shares([1]) == [BLOCK]
    assert shares([3, 1]) == [768, 256]
    assert sum(shares([1, 1, 1])) == BLOCK
    assert shares([0.7, 0.2, 0.1]) == [717, 205, 102]
    with pytest.raises(InputError, match="less than one sample in 1,024"):
        shares([10_000, 1])


def test_what_came_before_a_position_is_what_was_dealt_before_it() -> None:
    sampling = WeightedSampling([5, 2, 1], "seed")
    dealt: Counter[int] = Counter()
    for position in range(2 * BLOCK + 100):
        if position % 97 == 0:
            assert sampling.before(position) == [dealt[source] for source in range(3)]
        dealt[sampling.source(position)] += 1
    assert [sampling.source(p) for p in range(BLOCK)] != [sampling.source(p) for p in range(BLOCK, 2 * BLOCK)]


@pytest.mark.parametrize("cache", [False, True])
def test_each_source_has_its_share_and_whole_epochs(sources: Any, cache: bool) -> None:
    pipeline = Pipeline(DataConfig(sources=sources, resolution=8, cache=cache), batch_size=8)
    small: list[tuple[str, int]] = []
    large: list[tuple[str, int]] = []
    for batch in islice(pipeline.batches(), 64):
        for key, epoch in zip(batch.keys, batch.epochs, strict=True):
            (small if key >= "k100" else large).append((key, epoch))
    # 512 draws without replacement from a block of 1,024: standard deviation 6.9
    assert abs(len(small) - 128) < 30
    for met, number in ((small, 10), (large, 40)):
        for epoch in range(met[-1][1]):
            assert len({key for key, of in met if of == epoch}) == sum(of == epoch for _, of in met) == number


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_a_mixed_run_resumes_where_it_stopped(sources: Any, cache: bool, world: int) -> None:
    config = DataConfig(sources=sources, resolution=8, cache=cache, buffer=7)
    pipeline = Pipeline(config, batch_size=8, rank=world - 1, world=world)
    unbroken = [(batch.keys, batch.prompts, batch.epochs) for batch in islice(pipeline.batches(), 30)]
    for start in (1, 9, 29):
        resumed = next(pipeline.batches(start))
        assert (resumed.keys, resumed.prompts, resumed.epochs) == unbroken[start]


def test_one_pass_shows_all_sources(sources: Any) -> None:
    pipeline = Pipeline(DataConfig(sources=sources, resolution=8), batch_size=8)
    assert Counter(key for batch in pipeline.one_pass() for key in batch.keys) == Counter(
        f"k{number:03d}" for number in (*range(40), *range(100, 110))
    )


def test_sources_that_contradict_each_other_are_refused(sources: Any) -> None:
    (large, _), small = sources
    with pytest.raises(InputError, match="is in two of the sources"):
        Pipeline(DataConfig(sources=((large, 1), (large[:1], 1))), batch_size=1)
    with pytest.raises(InputError, match="a weight of -1"):
        DataConfig(sources=((large, -1), small))
    with pytest.raises(InputError, match="Both shards and sources"):
        DataConfig(shards=large, sources=sources)
