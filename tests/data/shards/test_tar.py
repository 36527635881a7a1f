"""Shards are found however they are named, and every fault in them is told, where tarfile would stay silent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star.data.captions import captions_of
from star.data.errors import InputError
from star.data.shards.faults import Fault, SampleError
from star.data.shards.listing import list_shards
from star.data.shards.tar import Group, fetch, image_bytes, index_shard, is_seekable, read_shard


def by_place(shard: Path, faults: list[Fault]) -> list[Group]:
    return [fetch(str(shard), group) for group in index_shard(str(shard), faults)]


def by_stream(shard: Path, faults: list[Fault]) -> list[Group]:
    return list(read_shard(str(shard), faults))


def test_folders_globs_ranges_lists_and_urls_are_expanded_in_order(
    tmp_path: Path, make_shard: Callable[..., Path]
) -> None:
    names = ["b/x-1.tar", "b/x-0.tar", "b/y-0.tar.gz", "a/z.tar"]
    for name in names:
        make_shard(name, [])
    (tmp_path / "b" / "index.json").write_text("{}")
    (tmp_path / "b" / ".hidden.tar").write_bytes(b"")
    (tmp_path / "b" / "x-2.tar.part").write_bytes(b"")
    b = [str(tmp_path / "b" / name) for name in ("x-0.tar", "x-1.tar", "y-0.tar.gz")]
    z = str(tmp_path / "a" / "z.tar")
    assert list_shards([str(tmp_path / "b")]) == b
    assert list_shards([z, str(tmp_path / "b")]) == [z, *b]
    assert list_shards([str(tmp_path / "b" / "x-*"), z]) == [*b[:2], z]
    assert list_shards([str(tmp_path / "b" / "*.tar*")]) == b
    assert list_shards([str(tmp_path / "*")]) == [z, *b]
    assert list_shards([str(tmp_path / "b" / "x-{0..1}.tar")] * 2) == b[:2]
    assert list_shards(["http://host/x-{00..02}.tar"]) == [f"http://host/x-0{number}.tar" for number in range(3)]
    assert list_shards(["pipe:cat {a,b}.tar"]) == ["pipe:cat {a,b}.tar"]
    listing = tmp_path / "b" / "list.txt"
    listing.write_text("# all of it\n\nx-{0..1}.tar  # two\n../a/z.tar\nhttp://host/a#b.tar\npipe:cat x # y\n")
    assert list_shards([str(listing)], allow_pipe=True) == [
        *b[:2],
        str(tmp_path / "b" / "../a/z.tar"),
        "http://host/a#b.tar",
        "pipe:cat x # y",
    ]


def test_specs_that_match_nothing_are_refused_but_holes_stay_to_be_counted(
    tmp_path: Path, make_shard: Callable[..., Path]
) -> None:
    make_shard("x-1.tar", range(1))
    (tmp_path / "empty").mkdir()
    for spec in ("empty", "*.tgz", "none.tar", "y-{0..3}.tar", "nowhere"):
        with pytest.raises(InputError, match="No shards at"):
            list_shards([str(tmp_path / spec)])
    with pytest.raises(InputError, match="No shards were given"):
        list_shards([])
    holes = list_shards([str(tmp_path / "x-{0..2}.tar")])
    assert [Path(shard).name for shard in holes] == ["x-0.tar", "x-1.tar", "x-2.tar"]
    faults: list[Fault] = []
    assert [len(list(read_shard(shard, faults))) for shard in holes] == [0, 1, 0]
    assert [fault.reason for fault in faults] == ["cannot be opened"] * 2


def test_lists_that_name_themselves_or_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").write_text("loop.txt\n")
    with pytest.raises(InputError, match="nested"):
        list_shards([str(tmp_path / "loop.txt")])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xff")
    with pytest.raises(InputError, match="neither"):
        list_shards([str(tmp_path / "picture.png")])
    (tmp_path / "bad.txt").write_text("*.tar\n")
    with pytest.raises(InputError, match="matches nothing"):
        list_shards([str(tmp_path / "bad.txt")])


def test_reading_by_place_and_by_stream_agree(make_shard: Callable[..., Path]) -> None:
    shard, faults = make_shard("a.tar", range(5)), list[Fault]()
    assert is_seekable(str(shard))
    groups = by_stream(shard, faults)
    assert [group.key for group in groups] == [f"k{number:03d}" for number in range(5)]
    assert groups == by_place(shard, faults)
    packed = make_shard("a.tar.gz", range(5), mode="w:gz")
    assert not is_seekable(str(packed))
    assert by_stream(packed, faults) == groups
    assert not faults


def test_names_without_extension_and_metadata_are_nobodys_samples(tmp_path: Path, tar: Callable[..., Path]) -> None:
    members = [("README", b""), ("d/._k.png", b""), ("d/k.PNG", b"1"), ("d/k.Txt", b"2"), ("d/k.seg.png", b"3")]
    shard, faults = tar(tmp_path / "a.tar", members), list[Fault]()
    assert by_stream(shard, faults) == [Group("d/k", {"png": b"1", "txt": b"2", "seg.png": b"3"})]
    assert not faults


@pytest.mark.parametrize("read", [by_place, by_stream])
@pytest.mark.parametrize("where", ["in data", "in header", "between members", "damaged header"])
def test_a_cut_or_damaged_tar_keeps_what_stands_before_and_is_told(
    read: Callable[[Path, list[Fault]], list[Group]], where: str, make_shard: Callable[..., Path]
) -> None:
    shard = make_shard("a.tar", range(4))
    places = [group.members for group in index_shard(str(shard), [])]
    third: Any = places[2]["png"]
    data = shard.read_bytes()
    if where == "damaged header":
        shard.write_bytes(data[: third.offset - 512] + b"\xff" * 512 + data[third.offset :])
    else:
        shard.write_bytes(
            data[
                : {"in data": third.offset + 5, "in header": third.offset - 5, "between members": third.offset - 512}[
                    where
                ]
            ]
        )
    faults: list[Fault] = []
    assert [group.key for group in read(shard, faults)] == ["k000", "k001"]
    assert [(fault.shard, fault.reason) for fault in faults] == [(str(shard), "truncated or damaged tar")]


def test_a_cut_compressed_tar_and_a_file_that_is_none(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    shard = make_shard("a.tar.gz", range(20), mode="w:gz")
    shard.write_bytes(shard.read_bytes()[:3000])
    empty, text = tmp_path / "b.tar", tmp_path / "c.tar"
    empty.write_bytes(b"")
    text.write_text("no tar at all" * 100)
    faults: list[Fault] = []
    assert 0 < len(by_stream(shard, faults)) < 20
    assert by_stream(empty, faults) == by_stream(text, faults) == []
    assert [fault.shard for fault in faults] == [str(shard), str(empty), str(text)]
    assert {fault.reason for fault in faults} == {"truncated or damaged tar"}


@pytest.mark.parametrize("read", [by_place, by_stream])
def test_a_key_that_comes_back_is_told_and_used_once(
    read: Callable[[Path, list[Fault]], list[Group]], tmp_path: Path, tar: Callable[..., Path]
) -> None:
    members = [("a.png", b"1"), ("a.png", b"2"), ("b.png", b"3"), ("a.png", b"4"), ("a.txt", b"5"), ("c.png", b"6")]
    shard, faults = tar(tmp_path / "a.tar", members), list[Fault]()
    assert read(shard, faults) == [Group(key, {"png": data}) for key, data in (("a", b"1"), ("b", b"3"), ("c", b"6"))]
    assert {(fault.reason, fault.key) for fault in faults} == {("duplicate key", "a")}


def test_pipes_and_http_are_streamed_and_their_failures_told(make_shard: Callable[..., Path], server: str) -> None:
    shard, faults = make_shard("a.tar", range(3)), list[Fault]()
    groups = by_stream(shard, faults)
    assert list(read_shard(f"pipe:cat {shard}", faults)) == groups
    assert list(read_shard(f"{server}/a.tar", faults)) == groups
    assert not faults
    first = next(read_shard(f"pipe:cat {shard}", faults))  # left early, which is nobody's fault
    assert first == groups[0]
    assert not faults
    assert list(read_shard("pipe:false", faults)) == []
    assert "cannot be opened" in {fault.reason for fault in faults}
    faults.clear()
    assert list(read_shard(f"{server}/missing.tar", faults)) == []
    assert "cannot be opened" in {fault.reason for fault in faults}


def test_captions_come_from_json_or_text_the_main_one_first() -> None:
    assert captions_of({"json": b'{"caption": "a", "captions": ["b", " a ", "", "c"]}'})[0] == ("a", "b", "c")
    assert captions_of({"json": b'{"captions": ["b", "c"], "n": 1}'}) == (("b", "c"), {"captions": ["b", "c"], "n": 1})
    assert captions_of({"json": b'{"n": 1}', "txt": "é\n".encode()}) == (("é",), {"n": 1})
    assert captions_of({"txt": b"a cat\n"}) == (("a cat",), {})


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"png": b""}, "missing caption"),
        ({"json": b'{"captions": []}'}, "missing caption"),
        ({"json": b'{"caption": 7}'}, "missing caption"),
        ({"json": b'{"caption": " "}'}, "empty caption"),
        ({"txt": b"\n"}, "empty caption"),
        ({"txt": b"\xff\xfe"}, "missing caption"),
        ({"json": b'{"caption": '}, "broken json"),
        ({"json": b"\xff"}, "broken json"),
        ({"json": b"[1]"}, "broken json"),
    ],
)
def test_captions_that_are_none_have_a_reason(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(SampleError) as caught:
        captions_of(members)
    assert caught.value.reason == reason


def test_a_sample_without_a_picture_has_a_reason() -> None:
    assert image_bytes({"json": b"", "webp": b"1"}) == ("webp", b"1")
    with pytest.raises(SampleError, match="only json, mp4") as caught:
        image_bytes({"mp4": b"", "json": b""})
    assert caught.value.reason == "missing picture"


def test_a_shard_that_shrinks_or_vanishes_after_indexing_is_told(make_shard: Callable[..., Path]) -> None:
    shard = make_shard("a.tar", range(3))
    groups = index_shard(str(shard), [])
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(SampleError, match="bytes of"):
        fetch(str(shard), groups[2])
    shard.unlink()
    with pytest.raises(SampleError) as caught:
        fetch(str(shard), groups[0])
    assert caught.value.reason == "cannot be opened"
