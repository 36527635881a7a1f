"""The log of samples: what two processes were handed is every key exactly once per epoch, over a stop as well."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.loader.sample_log import logged

MakeShard = Callable[..., Path]
KEYS = {f"k{number:03d}" for number in range(40)}


@pytest.fixture
def shards(make_shard: MakeShard) -> tuple[str, ...]:
    """Four shards of ten samples."""
    return tuple(str(make_shard(f"s{number}.tar", range(10 * number, 10 * number + 10))) for number in range(4))


def times(folder: Path) -> Counter[tuple[int, str]]:
    """How often each (epoch, key) is in the logs of all processes."""
    lines = [json.loads(line) for path in folder.glob("samples-*.jsonl") for line in path.read_text().splitlines()]
    return Counter(pair for line in lines for pair in zip(line["epochs"], line["keys"], strict=True))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("stops", [(), (4,), (3, 7)])
def test_two_processes_log_every_key_once_per_epoch(
    shards: tuple[str, ...], tmp_path: Path, cache: bool, stops: tuple[int, ...]
) -> None:
    """Two samples a batch, so an epoch is ten batches of either process; each stop loses the two batches before it."""
    config = DataConfig(shards=shards, resolution=8, cache=cache, buffer=7)
    for rank in range(2):
        for start, end in zip((0, *(stop - 2 for stop in stops)), (*stops, 20), strict=True):
            batches = Pipeline(config, batch_size=2, rank=rank, world=2).batches(start)
            for _ in islice(logged(batches, tmp_path, rank, start), end - start):
                pass
            with (tmp_path / f"samples-{rank}.jsonl").open("a") as file:
                file.write('{"batch": 1')  # killed while it wrote
        log = tmp_path / f"samples-{rank}.jsonl"
        log.write_text(log.read_text().removesuffix('{"batch": 1'))
    assert times(tmp_path) == Counter({(epoch, key): 1 for epoch in range(2) for key in KEYS})


def test_a_folder_that_is_not_there_is_told(shards: tuple[str, ...], tmp_path: Path) -> None:
    batches = Pipeline(DataConfig(shards=shards, resolution=8), batch_size=2).batches()
    with pytest.raises(InputError, match=r"samples-0\.jsonl cannot be written"):
        next(logged(batches, tmp_path / "none", 0, 0))
