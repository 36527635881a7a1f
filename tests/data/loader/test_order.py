"""The order's laws: virtual workers are disjoint and complete, and everything is a function of its arguments."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from star.data.loader.order import Part, choose, deal, permutation, shuffled


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("shards", "virtual_workers"), [(1, 1), (7, 1), (7, 3), (8, 4), (3, 4), (1, 5), (4, 11)])
def test_virtual_workers_share_an_epoch_without_overlap_or_rest(
    shards: int, virtual_workers: int, shuffle: bool
) -> None:
    samples = [3 + shard for shard in range(shards)]
    everything = {(shard, place) for shard in range(shards) for place in range(samples[shard])}
    for epoch in range(3):
        seen: Counter[tuple[int, int]] = Counter()
        for index in range(virtual_workers):
            for part in deal(shards, virtual_workers, index, epoch, seed=5, shuffle=shuffle):
                places = range(part.first, samples[part.shard], part.step)
                assert part.length(samples[part.shard]) == len(places)
                seen.update((part.shard, place) for place in places)
        assert set(seen) == everything
        assert set(seen.values()) == {1}


def test_unshuffled_single_virtual_worker_reads_in_order_and_shuffled_epochs_differ() -> None:
    assert deal(4, 1, 0, 9, seed=0, shuffle=False) == [Part(shard, 0, 1) for shard in range(4)]
    orders = {tuple(deal(20, 1, 0, epoch, seed, True)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_no_virtual_worker_is_tied_to_one_shard() -> None:
    met = {part.shard for epoch in range(3) for part in deal(3, 3, 1, epoch, seed=0, shuffle=False)}
    assert met == {0, 1, 2}


@pytest.mark.parametrize("buffer", [1, 4, 30, 100])
def test_shuffling_keeps_every_item_once_and_looks_no_further_than_its_buffer(buffer: int) -> None:
    drawn = list(shuffled(range(30), buffer, Random(1)))
    assert sorted(drawn) == list(range(30))
    assert all(item <= position + buffer for position, item in enumerate(drawn))
    assert (drawn == list(range(30))) == (buffer == 1)
    assert drawn == list(shuffled(range(30), buffer, Random(1)))


def test_permutations_are_complete_and_differ_by_epoch_and_seed() -> None:
    orders = [permutation(50, epoch, seed, True) for epoch in range(2) for seed in range(2)]
    assert all(np.array_equal(np.sort(order), np.arange(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(permutation(5, 3, 1, False), np.arange(5))


def test_choice_is_a_function_of_seed_epoch_and_key_and_uses_all_options() -> None:
    options = ["a", "b", "c"]
    chosen = [choose(options, 0, epoch, f"key {number}") for epoch in range(10) for number in range(100)]
    assert chosen == [choose(options, 0, epoch, f"key {number}") for epoch in range(10) for number in range(100)]
    assert min(Counter(chosen).values()) > 270  # of 333 expected; 4 standard deviations are 60
    assert chosen[:100] != chosen[100:200]
    assert chosen[:100] != [choose(options, 1, 0, f"key {number}") for number in range(100)]
