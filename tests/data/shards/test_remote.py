"""Shards elsewhere: object stores through fsspec, web servers that stumble, and addresses that lead nowhere."""

import io
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
import torch

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards import remote
from star.data.shards.faults import Fault
from star.data.shards.listing import list_shards
from star.data.shards.remote import Opened, RetryingStream
from star.data.shards.tar import read_shard

MakeShard = Callable[..., Path]


@pytest.fixture
def bucket(make_shard: MakeShard) -> Iterator[str]:
    """Four shards of six samples in fsspec's store in memory."""
    store = fsspec.filesystem("memory")
    for number in range(4):
        store.pipe(
            f"/bucket/s{number}.tar", make_shard(f"s{number}.tar", range(6 * number, 6 * number + 6)).read_bytes()
        )
    store.pipe("/bucket/notes.txt", b"no shard")
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def test_a_store_gives_the_batches_of_the_files_it_holds(bucket: str, tmp_path: Path) -> None:
    options = {"resolution": 8, "buffer": 6}
    there = Pipeline(DataConfig(shards=(bucket,), **options), batch_size=4)  # type: ignore[arg-type]
    here = Pipeline(DataConfig(shards=(str(tmp_path),), **options), batch_size=4)  # type: ignore[arg-type]
    assert [Path(shard).name for shard in there.shards] == [f"s{number}.tar" for number in range(4)]
    for left, right in islice(zip(there.batches(), here.batches(), strict=True), 9):
        assert left.keys == right.keys
        assert torch.equal(left.image_B3HW, right.image_B3HW)
    assert next(there.batches(7)).keys == list(islice(here.batches(), 8))[7].keys


def test_folders_patterns_and_ranges_of_a_store_are_listed(bucket: str) -> None:
    every = [f"{bucket.replace('//', '///')}/s{number}.tar" for number in range(4)]
    named = [f"{bucket}/s{number}.tar" for number in range(2)]
    assert [shard.replace(":///", "://") for shard in list_shards([bucket])] == [
        shard.replace(":///", "://") for shard in every
    ]
    assert len(list_shards([f"{bucket}/s[12].tar"])) == 2
    assert list_shards([f"{bucket}/s{{0..1}}.tar"]) == named


def test_a_shard_that_vanished_from_a_store_costs_itself_only(bucket: str) -> None:
    pipeline = Pipeline(DataConfig(shards=(f"{bucket}/s{{0..5}}.tar",), resolution=8), batch_size=4)
    assert {key for batch in islice(pipeline.batches(), 12) for key in batch.keys} == {f"k{n:03d}" for n in range(24)}
    assert {(Path(fault.shard).name, fault.reason) for fault in pipeline.report.named} == {
        ("s4.tar", "cannot be opened"),
        ("s5.tar", "cannot be opened"),
    }


def test_a_folder_on_a_web_server_is_listed_by_its_index(make_shard: MakeShard, server: str, tmp_path: Path) -> None:
    make_shard("a.tar", range(3))
    with pytest.raises(InputError, match=r"cannot be listed \(OSError: HTTPError.*404"):
        list_shards([f"{server}/"])
    (tmp_path / "index.json").write_text('{"shards": {"a.tar": {"samples": 3}}}')
    assert list_shards([f"{server}/"]) == [f"{server}/a.tar"]
    faults: list[Fault] = []
    assert [group.key for group in read_shard(f"{server}/a.tar", faults)] == ["k000", "k001", "k002"]
    assert not faults


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/a.tar", r"needs s3fs, which is not installed: run `pip install s3fs`"),
        ("gs://bucket/{0..3}.tar", r"needs gcsfs, which is not installed"),
        ("carrier-pigeon://a.tar", r"'carrier-pigeon', which is no known kind of address"),
    ],
)
def test_an_address_without_a_driver_says_what_to_install(url: str, message: str) -> None:
    scheme = url.partition(":")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError):
        with pytest.raises(InputError, match=message):
            list_shards([url])
    else:
        pytest.skip(f"the driver of {scheme} is installed here")


class Stumbling(io.BytesIO):
    """Breaks off after a thousand bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() - self.start >= 1000:
            raise ConnectionResetError("reset by peer")
        return super().read(min(1000, size or -1))

    start = 0


def test_a_broken_connection_is_repaired_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.0)
    whole = bytes(range(256)) * 20
    opened: list[int] = []

    def connect(at: int) -> Opened:
        opened.append(at)
        if len(opened) == 2:
            raise TimeoutError("no answer")
        stream = Stumbling(whole)
        stream.seek(at)
        stream.start = at
        return Opened(stream, len(whole))

    assert io.BufferedReader(RetryingStream(connect)).read() == whole
    assert opened == [0, 1000, 1000, 2000, 3000, 4000, 5000]


def test_what_stays_broken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.0)
    calls: list[int] = []

    def connect(at: int) -> Opened:
        calls.append(at)
        raise TimeoutError("no answer")

    with pytest.raises(OSError, match="TimeoutError: no answer"):
        RetryingStream(connect)
    assert len(calls) == remote.ATTEMPTS
    calls.clear()

    def missing(at: int) -> Opened:
        calls.append(at)
        raise FileNotFoundError("a.tar")

    with pytest.raises(OSError, match=r"a\.tar"):
        RetryingStream(missing)
    assert len(calls) == 1  # trying again will not bring it back
