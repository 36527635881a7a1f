"""The integrity report names every fault there is, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from star.data.errors import InputError
from star.data.packing.pack import pack
from star.data.shards.check import check

MakeShard = Callable[..., Path]


@pytest.fixture
def packed(tmp_path: Path, make_shard: MakeShard) -> Path:
    """Twelve sound samples in shards of four, with their index."""
    pack(make_shard("source.tar", range(12)), tmp_path / "packed", samples_per_shard=4)
    return tmp_path / "packed"


def found(folder: Path) -> set[tuple[str, str, str]]:
    report = check(folder)
    assert report.ok == (not report.faults)
    for fault in report.faults:
        assert fault.reason in report.text()
    return {(Path(fault.shard).name, fault.reason, fault.key) for fault in report.faults}


def test_sound_shards_are_found_sound(packed: Path) -> None:
    report = check(packed)
    assert report.ok
    assert not report.notes
    assert (report.shards, report.samples, report.usable) == (3, 12, 12)
    assert report.bytes == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert "no faults" in report.text()


def test_every_fault_of_a_sample_is_named(tmp_path: Path, make_shard: MakeShard, picture: Callable[..., bytes]) -> None:
    change = {
        "k000.png": b"broken",
        "k001.png": picture(1)[:100],
        "k002.json": None,
        "k003.json": b'{"caption": " "}',
        "k004.json": b"{",
        "k005.png": None,
    }
    shard = make_shard("a.tar", range(8), change)
    report = check(shard)
    assert {(fault.reason, fault.key) for fault in report.faults} == {
        ("broken picture", "k000"),
        ("broken picture", "k001"),
        ("missing caption", "k002"),
        ("empty caption", "k003"),
        ("broken json", "k004"),
        ("missing picture", "k005"),
    }
    assert (report.samples, report.usable) == (8, 2)
    hurried = check(shard, decode_images=False)
    assert {fault.reason for fault in report.faults} - {fault.reason for fault in hurried.faults} == {"broken picture"}


def test_keys_and_pictures_that_come_twice_are_named(
    tmp_path: Path, make_shard: MakeShard, picture: Callable[..., bytes]
) -> None:
    make_shard("a.tar", [0, 1, 2, 1])
    make_shard("b.tar", [2, 3])
    make_shard("c.tar", [4, 5], {"k005.png": picture(0)})
    report = check([str(tmp_path / f"{name}.tar") for name in "abc"])
    assert {(Path(fault.shard).name, fault.reason, fault.key) for fault in report.faults} == {
        ("a.tar", "duplicate key", "k001"),
        ("b.tar", "duplicate key", "k002"),
    }
    assert {(Path(note.shard).name, note.reason, note.key) for note in report.notes} == {
        ("b.tar", "duplicate picture", "k002"),
        ("c.tar", "duplicate picture", "k005"),
    }
    assert "k000 in" in report.text()
    assert report.usable == 7


def test_pictures_alone_twice_are_a_note_and_no_fault(make_shard: MakeShard, picture: Callable[..., bytes]) -> None:
    report = check(make_shard("a.tar", range(3), {"k002.png": picture(0)}))
    assert report.ok
    assert len(report.notes) == 1
    assert "a note, not a fault" in report.text()


def test_a_truncated_shard_contradicts_tar_and_index(packed: Path) -> None:
    shard = packed / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:4000])
    assert found(packed) == {
        (shard.name, "truncated or damaged tar", ""),
        (shard.name, "index mismatch", "bytes"),
        (shard.name, "index mismatch", "samples"),
        (shard.name, "index mismatch", "sha256"),
    }


def test_one_changed_byte_is_found_by_its_sum(packed: Path) -> None:
    shard = packed / "shard-00002.tar"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1  # in the header's mode, where nothing else would notice
    data[148:156] = f"{sum(data[:148]) + 8 * 32 + sum(data[156:512]):06o}\0 ".encode()
    shard.write_bytes(data)
    assert found(packed) == {(shard.name, "index mismatch", "sha256")}


def test_missing_and_unlisted_shards_are_named(packed: Path, make_shard: MakeShard) -> None:
    (packed / "shard-00000.tar").unlink()
    make_shard("packed/other.tar", range(20, 22))
    assert found(packed) == {("shard-00000.tar", "index mismatch", ""), ("other.tar", "index mismatch", "")}


def test_looking_at_one_shard_of_a_folder_does_not_miss_the_others(packed: Path) -> None:
    assert check(packed / "shard-00001.tar").ok


def test_damaged_indexes_are_told_and_those_of_others_ignored(packed: Path) -> None:
    (packed / "index.json").write_text(json.dumps({"format": 1, "shards": {"shard-00000.tar": 4}}))
    assert found(packed) == {("packed", "index mismatch", "")}
    (packed / "index.json").write_text(json.dumps({"shardlist": []}))
    assert found(packed) == set()


def test_an_empty_shard_and_a_vanished_one(tmp_path: Path, make_shard: MakeShard) -> None:
    make_shard("a0.tar", [])
    make_shard("a2.tar", range(2))
    report = check(str(tmp_path / "a{0..2}.tar"))
    assert (report.shards, report.samples) == (3, 2)
    assert [(Path(fault.shard).name, fault.reason) for fault in report.faults] == [
        ("a0.tar", "empty shard"),
        ("a1.tar", "cannot be opened"),
    ]
    with pytest.raises(InputError, match="No shards"):
        check(tmp_path / "nowhere")


def test_the_text_names_a_few_of_each_and_counts_the_rest(make_shard: MakeShard) -> None:
    shard = make_shard("a.tar", range(30), {f"k{number:03d}.png": b"" for number in range(30)})
    text = check(shard).text(names=4)
    assert "30 x broken picture" in text
    assert "... and 26 more" in text
    assert len(text.splitlines()) == 1 + 1 + 4 + 1


def test_the_real_shards_are_sound(shared: Path) -> None:
    report = check([str(shared / "data/emoji/emoji-test-*.tar"), str(shared / "data/emoji-extra/*test*")])
    assert report.ok
    assert report.samples == 1094 + 129


@pytest.mark.parametrize("mark", [".shard.part", ".packing", ".shard-00001.tar.part", ".index.json.part"])
def test_what_a_killed_packing_left_is_told(packed: Path, mark: str) -> None:
    (packed / mark).write_bytes(b"")
    assert found(packed) == {(mark, "incomplete write", "")}


def test_shards_without_their_index_are_noted_and_codes_without_it_are_unfinished(packed: Path) -> None:
    (packed / "index.json").unlink()
    report = check(packed)
    assert report.ok
    assert [(Path(note.shard).name, note.reason) for note in report.notes] == [("packed", "missing index")]
    (packed / "encoding.safetensors").write_bytes(b"")
    assert found(packed) == {("packed", "incomplete write", "")}


@pytest.mark.parametrize("name", ["../shard-00009.tar", "/etc/passwd", "a/b.tar"])
def test_an_index_that_names_files_elsewhere_is_told(packed: Path, name: str) -> None:
    index = json.loads((packed / "index.json").read_text())
    index["shards"][name] = index["shards"]["shard-00000.tar"]
    (packed / "index.json").write_text(json.dumps(index), encoding="utf-8-sig")
    assert found(packed) == {("index.json", "index mismatch", "")}


def test_an_index_of_any_depth_is_told(packed: Path) -> None:
    (packed / "index.json").write_text('{"format": 1, "shards": ' + "[" * 10**5)
    assert found(packed) == {("packed", "index mismatch", "")}


def test_files_that_no_training_asks_for_are_missed_all_the_same(
    tmp_path: Path, tar: Callable[..., Path], picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star.data.shards.archive.MEMBER_BYTES", 5000)
    shard = tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.txt", b"a"), ("a.npy", b"x" * 6000)])
    report = check(shard)
    assert [(fault.reason, fault.key) for fault in report.faults] == [("too large", "a")]
    assert report.usable == 1


def test_the_report_is_one_printable_line_for_each_fault(tmp_path: Path, tar: Callable[..., Path]) -> None:
    shard = tar(tmp_path / "a.tar", [("a\nb\x1b[2J.txt", b"")])
    lines = check(shard).text().splitlines()
    assert all(line.isprintable() for line in lines)
    assert any("a\\nb\\x1b[2J" in line for line in lines)
