"""Packing: every kind of source gives sound shards, the same ones each time, and names what it leaves out."""

import csv
import errno
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star.cli import main
from star.data.errors import InputError
from star.data.packing.pack import PackReport, pack
from star.data.shards.check import check
from star.data.shards.tar import Group, read_shard
from star.data.shards.write import ShardWriter, read_index


def groups(out: Path) -> list[Group]:
    found = [group for shard in sorted(out.glob("*.tar")) for group in read_shard(str(shard), [])]
    assert check(out).ok
    return found


def record(group: Group) -> dict[str, Any]:
    content = group.members["json"]
    assert isinstance(content, bytes)
    loaded: dict[str, Any] = json.loads(content)
    return loaded


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """Seven pictures in nested folders: five with captions, one without, one broken."""
    root = tmp_path / "pictures"
    (root / "more" / "deep").mkdir(parents=True)
    for number, name in enumerate(["b", "a.x", "more/a", "more/deep/日本"]):
        (root / f"{name}.png").write_bytes(picture(number))
        (root / f"{name}.txt").write_text(f"caption of {name}\n", encoding="utf-8")
    (root / "told.JPG").write_bytes(picture(9, format="JPEG"))
    (root / "told.json").write_text('{"caption": "main", "captions": ["main", "other"], "artist": "me"}')
    (root / "silent.png").write_bytes(picture(5))
    (root / "broken.png").write_bytes(picture(6)[:50])
    (root / "broken.txt").write_text("broken")
    (root / "notes.txt").write_text("no picture is beside this")
    return root


def test_a_folder_is_packed_with_the_captions_beside_its_pictures(
    folder: Path, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    report = pack(folder, tmp_path / "out", samples_per_shard=3)
    packed = groups(tmp_path / "out")
    assert [group.key for group in packed] == ["a_x", "b", "more__a", "more__deep__日本", "told"]
    assert record(packed[3]) == {"caption": "caption of more/deep/日本"}
    assert record(packed[4]) == {"caption": "main", "captions": ["main", "other"], "artist": "me"}
    assert packed[1].members["png"] == picture(0)
    assert set(packed[4].members) == {"jpg", "json"}
    assert (report.samples, report.shards) == (5, 2)
    assert {fault.key: fault.reason for fault in report.skipped.named} == {
        "silent.png: silent": "missing caption",
        "broken.png: broken": "broken picture",
        "notes.txt": "missing picture",
    }
    assert "silent.png" in report.text()


def test_records_say_which_samples_are_packed(
    tmp_path: Path, picture: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    kinds: list[dict[str, Any]] = [
        {"style": "noto", "year": 1},
        {"style": "blob"},
        {"style": "noto", "year": 2},
        {"style": "flat"},
        {},
    ]
    for number, kind in enumerate(kinds):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(picture(number))
        (tmp_path / "pictures" / f"{number}.json").write_text(json.dumps({"caption": f"number {number}", **kind}))
    source = str(tmp_path / "pictures")
    for only, kept in (
        (["style=noto"], [0, 2]),
        (["style=noto,flat"], [0, 2, 3]),
        (["style=noto", "year=2"], [2]),
    ):
        out = tmp_path / "_".join(only)
        assert main(["data", "pack", source, str(out), "--only", *only]) == 0
        assert f"{5 - len(kept)} samples with other records" in capsys.readouterr().out
        assert [record(group)["caption"] for group in groups(out)] == [f"number {number}" for number in kept]
    for wrong, told in (("style", "KEY"), ("=noto", "KEY"), ("style=none", "none of 5 samples")):
        assert main(["data", "pack", source, str(tmp_path / "w"), "--only", wrong]) == 2
        assert told.lower() in capsys.readouterr().err.lower()


def test_the_same_source_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        pack(folder, tmp_path / out, samples_per_shard=2, image_format="webp")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for path in folder.rglob("*"):
        path.touch()
    pack(folder, tmp_path / "two", samples_per_shard=2, image_format="webp", overwrite=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table as write_parquet

        write_parquet(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_every_format_say_the_same(suffix: str, tmp_path: Path, picture: Callable[..., bytes]) -> None:
    (tmp_path / "files" / "d").mkdir(parents=True)
    for number, name in enumerate(("x.png", "d/y.png", "d/z.png")):
        (tmp_path / "files" / name).write_bytes(picture(number))
    (tmp_path / "files" / "bad.png").write_bytes(b"bad")
    absolute = str(tmp_path / "files" / "d" / "z.png")
    rows = [
        {"file": "x.png", "text": "first, with a comma", "artist": "é"},
        {"file": "d/y.png", "text": "second", "artist": "b"},
        {"file": absolute, "text": "third", "artist": "c"},
        {"file": "x.png", "text": "the first again", "artist": "d"},
        {"file": "d/y.png", "text": " ", "artist": "e"},
        {"file": "missing.png", "text": "missing", "artist": "f"},
        {"file": "bad.png", "text": "bad", "artist": "g"},
        {"file": "", "text": "none", "artist": "h"},
    ]
    table = write_table(tmp_path / "files" / f"table{suffix}", rows)
    report = pack(table, tmp_path / "out", image_column="file", caption_column="text")
    packed = groups(tmp_path / "out")
    assert [group.key for group in packed] == ["x", "d__y", "z", "x-2"]
    assert record(packed[0]) == {"caption": "first, with a comma", "artist": "é"}
    assert packed[1].members["png"] == picture(1)
    assert report.skipped.reasons == {"empty caption": 1, "missing picture": 2, "broken picture": 1}
    assert "row 6: missing" in {fault.key for fault in report.skipped.named}
    with pytest.raises(InputError, match="has no column image but file, text, artist"):
        pack(table, tmp_path / "other")


def test_tables_may_hold_several_captions_and_the_pictures_themselves(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    lines = write_table(
        tmp_path / "a.jsonl",
        [{"image": "x.png", "caption": ["one", "two", "one", ""]}, {"image": "x.png", "caption": None}],
    )
    (tmp_path / "x.png").write_bytes(picture(0))
    report = pack(lines, tmp_path / "a")
    assert record(groups(tmp_path / "a")[0]) == {"caption": "one", "captions": ["one", "two"]}
    assert report.skipped.reasons == {"missing caption": 1}
    rows = [{"image": {"bytes": picture(1), "path": None}, "caption": "inside"}]
    pack(write_table(tmp_path / "b.parquet", rows), tmp_path / "b")
    assert groups(tmp_path / "b")[0].members["png"] == picture(1)
    pack(write_table(tmp_path / "c.parquet", [{"image": picture(2), "caption": "inside"}]), tmp_path / "c")
    assert groups(tmp_path / "c")[0].members["png"] == picture(2)


def test_tables_that_cannot_be_read_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"row 1: broken json, line 1: a list, expected an object\)"):
        pack(tmp_path / "b.jsonl", tmp_path / "out")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs pyarrow"):
        pack(tmp_path / "c.parquet", tmp_path / "out")
    monkeypatch.undo()
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="Cannot read the table"):
        pack(tmp_path / "c.parquet", tmp_path / "out")


def test_the_mjhq_layout_keeps_ids_and_categories(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    root = tmp_path / "mjhq"
    table = {
        "id1": {"category": "food", "prompt": "a pie"},
        "id2": {"category": "logo", "prompt": "a sign"},
        "id3": {"category": "logo", "prompt": "gone"},
    }
    for number, (name, extension) in enumerate((("food/id1", "jpg"), ("logo/id2", "png"))):
        path = root / f"{name}.{extension}"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(number, format="JPEG" if extension == "jpg" else "PNG"))
    (root / "meta_data.json").write_text(json.dumps(table))
    report = pack(root, tmp_path / "out")
    packed = groups(tmp_path / "out")
    assert [(group.key, record(group)) for group in packed] == [
        ("id1", {"category": "food", "caption": "a pie"}),
        ("id2", {"category": "logo", "caption": "a sign"}),
    ]
    assert report.skipped.reasons == {"missing picture": 1}
    (root / "food" / "stray.AVIF").write_bytes(b"")
    (root / "logo" / "id1.png").write_bytes(picture(3))
    table |= {"../id4": {"category": "food", "prompt": "out"}, "id5": {"category": "food", "prompt": "\ud83d"}}
    table["id2"]["prompt"] = "a\nsign"
    table["id3"] = {"category": "food/../logo", "prompt": "gone"}
    (root / "meta_data.json").write_text(json.dumps(table))
    report = pack(root, tmp_path / "again")
    assert record(groups(tmp_path / "again")[1])["caption"] == "a sign"
    assert report.skipped.reasons == {
        "line breaks replaced": 1,
        "missing picture": 2,
        "broken text": 1,
        "missing caption": 2,
    }
    (root / "meta_data.json").write_text('{"id1": 3}')
    with pytest.raises(InputError, match=r"5 x missing caption; the first: id1: missing caption"):
        pack(root, tmp_path / "other")


def test_shards_are_dealt_anew_without_touching_what_they_hold(
    tmp_path: Path, make_shard: Callable[..., Path], tar: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    make_shard("in/a.tar.gz", range(5), {"k001.json": None}, mode="w:gz")
    tar(tmp_path / "in" / "b.tar", [("z.png", picture(7)), ("z.txt", b"words"), ("z.cls", b"3")])
    report = pack(tmp_path / "in", tmp_path / "out", samples_per_shard=2)
    packed = groups(tmp_path / "out")
    assert [group.key for group in packed] == ["k000", "k002", "k003", "k004", "z"]
    assert [entry["samples"] for entry in (read_index(tmp_path / "out") or {}).values()] == [2, 2, 1]
    assert packed[-1].members["cls"] == b"3"
    assert record(packed[-1]) == {"caption": "words"}
    assert report.skipped.reasons == {"missing caption": 1}
    pack(tmp_path / "out", tmp_path / "again", samples_per_shard=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    with pytest.raises(InputError, match="another folder"):
        pack(tmp_path / "out", tmp_path / "out", overwrite=True)


def test_truncated_sources_are_told_in_the_report(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    shard = make_shard("a.tar", range(4))
    shard.write_bytes(shard.read_bytes()[:3000])
    report = pack(shard, tmp_path / "out")
    assert report.samples == 1
    assert "truncated or damaged tar" in report.skipped.reasons


@pytest.mark.parametrize("per_shard", [1, 4, 100])
@pytest.mark.parametrize("max_bytes", [None, 8000, 100])
def test_no_shard_passes_its_limits_and_all_samples_are_there(
    per_shard: int, max_bytes: int | None, tmp_path: Path, make_shard: Callable[..., Path]
) -> None:
    report = pack(
        make_shard("a.tar", range(10)), tmp_path / "out", samples_per_shard=per_shard, max_shard_bytes=max_bytes
    )
    index = read_index(tmp_path / "out") or {}
    assert len(groups(tmp_path / "out")) == report.samples == 10
    assert len(index) == report.shards
    assert sum(entry["bytes"] for entry in index.values()) == report.bytes
    for entry in index.values():
        assert entry["samples"] <= per_shard
        assert (
            max_bytes is None
            or entry["samples"] == 1
            or entry["bytes"] <= max_bytes
            or entry["bytes"] == tarfile.RECORDSIZE
        )


def test_pictures_are_reduced_with_their_aspect_and_re_encoded_on_demand(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name, size, format in (
        ("tall", (80, 40), "PNG"),
        ("wide", (30, 90), "JPEG"),
        ("small", (9, 12), "WEBP"),
        ("old", (5, 5), "BMP"),
    ):
        (root / f"{name}.{format.lower()}").write_bytes(picture(1, size, format))
        (root / f"{name}.txt").write_text(name)

    def sizes(out: str) -> dict[str, tuple[str, tuple[int, int]]]:
        found = {}
        for group in groups(tmp_path / out):
            (extension,) = set(group.members) - {"json"}
            data = group.members[extension]
            assert isinstance(data, bytes)
            with Image.open(io.BytesIO(data)) as opened:
                assert opened.format == {"jpg": "JPEG"}.get(extension, extension.upper())
                found[group.key] = (extension, opened.size)
        return found

    pack(root, tmp_path / "keep", shorter_side=20)
    assert sizes("keep") == {
        "tall": ("png", (20, 40)),
        "wide": ("jpg", (60, 20)),
        "small": ("webp", (12, 9)),
        "old": ("bmp", (5, 5)),
    }
    pack(root, tmp_path / "png", image_format="png")
    assert sizes("png") == {
        "tall": ("png", (40, 80)),
        "wide": ("png", (90, 30)),
        "small": ("png", (12, 9)),
        "old": ("png", (5, 5)),
    }
    pack(root, tmp_path / "jpg", image_format="jpg", shorter_side=7)
    assert {extension for extension, _ in sizes("jpg").values()} == {"jpg"}


def test_a_folder_with_files_is_refused_and_overwriting_takes_only_shards(
    tmp_path: Path, make_shard: Callable[..., Path]
) -> None:
    source, out = make_shard("a.tar", range(6)), tmp_path / "out"
    pack(source, out, samples_per_shard=1)
    with pytest.raises(InputError, match="already holds 7 files"):
        pack(source, out)
    (out / "notes.md").write_text("mine")
    pack(source, out, samples_per_shard=3, overwrite=True)
    assert sorted(contents(out)) == ["index.json", "notes.md", "shard-00000.tar", "shard-00001.tar"]


def test_a_failure_leaves_no_half_shard_and_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def interrupted(writer: ShardWriter) -> None:
        with writer:
            for number in range(3):
                writer.add(f"k{number}", {"txt": b"x"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(ShardWriter(out, per_shard=2))
    assert sorted(contents(out)) == [".packing", "shard-00000.tar"]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(InputError, match="No space left on device"), ShardWriter(out, overwrite=True) as writer:
        writer.add("k", {"txt": b"x"})
    assert contents(out) == {}


def test_nothing_to_pack_and_nowhere_to_write_are_one_sentence(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no picture with a caption"):
        pack(tmp_path / "empty", tmp_path / "out")
    for name in ("missing", "missing.csv", "a.txt", "~nobody-of-this-name/x", "a\0b.csv", "n" * 5000 + ".csv"):
        with pytest.raises(InputError, match="Cannot pack"):
            pack(tmp_path / name, tmp_path / "out")
    source = make_shard("a.tar", range(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write shards"):
        pack(source, tmp_path / "file" / "out")
    bad: list[dict[str, Any]] = [
        {"samples_per_shard": 0},
        {"max_shard_bytes": 0},
        {"shorter_side": 0},
        {"image_format": "gif"},
        {"prefix": "a/b"},
        {"kind": "book"},
    ]
    for options in bad:
        with pytest.raises(InputError):
            pack(source, tmp_path / "new", **options)


def test_the_emoji_benchmark_is_packed_whole(shared: Path, tmp_path: Path) -> None:
    report: PackReport = pack(shared / "data" / "emoji-mjhq", tmp_path / "out", samples_per_shard=500)
    assert (report.samples, report.shards, report.skipped.total) == (1094, 3, 0)
