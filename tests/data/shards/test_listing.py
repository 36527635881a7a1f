"""Lists and indexes of shards from anybody: nothing is run, nothing else is read, nothing is expanded without end."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest

from star.cli import main
from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.check import check
from star.data.shards.listing import list_shards, pipes_allowed
from star.data.shards.splits import training_shards

MakeShard = Callable[..., Path]


@pytest.mark.parametrize(
    "name",
    [
        "pipe:touch {ran}; cat {shard}",
        "file://{shard}",
        "{shard}",
        "//localhost/a.tar",
        "http://localhost:1/a.tar",
        "zip://a.tar::file://{shard}",
        "simplecache::file://{shard}",
        "../a.tar",
        "sub/../../a.tar",
        "..\\a.tar",
        "a.tar\npipe:touch {ran}.tar",
        "notes.txt",
        "",
    ],
)
@pytest.mark.parametrize("form", [dict, list])
def test_an_index_names_files_beside_it_and_nothing_else(
    name: str, form: type, make_shard: MakeShard, server: str, tmp_path: Path
) -> None:
    shard = make_shard("a.tar", range(2))
    ran = tmp_path / "ran"
    evil = name.format(ran=ran, shard=shard)
    entries = {"a.tar": {"samples": 2}, evil: {"samples": 2}}
    (tmp_path / "index.json").write_text(json.dumps({"shards": entries if form is dict else list(entries)}))
    for use in (
        lambda: check(f"{server}/"),
        lambda: pipeline_of(f"{server}/"),
        lambda: training_shards([f"{server}/"]),
    ):
        with pytest.raises(InputError, match=r"index\.json names .* expected names of \.tar files in its own folder"):
            use()
    assert not ran.exists()


def pipeline_of(shard: str) -> Pipeline:
    return Pipeline(DataConfig(shards=(shard,), resolution=8), batch_size=2)


def test_odd_but_plain_names_in_an_index_are_found_and_counted(
    make_shard: MakeShard, server: str, tmp_path: Path
) -> None:
    names = ["a b.tar", "c%20d.tar", "e#f?.tar"]
    for number, name in enumerate(names):
        make_shard(name, [number])
    (tmp_path / "index.json").write_text(json.dumps({"shards": {name: {"samples": 1} for name in names}}), "utf-8-sig")
    pipeline = Pipeline(DataConfig(shards=(f"{server}/",), resolution=8, shuffle=False), batch_size=1)
    assert next(pipeline.batches(1)).keys == ["k001"]
    assert not pipeline.report.named


@pytest.mark.parametrize("body", ["[" * 100_000, '{"shards": 3}', "[]", '{"shards": [{}]}', '{"shards": [7]}', "x"])
def test_an_index_that_is_none_is_one_sentence(body: str, server: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(body)
    with pytest.raises(InputError):
        list_shards([f"{server}/"])


def test_a_store_holds_no_chains() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/chains/x::file:etc.tar", b"")
    try:
        with pytest.raises(InputError, match="taken for a chain"):
            list_shards(["memory://chains"])
    finally:
        store.rm("/chains", recursive=True)


def test_a_text_list_names_commands_only_where_that_is_allowed(
    make_shard: MakeShard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, ran = make_shard("a.tar", range(2)), tmp_path / "ran"
    command = f"pipe:touch {ran}; cat {shard}"
    (tmp_path / "inner.txt").write_text(f"{command}\n")
    listing = tmp_path / "list.txt"
    listing.write_text("inner.txt\n")
    with pytest.raises(InputError, match="--allow-pipe"):
        list_shards([str(listing)])
    with pytest.raises(InputError, match="--allow-pipe"):
        pipeline_of(str(listing))
    assert main(["data", "check", str(listing)]) == 2
    assert not ran.exists()
    assert list_shards([str(listing)], allow_pipe=True) == [command]
    with pytest.raises(InputError, match="--allow-pipe"):
        list_shards([str(listing)])
    with pipes_allowed():
        assert training_shards([str(listing)]) == (command,)
    allowed = DataConfig(shards=(str(listing),), resolution=8, allow_pipe=True)
    assert len(next(Pipeline(allowed, batch_size=2).one_pass())) == 2
    assert main(["data", "check", "--allow-pipe", str(listing)]) == 0
    assert ran.exists()
    capsys.readouterr()


def test_lists_are_utf8_with_or_without_a_mark(make_shard: MakeShard, tmp_path: Path) -> None:
    shard = make_shard("Äpfel 🍎.tar", range(1))
    for number, encoding in enumerate(("utf-8", "utf-8-sig")):
        listing = tmp_path / f"list{number}.txt"
        listing.write_text(f"{shard.name}\r\n", encoding=encoding)
        assert list_shards([str(listing)]) == [str(shard)]
    listing.write_bytes("Äpfel.tar\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"neither a \.tar shard nor a readable text list"):
        list_shards([str(listing)])


@pytest.mark.parametrize("spec", ["x{0..99999999999}.tar", "x" + "{a,b}" * 40 + ".tar", "{1..9999}" * 3, "x{0..2.tar{"])
def test_braces_are_bounded_before_they_are_spelt_out(spec: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        list_shards([spec])
    (tmp_path / "list.txt").write_text(f"{spec}\n")
    with pytest.raises(InputError):
        list_shards([str(tmp_path / "list.txt")])


@pytest.mark.parametrize(
    "line", ["[" * 2000 + "a.tar", "a." + "9" * 400, "~nobody-of-this-name/a.tar", "a\0.tar", "a\0*.tar"]
)
def test_names_that_no_path_has_are_one_sentence(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(InputError):
        list_shards([str(tmp_path / "list.txt")])


def test_pipes_and_devices_are_no_lists(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    for path in (tmp_path / "list.txt", Path("/dev/zero")):
        with pytest.raises(InputError):
            list_shards([str(path)])
