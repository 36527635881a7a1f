"""Shard writers among others: one at a time in a folder, and what a killed one left is known and removed."""

import gzip
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.packing.pack import pack
from star.data.shards.check import check
from star.data.shards.tar import read_shard
from star.data.shards.write import LOCK_NAME, PACKING_MARK, ShardWriter, read_index, write_shard

ROOT = Path(__file__).parents[3]
# Writes two shards and a half, says so, and waits.
WAITING = """
import sys, time
from star.data.shards.write import ShardWriter
with ShardWriter(sys.argv[1], prefix="part", per_shard=2, overwrite="overwrite" in sys.argv) as writer:
    for number in range(5):
        writer.add(f"k{number}", {"txt": b"x"})
    print("ready", flush=True)
    time.sleep(60)
"""


def start(out: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", WAITING, out, *arguments], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    with process.stdout as told:
        assert told.readline() == b"ready\n"
    return process


def fill(out: Path, **options: bool) -> None:
    with ShardWriter(out, per_shard=1, **options) as writer:  # type: ignore[arg-type]
        writer.add("k", {"txt": b"y"})


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_a_second_writer_is_refused_and_a_killed_one_is_cleared_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    process = start(out)
    try:
        before = names(out)
        for overwrite in (False, True):
            with pytest.raises(InputError, match="is being packed by another process"):
                ShardWriter(out, overwrite=overwrite)
        assert names(out) == before
        assert {PACKING_MARK, "part-00000.tar", "part-00001.tar"} <= set(before)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert names(out) == before
    with pytest.raises(InputError, match=r"are not all there: their packing was stopped or is at work"):
        Pipeline(DataConfig(shards=(str(out),), resolution=8), batch_size=1)
    with caplog.at_level(logging.WARNING):
        fill(out)
    assert "2 shards of a packing that was not finished" in caplog.text
    assert names(out) == ["index.json", "shard-00000.tar"]
    assert list(read_index(out) or ()) == ["shard-00000.tar"]


def test_a_finished_folder_is_not_cleared_and_strangers_stay(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out" / "notes.md").write_text("mine")
    with pytest.raises(InputError, match="already holds 3 files"):
        ShardWriter(tmp_path / "out")
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / PACKING_MARK).write_text("shard")
    (tmp_path / "left" / "shard-00000.tar").write_bytes(b"")
    (tmp_path / "left" / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"already holds 1 files \(notes.md"):
        ShardWriter(tmp_path / "left")
    assert names(tmp_path / "left") == [PACKING_MARK, "notes.md", "shard-00000.tar"]
    fill(tmp_path / "left", overwrite=True)
    assert names(tmp_path / "left") == ["index.json", "notes.md", "shard-00000.tar"]


def test_one_of_many_writers_at_once_wins(tmp_path: Path) -> None:
    """Started together, exactly one packs; the others end with the sentence."""
    script = WAITING.replace("time.sleep(60)", "time.sleep(1)").replace('print("ready", flush=True)', "")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "out", "overwrite"], cwd=ROOT, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    told = [process.communicate()[1] for process in processes]
    won = [process.returncode == 0 for process in processes]
    assert any(won)
    assert all(success or b"is being packed by another" in text for success, text in zip(won, told, strict=True))
    assert names(tmp_path / "out") == ["index.json", "part-00000.tar", "part-00001.tar", "part-00002.tar"]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits there")
@pytest.mark.parametrize("when", ["a shard", "its end", "the index"])
def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(when: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write that passes it fails."""
    size, shards = {"a shard": (30000, 9), "its end": (9000, 1), "the index": (2000, 40)}[when]
    limit = {"a shard": 20000, "its end": 10000, "the index": 10240}[when]
    script = f"""
import resource, sys
from star.data.errors import InputError
from star.data.shards.write import ShardWriter
try:
    with ShardWriter(sys.argv[1], per_shard=1 if {shards} == 40 else 9) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        for number in range({shards}):
            writer.add(f"k{{number}}", {{"bin": bytes({size})}})
        if {shards} == 40:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
except InputError as error:
    print(error)
    sys.exit(2)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "out"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith(f"Cannot write shards to {tmp_path / 'out'}")
    assert done.stdout.count("\n") == 1
    left = names(tmp_path / "out")
    assert not [name for name in left if name.endswith(".part") or name in ("index.json", LOCK_NAME)]
    assert (PACKING_MARK in left) == any(name.endswith(".tar") for name in left)


@pytest.mark.skipif(sys.platform == "win32", reason="its signals are others")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_packing_that_is_stopped_is_known_as_unfinished_and_begins_again(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small, large, out = tmp_path / "small", tmp_path / "large", tmp_path / "out"
    for folder in (small, large):
        folder.mkdir()
        Image.new("RGB", (600, 600), "red").save(folder / "0.png")
        (folder / "0.txt").write_text("red", encoding="utf-8")
    for count in range(1, 1500):  # enough to be at it until it is stopped
        (large / f"{count}.png").symlink_to(large / "0.png")
        (large / f"{count}.txt").symlink_to(large / "0.txt")
    line = [
        sys.executable,
        "-m",
        "star.cli",
        "data",
        "pack",
        str(large),
        str(out),
        "--per-shard",
        "1",
        "--shorter-side",
        "590",
    ]
    packing = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "shard-00003.tar").exists():
        assert packing.poll() is None
        time.sleep(0.01)
    with pytest.raises(InputError, match="is being packed by another process"):
        pack(small, out, overwrite=True)
    packing.send_signal(number)
    assert packing.wait() in (128 + number, -number)
    assert PACKING_MARK in names(out)
    assert "incomplete write" in {fault.reason for fault in check(out).faults}
    with caplog.at_level(logging.WARNING):
        assert pack(small, out).samples == 1
    assert "not finished; they are removed, and packing begins again" in caplog.text
    assert check(out).ok


def test_a_compressed_shard_holds_the_same_and_tells_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [(f"k{number}", {"txt": b"caption" * 40, "bin": bytes([number]) * 900}) for number in range(6)]
    for name in ("plain.tar", "one.tar.gz"):
        assert write_shard(tmp_path / name, samples) == 6
    monkeypatch.setattr("time.time", lambda: 12345.0)
    (tmp_path / "later").mkdir()
    write_shard(tmp_path / "later" / "one.tar.gz", samples)
    assert (tmp_path / "later" / "one.tar.gz").read_bytes() == (tmp_path / "one.tar.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.tar.gz").read_bytes()) == (tmp_path / "plain.tar").read_bytes()
    plain, zipped = (
        [(group.key, dict(group.members)) for group in read_shard(str(tmp_path / name), [])]
        for name in ("plain.tar", "one.tar.gz")
    )
    assert plain == zipped == samples
