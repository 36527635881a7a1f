"""Shards to a benchmark: pixels and records unchanged, the same folder each time, whole or not at all."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star.data import benchmark
from star.data.benchmark import write_benchmark
from star.data.errors import InputError
from star.data.mjhq import META_NAME, read_meta

COUNT = 24


@pytest.fixture
def shards(tmp_path: Path, tar: Callable[..., Path], picture: Callable[..., bytes]) -> Path:
    """Three training shards and a held-out one, of eight samples each."""
    for place, name in enumerate(("a-train-0", "a-train-1", "a-train-2", "a-test-0")):
        members = []
        for number in range(8 * place, 8 * place + 8):
            record = {"caption": f"a thing {number}, flat style", "subject": f"thing {number}", "category": "food"}
            members += [(f"k{number}.png", picture(number)), (f"k{number}.json", json.dumps(record).encode())]
        tar(tmp_path / "shards" / f"{name}.tar", members)
    return tmp_path / "shards"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sample(name: str, data: bytes, record: dict[str, Any]) -> list[tuple[str, bytes]]:
    return [(f"{name}.png", data), (f"{name}.json", json.dumps(record).encode())]


def test_every_picture_has_its_pixels_and_what_its_record_says(
    shards: Path, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    report = write_benchmark(str(shards), tmp_path / "out", split="train")
    assert (report.pictures, report.categories, report.fields) == (COUNT, 1, {"subject": COUNT, "style": 0})
    assert report.text().splitlines()[-1] == "nothing was skipped"
    meta = read_meta(tmp_path / "out" / META_NAME)
    assert [entry.subject for entry in meta.entries] == [f"thing {number}" for number in range(COUNT)]
    assert len({entry.id for entry in meta.entries}) == COUNT
    for number, entry in enumerate(meta.entries):
        written = Image.open(tmp_path / "out" / "food" / f"{entry.id}.png")
        np.testing.assert_array_equal(np.asarray(written), np.asarray(Image.open(io.BytesIO(picture(number)))))
        assert entry.prompt == f"a thing {number}, flat style"


def test_the_same_shards_give_the_same_folder_and_splits_share_nothing(shards: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_benchmark([str(shards)], tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    write_benchmark([str(shards)], tmp_path / "train", split="train")
    write_benchmark([str(shards)], tmp_path / "test", split="test")
    train, test = (content(tmp_path / name) for name in ("train", "test"))
    assert set(train) & set(test) == {META_NAME}
    assert set(train) | set(test) == set(content(tmp_path / "one"))
    with pytest.raises(InputError, match="None of the shards"):
        write_benchmark(str(shards / "a-train-0.tar"), tmp_path / "none", split="test")


def test_a_count_is_spread_evenly_over_the_shards(shards: Path, tmp_path: Path) -> None:
    report = write_benchmark(str(shards), tmp_path / "six", split="train", count=6)
    entries = read_meta(tmp_path / "six" / META_NAME).entries
    assert [entry.subject for entry in entries] == [f"thing {number}" for number in (0, 4, 8, 12, 16, 20)]
    assert "asked for" not in report.text()
    report = write_benchmark(str(shards), tmp_path / "many", split="train", count=100)
    assert report.text().startswith(f"{COUNT} pictures (100 were asked for) in 1 category")
    with pytest.raises(InputError, match="count of pictures is 0"):
        write_benchmark(str(shards), tmp_path / "nothing", count=0)


@pytest.mark.parametrize("count", [None, 100])
def test_what_is_unusable_is_counted_and_named(
    count: int | None, tmp_path: Path, tar: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    good = {"caption": "a pie", "subject": "pie", "style": 7}
    members = [
        *sample("good", picture(1), good),
        *sample("silent", picture(2), {"subject": "pie"}),
        *sample("broken", picture(3)[:60], good),
        *sample("lines", picture(4), {"caption": "two\nlines", "subject": " a  b "}),
    ]
    shard = tar(tmp_path / "a.tar", members)
    again = tar(tmp_path / "b.tar", sample("good", picture(5), good))
    report = write_benchmark([str(shard), str(again)], tmp_path / "out", count=count)
    assert report.skipped.reasons == {"missing caption": 1, "broken picture": 1, "duplicate key": 1}
    entries = read_meta(tmp_path / "out" / META_NAME).entries
    assert [(e.category, e.prompt, e.subject, e.style) for e in entries] == [
        ("all", "a pie", "pie", ""),
        ("all", "two lines", "a b", ""),
    ]


@pytest.mark.parametrize("category", ["../up", "__hidden", ".hidden", "overall", "a/b", "", None, 5, "n" * 300])
def test_a_category_that_names_no_folder_becomes_all(
    category: Any, tmp_path: Path, tar: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    shard = tar(tmp_path / "a.tar", sample("k", picture(1), {"caption": "a pie", "category": category}))
    write_benchmark(str(shard), tmp_path / "out")
    (entry,) = read_meta(tmp_path / "out" / META_NAME).entries
    assert entry.category == "all"
    assert (tmp_path / "out" / "all" / f"{entry.id}.png").is_file()


def test_a_folder_that_is_used_is_refused_and_an_empty_one_taken(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_benchmark(str(shards), tmp_path / "empty", count=2).pictures == 2
    before = content(tmp_path / "empty")
    with pytest.raises(InputError, match="already holds"):
        write_benchmark(str(shards), tmp_path / "empty", count=3)
    assert content(tmp_path / "empty") == before
    with pytest.raises(InputError, match="no folder that can be read"):
        write_benchmark(str(shards), shards / "a-test-0.tar")


def test_after_a_stop_nothing_is_there(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def stopped(picture: Image.Image, path: Path, out: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "_save", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_benchmark(str(shards), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_shards_without_pictures_say_so(tmp_path: Path, tar: Callable[..., Path]) -> None:
    shard = tar(tmp_path / "a.tar", [("k.json", b'{"caption": "a pie"}')])
    with pytest.raises(InputError, match=r"no picture with a caption \(1 x missing picture\)"):
        write_benchmark(str(shard), tmp_path / "out")
    assert not (tmp_path / "out").exists()
