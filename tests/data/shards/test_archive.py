"""Tars of every make: read to their last sample, the same for every reader, and never without bound."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards import archive
from star.data.shards.check import check
from star.data.shards.faults import Fault, SampleError
from star.data.shards.tar import Group, fetch, index_shard, is_seekable, read_shard

MakeShard = Callable[..., Path]
END = bytes(1024)
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def header(name: str, size: int, type: bytes = tarfile.REGTYPE) -> bytes:
    told = tarfile.TarInfo(name)
    told.size, told.type = size, type
    return told.tobuf(tarfile.GNU_FORMAT)


def member(name: str, data: bytes, type: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), type) + data + bytes(-len(data) % 512)


def both(shard: Path) -> tuple[list[Group], list[Fault]]:
    """What streaming reads, which must be what reading by place reads, where that is possible."""
    faults: list[Fault] = []
    groups = list(read_shard(str(shard), faults))
    if is_seekable(str(shard)):
        placed: list[Fault] = []
        by_place = [fetch(str(shard), group) for group in index_shard(str(shard), placed)]
        assert [(group.key, shown(group)) for group in by_place] == [(group.key, shown(group)) for group in groups]
        assert [(fault.reason, fault.key) for fault in placed] == [(fault.reason, fault.key) for fault in faults]
    return groups, faults


def shown(group: Group) -> dict[str, object]:
    return {
        name: (content.reason, content.detail) if isinstance(content, SampleError) else content
        for name, content in group.members.items()
    }


def squeezed(parts: Iterable[bytes], path: Path) -> Path:
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as file:
        for part in parts:
            file.write(packer.compress(part))
        file.write(packer.flush())
    return path


def zeros(size: int) -> Iterable[bytes]:
    return (bytes(1 << 20) for _ in range(size >> 20))


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("within", [True, False], ids=["tars compressed together", "streams one behind the other"])
def test_archives_one_behind_the_other_are_read_on(tmp_path: Path, ending: str, within: bool) -> None:
    tars = [member(f"{key}.txt", key.encode()) + END * length for key, length in (("a", 1), ("b", 9), ("c", 10))]
    compress = COMPRESSORS[ending]
    shard = tmp_path / f"s.{ending}"
    shard.write_bytes(compress(b"".join(tars)) if within else b"".join(map(compress, tars)))
    groups, faults = both(shard)
    assert [(group.key, group.members) for group in groups] == [(key, {"txt": key.encode()}) for key in "abc"]
    assert not faults


def test_a_single_block_of_zeros_is_no_end_if_members_follow(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(member("a.txt", b"a") + bytes(512) + member("b.txt", b"b") + END)
    assert [group.key for group in both(shard)[0]] == ["a", "b"]


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize(
    "behind", [b"rubbish", bytes(5000) + b"x" * 2000, b"PK\3\4" * 600], ids=["short", "far", "long"]
)
@pytest.mark.parametrize("inside", [True, False])
def test_other_data_behind_the_end_are_told(tmp_path: Path, ending: str, behind: bytes, inside: bool) -> None:
    compress, tar = COMPRESSORS[ending], member("a.txt", b"a") + END
    shard = tmp_path / f"s.{ending}"
    shard.write_bytes(compress(tar + behind) if inside else compress(tar) + behind)
    groups, faults = both(shard)
    assert [group.key for group in groups] == ["a"]
    assert [fault.reason for fault in faults] == ["truncated or damaged tar"]
    assert "other data follow" in faults[0].detail


def test_a_duplicate_archive_is_told_as_repeated_keys(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes((member("a.txt", b"a") + END) * 2)
    groups, faults = both(shard)
    assert len(groups) == 1
    assert [(fault.reason, fault.key) for fault in faults] == [("duplicate key", "a")]


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"M"])
def test_links_and_devices_cost_their_sample_and_are_named(
    tmp_path: Path, picture: Callable[..., bytes], type: bytes
) -> None:
    told = tarfile.TarInfo("b.png")
    told.type, told.linkname = type, "a.png"
    shard = tmp_path / "s.tar"
    shard.write_bytes(
        member("a.png", picture(1))
        + member("a.txt", b"a")
        + told.tobuf(tarfile.GNU_FORMAT)
        + member("b.txt", b"b")
        + END
    )
    assert [group.key for group in both(shard)[0]] == ["a", "b"]
    report = check(shard)
    assert [(fault.reason, fault.key) for fault in report.faults] == [("not a regular file", "b")]
    assert (report.samples, report.usable) == (2, 1)
    pipeline = Pipeline(DataConfig(shards=(str(shard),), resolution=8, shuffle=False), batch_size=2)
    assert next(pipeline.batches()).keys == ["a", "a"]
    assert [(fault.reason, fault.key) for fault in pipeline.report.named] == [("not a regular file", "b")]


def sparse_pax(version: str, stored: bytes, parts: list[tuple[int, int]], size: int) -> bytes:
    """A sparse member as GNU tar writes it with --sparse-version."""
    numbers = [str(number) for part in parts for number in part]
    records = {"GNU.sparse.size": size, "GNU.sparse.numblocks": len(parts), "GNU.sparse.map": ",".join(numbers)}
    if version == "1.0":
        records = {"GNU.sparse.major": 1, "GNU.sparse.minor": 0, "GNU.sparse.realsize": size}
        table = "".join(f"{number}\n" for number in [len(parts), *numbers]).encode()
        stored = table + bytes(-len(table) % 512) + stored
    records["GNU.sparse.name"] = "a.bin"
    lines = b""
    for key, value in records.items():
        line = f" {key}={value}\n"
        length = len(line) + 2
        lines += f"{length + (length > 99) - (length < 12)}{line}".encode() if length != 100 else f"101{line}".encode()
    return member("PaxHeaders/a.bin", lines, tarfile.XHDTYPE) + member("GNUSparseFile.0/a.bin", stored)


@pytest.mark.parametrize("version", ["0.1", "1.0"])
def test_holes_are_filled_for_every_reader(tmp_path: Path, version: str) -> None:
    content = b"x" * 512 + bytes(4096) + b"y" * 700 + bytes(300)
    parts = [(0, 512), (4608, 700), (len(content), 0)]
    shard = tmp_path / "s.tar"
    shard.write_bytes(sparse_pax(version, b"x" * 512 + b"y" * 700, parts, len(content)) + member("b.txt", b"b") + END)
    groups, faults = both(shard)
    assert not faults
    assert [group.members for group in groups] == [{"bin": content}, {"txt": b"b"}]


@pytest.mark.parametrize(
    "parts", [[(0, 512), (100, 512)], [(0, 512), (10**15, 512)]], ids=["overlapping", "behind the end"]
)
def test_a_broken_map_of_holes_costs_its_member(tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(sparse_pax("1.0", b"x" * 1024, parts, 4096) + member("b.txt", b"b") + END)
    groups, _ = both(shard)
    assert isinstance(groups[0].members["bin"], SampleError)
    assert groups[1].members == {"txt": b"b"}


def test_a_small_sparse_member_of_enormous_size_is_not_laid_out(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(sparse_pax("1.0", b"x" * 512, [(0, 512), (2**40, 0)], 2**40) + member("b.txt", b"b") + END)
    groups, _ = both(shard)
    assert shown(groups[0])["bin"] == ("too large", f"a.bin takes {2**40} bytes, {64 << 20} are allowed; "
                                       "set STAR_MEMBER_MIB to allow more")  # fmt: skip
    assert groups[1].members == {"txt": b"b"}


def test_a_member_that_is_too_large_costs_itself_only(tmp_path: Path) -> None:
    before, after = member("a.txt", b"a"), member("c.txt", b"c")
    large = header("b.png", 65 << 20)
    plain = tmp_path / "s.tar"
    with plain.open("wb") as file:
        file.write(before + large)
        file.seek(65 << 20, os.SEEK_CUR)  # a hole on the disk
        file.write(after + END)
    packed = squeezed([before, large, *zeros(65 << 20), after, END], tmp_path / "s.tgz")
    for shard in (plain, packed):
        groups, faults = both(shard)
        assert [group.key for group in groups] == ["a", "b", "c"]
        assert isinstance(groups[1].members["png"], SampleError)
        assert not faults
        assert ("too large", "b") in {(fault.reason, fault.key) for fault in check(shard).faults}


def test_what_a_small_file_swells_to_is_not_passed_over_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "PASSED_BYTES", 8 << 20)
    cases = {
        "member": [member("a.txt", b"a"), header("b.png", 4 << 30), *zeros(64 << 20)],
        "nobody's": [member("a.txt", b"a"), *[header(f"x{n}", 8 << 20) + bytes(8 << 20) for n in range(3)], END],
        "trailing zeros": [member("a.txt", b"a"), *zeros(64 << 20)],
    }
    for name, parts in cases.items():
        groups, faults = both(squeezed(parts, tmp_path / f"{name}.tgz"))
        assert groups[0] == Group("a", {"txt": b"a"})
        assert [fault.reason for fault in faults] == ["truncated or damaged tar"]
        assert "more than 8 MiB" in faults[0].detail


@pytest.mark.parametrize("type", [b"L", b"K", b"x", b"g", b"X"])
@pytest.mark.parametrize("size", [3 << 30, 8**11 - 1, 33 << 10])
def test_headers_are_bounded_before_they_are_read(tmp_path: Path, type: bytes, size: int) -> None:
    shard = squeezed([member("a.txt", b"a"), header("long", size, type), *zeros(4 << 20)], tmp_path / "s.tgz")
    groups, faults = both(shard)
    assert [group.key for group in groups] == ["a"]
    assert faults[0].reason == "truncated or damaged tar"
    assert "a header of more than 32 KiB" in faults[0].detail


@pytest.mark.parametrize(
    "body",
    [
        header("x", 0, b"x") * 5000,
        member("x", b"1" * 30000, b"x"),
        member("x", b"30 GNU.sparse.major=1\n30 GNU.sparse.minor=0\n", b"x") + member("b.txt", b"nothing"),
        member("x", b"17 size=-512000\n", b"x") + header("b.txt", 0),
        member("x", b"99999999999999 size=1\n", b"x") + header("b.txt", 0),
        header("b.txt", 0)[:124] + b"\x80" + b"\xff" * 11 + header("b.txt", 0)[136:],
        header("b.txt", 0, b"S")[:482] + b"\1" + header("b.txt", 0, b"S")[483:],
    ],
    ids=["chain", "digits", "sparse", "negative size", "long record", "bad number", "bad sparse"],
)
def test_headers_that_trip_tarfile_up_are_faults(tmp_path: Path, body: bytes) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(member("a.txt", b"a") + body + member("c.txt", b"c") + END)
    began = time.monotonic()
    groups, _ = both(shard)
    assert groups[0] == Group("a", {"txt": b"a"})
    assert time.monotonic() - began < 5


def test_a_compressor_that_wants_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LZMA_BYTES", 1 << 20)
    shard = tmp_path / "s.tar.xz"
    shard.write_bytes(lzma.compress(member("a.txt", b"a") + END, preset=6))
    groups, faults = both(shard)
    assert not groups
    assert [fault.reason for fault in faults] == ["truncated or damaged tar"]


def test_names_that_are_not_utf8_are_repaired_and_told(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    parts = []
    for base in (b"caf\xe9", b"\xff\xfe", b"good"):
        for ending, data in ((b"png", picture(len(base))), (b"txt", b"a caption")):
            raw = bytearray(header("x", len(data)))
            raw[:100] = (base + b"." + ending).ljust(100, b"\0")
            raw[148:156] = b" " * 8
            raw[148:156] = f"{sum(raw):06o}\0 ".encode()
            parts.append(bytes(raw) + data + bytes(-len(data) % 512))
    shard = tmp_path / "s.tar"
    shard.write_bytes(b"".join(parts) + END)
    groups, faults = both(shard)
    assert [group.key for group in groups] == ["caf\\xe9", "\\xff\\xfe", "good"]
    assert [fault.reason for fault in faults] == ["repaired name"] * 2
    report = check(shard)
    assert (report.usable, report.ok) == (3, False)
    report.text().encode()
    for cache in (False, True):
        pipeline = Pipeline(DataConfig(shards=(str(shard),), resolution=8, cache=cache), batch_size=3)
        assert set(next(pipeline.batches()).keys) == {"caf\\xe9", "\\xff\\xfe", "good"}
        assert pipeline.report.total == 0
        assert {fault.reason for fault in pipeline.report.named} == {"repaired name"}
        pipeline.report.text().encode()


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, make_shard: MakeShard, kind: str) -> None:
    make_shard("s1.tar", range(2))
    path = tmp_path / "s0.tar"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert not is_seekable(str(path))
    faults: list[Fault] = []
    assert list(read_shard(str(path), faults)) == index_shard(str(path), faults) == []
    assert [fault.reason for fault in faults] == ["cannot be opened"] * 2
    pipeline = Pipeline(DataConfig(shards=(str(tmp_path / "s{0..1}.tar"),), resolution=8), batch_size=2)
    assert set(next(pipeline.batches()).keys) == {"k000", "k001"}


def test_many_small_files_of_one_sample_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.data.shards.tar.SAMPLE_BYTES", 3000)
    shard = tmp_path / "s.tar"
    shard.write_bytes(b"".join(member(f"a.p{n}", b"x" * 1000) for n in range(5)) + member("b.txt", b"b") + END)
    groups, _ = both(shard)
    assert [isinstance(content, bytes) for content in groups[0].members.values()] == [True] * 3 + [False] * 2
    assert groups[1].members == {"txt": b"b"}


def test_streams_give_short_reads_and_are_read_whole(make_shard: MakeShard) -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 700) if (size or -1) > 0 else size)

    data = make_shard("s.tar.gz", range(4), mode="w:gz").read_bytes()
    source = archive.Source(Dripping(data))
    assert len(list(archive.walk(source))) == 8
