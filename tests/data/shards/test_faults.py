"""Every fault that shards can have, all at once: the run goes on with what is left, and the report names each."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from star.data.loader import slow_shards
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.faults import Fault
from star.data.shards.tar import Group, read_shard

MakeShard = Callable[..., Path]
PER_SHARD = 6


@pytest.fixture
def folder(make_shard: MakeShard, picture: Callable[..., bytes], tmp_path: Path) -> Path:
    """Nine shards of six samples, k000 to k053, of which only the last two are sound; s8 is to be served slowly."""
    for number in range(9):
        first = PER_SHARD * number
        change: dict[str, bytes | None] = {}
        if number == 1:
            change = {f"k{first + 2:03d}.png": b"\x89PNG broken"}
        if number == 2:
            change = {f"k{first + 1:03d}.json": None}
        mode = "w:gz" if number == 8 else "w"
        make_shard(f"s{number}.tar", range(first, first + PER_SHARD) if number != 4 else (), change, mode)
    (tmp_path / "s0.tar").write_bytes((tmp_path / "s0.tar").read_bytes()[: 7 * 1024])  # in the fourth sample
    make_shard("s3.tar", [18, 19, 20, 21, 22, 23, 19])
    (tmp_path / "s5.tar").write_bytes(b"")
    (tmp_path / "s6.tar").unlink()
    return tmp_path


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """s8 hesitates at its second sample, for longer than is thought slow."""

    def reader(shard: str, faults: list[Fault]) -> Iterator[Group]:
        for number, group in enumerate(read_shard(shard, faults)):
            if number == 1 and shard.endswith("s8.tar"):
                time.sleep(0.06)
            yield group

    monkeypatch.setattr(slow_shards, "SLOW", 0.05)
    monkeypatch.setattr("star.data.loader.positions.read_shard", reader)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("lanes", [0, 4])
def test_the_run_goes_on_and_the_report_names_each_fault(folder: Path, lanes: int) -> None:
    config = DataConfig(shards=(str(folder / "s{0..8}.tar"),), resolution=8, lanes=lanes, buffer=8)
    ranks = [Pipeline(config, batch_size=4, rank=rank, world=2) for rank in range(2)]
    seen = [key for rank in ranks for batch in islice(rank.batches(), 16) for key in batch.keys]

    lost = {"k008", "k013", *(f"k{n:03d}" for n in (*range(24, 42),))}
    cut = {f"k{n:03d}" for n in range(PER_SHARD)}  # of which the first three are whole
    sound = {f"k{n:03d}" for n in range(54)} - lost - cut
    assert sound <= set(seen) <= sound | {"k000", "k001", "k002"}

    named = {(Path(fault.shard).name, fault.reason, fault.key) for rank in ranks for fault in rank.report.named}
    reasons = {(shard, reason) for shard, reason, _ in named if shard != "s0.tar"}
    assert {reason for shard, reason, _ in named if shard == "s0.tar"} >= {"truncated or damaged tar"}
    assert reasons == {
        ("s1.tar", "broken picture"),
        ("s2.tar", "missing caption"),
        ("s3.tar", "duplicate key"),
        ("s4.tar", "empty shard"),
        ("s5.tar", "truncated or damaged tar"),
        ("s6.tar", "cannot be opened"),
        ("s8.tar", "slow shard"),
    }
    keys = {shard: key for shard, _, key in named if key}
    assert keys.pop("s0.tar", "k003") == "k003"  # its picture is whole, its caption was cut off
    assert keys == {"s1.tar": "k008", "s2.tar": "k013", "s3.tar": "k019"}
    texts = "\n".join(rank.report.text() for rank in ranks)
    for number in (0, 1, 2, 3, 4, 5, 6, 8):
        assert f"s{number}.tar: " in texts
    assert "s7.tar" not in texts


@pytest.mark.usefixtures("slow")
def test_a_slow_shard_is_named_but_not_counted_as_lost(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(DataConfig(shards=(str(folder / "s{7..8}.tar"),), resolution=8), batch_size=4)
    assert sum(len(batch) for batch in pipeline.one_pass()) == 2 * PER_SHARD
    assert pipeline.report.total == 0
    assert "nothing was skipped" in pipeline.report.text()
    assert "s8.tar: 1 x slow shard" in pipeline.report.text()
    assert "noticed" in caplog.text
