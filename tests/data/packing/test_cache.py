"""Pictures given where shards are expected: packed once, anew when they change, and never where shards were meant."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from star.data.errors import InputError
from star.data.packing.cache import as_shards
from star.data.shards.listing import list_shards
from star.data.shards.write import PACKING_MARK, read_index


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(3):
        (place / f"{number}.png").write_bytes(picture(number))
        (place / f"{number}.txt").write_text(f"picture {number}\n")
    return place


def test_a_folder_is_packed_once_until_it_changes(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    (shards,) = as_shards([str(folder)], tmp_path / "cache", say=told.append)
    assert "packing them, once" in told[0]
    assert told[1].startswith("3 samples in 1 shards")
    assert as_shards([str(folder)], tmp_path / "cache", say=told.append) == [shards]
    assert told[2].startswith("3 pictures of")

    (folder / "1.txt").write_text("another caption\n")
    os.utime(folder / "1.txt", (1, 1))
    (changed,) = as_shards([str(folder)], tmp_path / "cache", say=told.append)
    assert changed != shards
    assert read_index(shards) is not None
    assert read_index(changed) is not None


def test_a_packing_that_was_stopped_is_begun_again(folder: Path, tmp_path: Path) -> None:
    (shards,) = as_shards([str(folder)], tmp_path / "cache", say=lambda _: None)
    (Path(shards) / PACKING_MARK).write_text("shard")
    told: list[str] = []
    assert as_shards([str(folder)], tmp_path / "cache", say=told.append) == [shards]
    assert "packing them" in told[0]
    assert list_shards([shards])


def test_a_table_is_packed_anew_when_a_picture_changes(
    folder: Path, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    (tmp_path / "t.csv").write_text("image,caption\nphotos/0.png,one\nphotos/1.png,two\n")
    (first,) = as_shards([str(tmp_path / "t.csv")], tmp_path / "cache", say=lambda _: None)
    (folder / "0.png").write_bytes(picture(7, (9, 9)))
    (second,) = as_shards([str(tmp_path / "t.csv")], tmp_path / "cache", say=lambda _: None)
    assert first != second


def test_shards_and_patterns_and_folders_without_pictures_stay(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    make_shard("shards/a.tar", range(2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("shards/a.tar\n")
    given = [str(tmp_path / name) for name in ("shards", "shards/*.tar", "list.txt", "empty", "nowhere")]
    assert as_shards(given, tmp_path / "cache", say=pytest.fail) == given
    with pytest.raises(InputError, match="star data pack"):
        list_shards([str(tmp_path / "empty")])


def test_pictures_without_captions_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(InputError, match="holds no picture with a caption"):
        as_shards([str(folder)], tmp_path / "cache", say=lambda _: None)
