"""Whether a data set fits into memory is judged before it is decoded, and said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import star.data.loader.capacity
from star.data.loader.capacity import RECORD_BYTES, count_samples, decide, free_memory
from star.data.shards.faults import Fault
from star.data.shards.tar import Group

MakeShard = Callable[..., Path]


def test_few_shards_are_counted_and_many_judged_by_their_size(
    make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [str(make_shard(f"s{shard:02}.tar", range(10 * shard, 10 * shard + 10))) for shard in range(12)]
    assert count_samples(shards[:3]) == 30
    real = star.data.loader.capacity.index_shard
    read: list[str] = []

    def counted(shard: str, faults: list[Fault]) -> list[Group]:
        read.append(shard)
        return real(shard, faults)

    monkeypatch.setattr(star.data.loader.capacity, "index_shard", counted)
    assert count_samples(shards) == 120
    assert len(read) == 4
    missing = [*shards[:3], str(Path(shards[0]).with_name("s99.tar"))]
    assert count_samples(missing) == 30


def test_compressed_shards_are_judged_by_one_of_them(make_shard: MakeShard) -> None:
    shards = [str(make_shard(f"s{shard}.tar.gz", range(10), mode="w:gz")) for shard in range(6)]
    assert 57 <= count_samples(shards) <= 63  # type: ignore[operator]


def test_an_index_is_believed_of_shards_as_long_as_it_says(make_shard: MakeShard) -> None:
    first, second = (make_shard(f"s{shard}.tar", range(5)) for shard in range(2))
    entry = {"samples": 1000, "sha256": "", "bytes": first.stat().st_size}
    entries = {first.name: entry, second.name: {**entry, "bytes": 1}}
    (first.parent / "index.json").write_text(json.dumps({"format": 1, "shards": entries}))
    assert count_samples([str(first), str(second)]) == 1005
    (first.parent / "index.json").write_text("damaged")
    assert count_samples([str(first), str(second)]) == 10


def test_remote_shards_are_known_by_their_index_alone_and_no_command_is_run(
    make_shard: MakeShard, tmp_path: Path, server: str
) -> None:
    make_shard("s0.tar", range(5))
    assert count_samples([f"{server}/s0.tar"]) is None
    (tmp_path / "index.json").write_text(json.dumps({"shards": {"s0.tar": {"samples": 70}}}))
    assert count_samples([f"{server}/s0.tar"]) == 70
    assert count_samples([f"pipe:touch {tmp_path}/ran; cat {tmp_path}/s0.tar"]) is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("processes", "keep"), [(1, True), (2, False)])
def test_half_of_what_is_free_is_shared_by_the_processes(
    make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch, processes: int, keep: bool
) -> None:
    shard = str(make_shard("s.tar", range(10)))
    each = 2**30 // 10 - RECORD_BYTES
    monkeypatch.setattr(star.data.loader.capacity, "free_memory", lambda: 2 * 2**30)
    decision = decide([shard], each, processes=processes)
    assert decision.keep is keep
    assert "about 10 samples, 1.00 GiB decoded" in decision.reason
    assert decide([shard], each, limit_gib=1.0, processes=8).keep  # what is stated counts for each process
    assert not decide([shard], each, limit_gib=0.99).keep
    assert not decide(["http://nobody.invalid/s.tar"], 1).keep


def test_a_control_group_limits_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(star.data.loader.capacity, "_GROUP", tmp_path)
    everything = free_memory()
    assert everything > 2**20
    files: dict[str, Any] = {"memory.max": 5000, "memory.current": 3000, "memory.stat": "anon 7\ninactive_file 500\n"}
    for name, value in files.items():
        (tmp_path / name).write_text(str(value))
    assert free_memory() == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 2**20
