"""Aspect-ratio buckets: batches of one size, nothing lost or repeated, and a resume that finds the queues again."""

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.data.images import decode, pil_to_pixels, pixels_to_image, resize
from star.data.loader.aspect import nearest
from star.data.loader.pipeline import DataConfig, Pipeline

BUCKETS = ((8, 8), (8, 16), (16, 8))
SIZES = ((10, 10), (9, 20), (30, 14), (12, 11))  # of the pictures, in turn
PLACES = (0, 1, 2, 0)


def bucket(key: str) -> tuple[int, int]:
    return BUCKETS[PLACES[int(key[1:]) % 4]]


@pytest.fixture
def shards(make_shard: Callable[..., Path], picture: Callable[..., bytes]) -> tuple[str, ...]:
    """Three shards of 16 pictures of four aspects, k000 to k047; k005 is broken behind its header, k009 altogether."""
    paths = []
    for shard in range(3):
        numbers = range(16 * shard, 16 * shard + 16)
        change = {f"k{number:03d}.png": picture(number, SIZES[number % 4]) for number in numbers}
        if shard == 0:
            change |= {"k005.png": picture(5, SIZES[1])[:120], "k009.png": b"broken"}
        paths.append(str(make_shard(f"s{shard}.tar", numbers, change, "w:gz" if shard == 2 else "w")))
    return tuple(paths)


def test_a_picture_goes_to_the_nearest_aspect_by_ratio() -> None:
    assert [nearest(size, BUCKETS) for size in SIZES] == list(PLACES)
    assert nearest((100, 142), BUCKETS) == 1  # just above the square root of two
    assert nearest((100, 141), BUCKETS) == 0


def test_every_batch_has_the_size_of_its_pictures_bucket(
    shards: tuple[str, ...], picture: Callable[..., bytes]
) -> None:
    pipeline = Pipeline(DataConfig(shards=shards, buckets=BUCKETS), batch_size=4)
    seen: Counter[str] = Counter()
    sizes = set()
    for batch in islice(pipeline.batches(), 30):
        (size,) = {bucket(key) for key in batch.keys}
        assert batch.image_B3HW.shape == (4, 3, *size)
        sizes.add(size)
        number = int(batch.keys[0][1:])
        expected = pixels_to_image(pil_to_pixels(resize(decode(picture(number, SIZES[number % 4])), size, "center")))
        assert torch.equal(batch.image_B3HW[0], expected)
        seen.update(key for key, epoch in zip(batch.keys, batch.epochs, strict=True) if epoch == 0)
    assert sizes == set(BUCKETS)
    usable = {f"k{number:03d}" for number in range(48)} - {"k005", "k009"}
    assert set(seen) == usable
    doubled = {key for key, times in seen.items() if times > 1}
    assert len(doubled) <= 1  # the one that took the place of k005, which only its decoding showed to be broken
    assert all(bucket(key) == bucket("k005") for key in doubled)
    assert {fault.key for fault in pipeline.report.named} == {"k005", "k009"}


def test_a_run_in_buckets_resumes_where_it_stopped(shards: tuple[str, ...]) -> None:
    for world in (1, 2):
        config = DataConfig(shards=shards, buckets=BUCKETS, buffer=10)
        pipeline = Pipeline(config, batch_size=4, rank=world - 1, world=world)
        unbroken = list(islice(pipeline.batches(), 24))
        for start in (1, 8, 23):
            resumed = next(Pipeline(config, batch_size=4, rank=world - 1, world=world).batches(start))
            assert (resumed.keys, resumed.prompts, resumed.epochs) == (
                unbroken[start].keys,
                unbroken[start].prompts,
                unbroken[start].epochs,
            )
            assert torch.equal(resumed.image_B3HW, unbroken[start].image_B3HW)


def test_one_pass_shows_all_in_batches_of_one_size(shards: tuple[str, ...]) -> None:
    batches = list(Pipeline(DataConfig(shards=shards, buckets=BUCKETS), batch_size=4).one_pass())
    assert sorted(key for batch in batches for key in batch.keys) == [
        f"k{number:03d}" for number in range(48) if number not in (5, 9)
    ]
    for batch in batches:
        assert {bucket(key) for key in batch.keys} == {tuple(batch.image_B3HW.shape[2:])}


def test_impossible_buckets_are_refused() -> None:
    with pytest.raises(InputError, match="8 x 8 and 16 x 16, which have one aspect"):
        DataConfig(shards=("a.tar",), buckets=((8, 8), (16, 16)))
    with pytest.raises(InputError, match="0 x 8"):
        DataConfig(shards=("a.tar",), buckets=((0, 8),))
    with pytest.raises(InputError, match="cannot be kept in memory"):
        DataConfig(shards=("a.tar",), buckets=BUCKETS, cache=True)
