"""Rows on disk: blocks are computed once, from the same pictures, by whoever comes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from star.eval.run.feature_cache import BLOCK, CacheJob, FeatureCache, count_blocks, fill, open_cache, span
from star.eval.run.processes import Processes

COUNT = 2 * BLOCK + 5
ALONE = Processes()


def opened(folder: Path, name: str = "judge-emoji", **fingerprint: Any) -> FeatureCache:
    return open_cache(folder, name, {"digest": "a", **fingerprint}, shape=(COUNT, 3), processes=ALONE)


class Network:
    """Rows that tell which block a row was computed in, and what was loaded for it."""

    def __init__(self) -> None:
        self.blocks: list[slice] = []
        self.loaded: list[int] = []

    def load(self, row: int) -> int:
        self.loaded.append(row)
        return 10 * row

    def compute(self, block: slice, loaded: list[int]) -> NDArray[np.float32]:
        self.blocks.append(block)
        rows = np.arange(block.start, block.stop)
        return np.stack([rows, np.array(loaded), np.full(len(rows), len(loaded))], 1).astype(np.float32)


def filled(rows: FeatureCache, network: Network, processes: Processes = ALONE) -> None:
    fill([CacheJob(rows, network.compute)], network.load, processes, title="test", unit="rows")


def test_every_row_is_computed_once_in_its_block(tmp_path: Path) -> None:
    network = Network()
    filled(opened(tmp_path), network)
    assert sorted(network.loaded) == list(range(COUNT))
    found = opened(tmp_path).read()
    assert found[:, 0].tolist() == list(range(COUNT))
    assert found[:, 1].tolist() == [10 * row for row in range(COUNT)]
    assert found[:, 2].tolist() == [BLOCK] * 2 * BLOCK + [5] * 5
    filled(opened(tmp_path), network)
    assert len(network.blocks) == 3, "what is done stays done"


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_blocks_and_never_split_one(tmp_path: Path, world: int) -> None:
    alone = Network()
    filled(opened(tmp_path / "alone"), alone)
    networks = [Network() for _ in range(world)]
    for rank, network in enumerate(networks):
        filled(opened(tmp_path / "shared"), network, Processes(rank=rank, world=world))
    assert sorted(row for network in networks for row in network.loaded) == list(range(COUNT))
    np.testing.assert_array_equal(opened(tmp_path / "shared").read(), opened(tmp_path / "alone").read())


def test_one_load_serves_all_networks_and_only_the_missing_blocks(tmp_path: Path) -> None:
    first, second = Network(), Network()
    rows, others = opened(tmp_path), opened(tmp_path, "clip-emoji")
    filled(rows, first)
    rows.forget(1)
    fill(
        [CacheJob(rows, first.compute), CacheJob(others, second.compute)],
        second.load,
        ALONE,
        title="test",
        unit="rows",
    )
    assert sorted(second.loaded) == list(range(COUNT))
    assert [block.start for block in first.blocks] == [0, BLOCK, 2 * BLOCK, BLOCK]
    assert len(second.blocks) == 3


def test_other_identities_lie_elsewhere(tmp_path: Path) -> None:
    filled(opened(tmp_path), Network())
    for rows in (opened(tmp_path, digest="b"), opened(tmp_path, size=[64, 64]), opened(tmp_path, "clip-emoji")):
        assert not any(rows.done(block) for block in range(count_blocks(COUNT)))
    assert opened(tmp_path).blocks_done == 3


def test_a_mapping_is_private(tmp_path: Path) -> None:
    filled(opened(tmp_path), Network())
    opened(tmp_path).read()[:] = 7
    assert opened(tmp_path).read()[1, 1] == 10
    with pytest.raises(ValueError, match=r"has shape \(5, 3\)"):
        opened(tmp_path).put(2, np.zeros((4, 3)))


def test_spans_cover_all_rows() -> None:
    assert [span(block, COUNT) for block in range(count_blocks(COUNT))] == [
        slice(0, BLOCK),
        slice(BLOCK, 2 * BLOCK),
        slice(2 * BLOCK, COUNT),
    ]
    assert count_blocks(BLOCK) == 1
