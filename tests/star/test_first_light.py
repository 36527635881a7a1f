"""From nothing to a picture with the commands of the README: shards, three trainings, a drawing."""

import json
import shutil
from pathlib import Path

import pytest

from star.cli import main
from star.data.images import read_png
from star.generators.pretrained import ModelDirectory


def star(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/{clip,tokenizer,star} of the test presets on synthetic shards."""
    folder = tmp_path_factory.mktemp("first-light")
    star("data", "synthetic", folder / "shards", "--count", 48, "--test", 12, "--size", 16)
    for network in ("clip", "tokenizer"):
        data = ("--data", folder / "shards/train", folder / "shards/test")
        star("train", network, "--preset", "test", *data, "--out", folder / network, "--run.trackers")
    star(
        *("train", "star", "--preset", "test", "--data", folder / "shards/train", "--out", folder / "star"),
        *(f"--tokenizer={folder}/tokenizer/model", f"--text_encoder={folder}/clip/model", "--run.trackers"),
    )
    return folder


def test_trained_model_draws(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    star("sample", "a red circle", "a blue square", "--model", runs / "star/model", "--out", tmp_path)
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == ["a-red-circle-0.png", "a-blue-square-0.png", "grid.png"]
    height, width = ModelDirectory.read(runs / "star/model").about["resolution"]
    assert read_png(paths[0]).shape == (3, height, width)


@pytest.mark.parametrize("network", ["clip", "tokenizer", "star"])
def test_run_leaves_its_config_metrics_and_pictures(runs: Path, network: str) -> None:
    lines = [json.loads(line) for line in (runs / network / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((runs / network / "config.json").read_text())
    steps = config.get("train", config)["run"]["steps"]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert any("loss" in name for name in lines[0])
    assert all(line["images"] > 0 for line in lines)


def test_model_with_another_tokenizer_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(runs / "star/model", tmp_path / "model")
    config = tmp_path / "model/config.json"
    values = json.loads(config.read_text())
    values["references"]["tokenizer"]["digest"] = "0" * 64
    config.write_text(json.dumps(values))
    assert main(["sample", "a cat", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    assert "were not trained together" in capsys.readouterr().err
