"""Data sets of the Hugging Face hub as they lie on the disk: all of a split is packed, the rest is named."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from star.data.errors import InputError
from star.data.packing.layouts import split_of
from star.data.packing.pack import PackReport, pack
from star.data.packing.sources import kind_of
from star.data.shards.listing import list_shards
from star.data.shards.tar import read_shard

Picture = Callable[..., bytes]


def captions(out: Path) -> list[str]:
    """Of all packed samples, in their order."""
    found = [group for shard in list_shards([str(out)]) for group in read_shard(shard, [])]
    return [json.loads(group.members["json"])["caption"] for group in found]  # type: ignore[arg-type]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="parquet is read by pyarrow, of the extra parquet")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_stream(folder: Path, rows: Sequence[dict[str, Any]], **state: Any) -> None:
    """As `Dataset.save_to_disk` writes it, in two files."""
    pyarrow = pytest.importorskip("pyarrow", reason="Arrow is read by pyarrow, of the extra parquet")
    folder.mkdir(parents=True)
    files = []
    for number, part in enumerate((rows[:1], rows[1:])):
        table = pyarrow.Table.from_pylist(list(part))
        files.append({"filename": f"data-{number:05d}-of-00002.arrow"})
        with pyarrow.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as writer:
            writer.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None} | state))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_an_imagefolder_is_packed_by_its_metadata(name: str, tmp_path: Path, picture: Picture) -> None:
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    for number, place in enumerate(("a.png", "more/b.png", "undescribed.png", "beside.png")):
        (folder / place).write_bytes(picture(number))
    (folder / "beside.txt").write_text("described beside it\n")
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "more/b.png", "text": "two"}]
    write_table(folder / name, [*rows, {"file_name": "gone.png", "text": "three"}])
    assert kind_of(str(folder)) == "imagefolder"
    report = pack(folder, tmp_path / "out")
    assert captions(tmp_path / "out") == ["one", "two", "described beside it"]
    assert report.skipped.reasons == {"missing picture": 1, "missing caption": 1}
    assert {fault.key.split(":")[0] for fault in report.skipped.named} == {name, "undescribed.png"}


def test_of_several_splits_train_is_packed_and_the_others_are_named(tmp_path: Path, picture: Picture) -> None:
    for number, split in enumerate(("train", "test")):
        write_table(tmp_path / "set" / split / "metadata.jsonl", [{"file_name": "x.png", "caption": f"of {split}"}])
        (tmp_path / "set" / split / "x.png").write_bytes(picture(number))

    def packed(**options: Any) -> tuple[list[str], dict[str, int]]:
        report: PackReport = pack(tmp_path / "set", tmp_path / "out", overwrite=True, **options)
        return captions(tmp_path / "out"), dict(report.skipped.reasons)

    assert packed() == (["of train"], {"another split": 1})
    assert packed(split="test") == (["of test"], {"another split": 1})
    assert packed(split="all") == (["of test", "of train"], {})
    with pytest.raises(InputError, match="has no split 'dev' but test, train"):
        packed(split="dev")
    assert kind_of(str(tmp_path / "set" / "test")) == "imagefolder"  # a split alone


def test_a_folder_of_parquet_files_is_packed_by_split(tmp_path: Path, picture: Picture) -> None:
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        rows = [{"image": {"bytes": picture(number), "path": "x.png"}, "text": f"{name[:11]}"}]
        write_table(tmp_path / "set" / "data" / f"{name}.parquet", rows)
    assert kind_of(str(tmp_path / "set")) == "tables"
    report = pack(tmp_path / "set", tmp_path / "out")
    assert captions(tmp_path / "out") == ["train-00000", "train-00001"]
    assert report.skipped.reasons == {"another split": 1}
    assert pack(tmp_path / "set", tmp_path / "all", split="all").samples == 3


def test_what_save_to_disk_wrote_is_packed(tmp_path: Path, picture: Picture) -> None:
    rows = [{"image": {"bytes": picture(n), "path": None}, "text": f"row {n}", "more": n} for n in range(3)]
    write_stream(tmp_path / "one", rows)
    assert kind_of(str(tmp_path / "one")) == "dataset"
    pack(tmp_path / "one", tmp_path / "out")
    assert captions(tmp_path / "out") == ["row 0", "row 1", "row 2"]

    for split in ("test", "train"):
        write_stream(tmp_path / "dict" / split, rows[:2])
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    report = pack(tmp_path / "dict", tmp_path / "both")
    assert (report.samples, report.skipped.reasons) == (2, {"another split": 1})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "is a choice of rows"),
        ({"_data_files": [{"filename": "../../secret.arrow"}]}, "expected a name beside it"),
        ({"_data_files": []}, "does not list what it describes"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow is no file"),
    ],
)
def test_a_damaged_data_set_is_one_sentence(
    state: dict[str, Any], message: str, tmp_path: Path, picture: Picture
) -> None:
    write_stream(tmp_path / "set", [{"image": {"bytes": picture(0), "path": None}, "text": "a"}] * 2, **state)
    with pytest.raises(InputError, match=message):
        pack(tmp_path / "set", tmp_path / "out")


def test_a_stream_that_was_cut_costs_what_is_missing(tmp_path: Path, picture: Picture) -> None:
    write_stream(tmp_path / "set", [{"image": {"bytes": picture(n), "path": None}, "text": str(n)} for n in range(3)])
    path = tmp_path / "set" / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:-200])
    report = pack(tmp_path / "set", tmp_path / "out")
    assert report.samples == 1
    assert report.skipped.reasons == {"broken row": 1}


def test_two_tables_that_describe_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("metadata.csv", "metadata.jsonl"):
        write_table(tmp_path / name, [{"file_name": "a.png", "text": "one"}])
    with pytest.raises(InputError, match=r"metadata\.csv as well as metadata\.jsonl"):
        kind_of(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("default/validation/0000.parquet", "validation"),
        ("my_eval.parquet", "test"),
        ("trainer/constraints.parquet", ""),
    ],
)
def test_words_of_a_path_tell_its_split(path: str, split: str) -> None:
    assert split_of(path) == split


def test_datasets_own_files_are_read(tmp_path: Path, picture: Picture) -> None:
    datasets = pytest.importorskip("datasets", reason="compares with what the library datasets itself writes")
    images = [{"bytes": picture(n), "path": None} for n in range(5)]
    made = datasets.Dataset.from_dict(
        {"image": images, "text": [f"row {n}" for n in range(5)]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    made.save_to_disk(str(tmp_path / "one"), num_shards=2)
    made.train_test_split(0.4, seed=0).save_to_disk(str(tmp_path / "dict"))
    made.to_parquet(tmp_path / "tables" / "train-00000-of-00001.parquet")
    for name, count in (("one", 5), ("dict", 3), ("tables", 5)):
        assert pack(tmp_path / name, tmp_path / f"{name}-out").samples == count
    assert sorted(captions(tmp_path / "one-out")) == [f"row {n}" for n in range(5)]
