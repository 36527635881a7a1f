"""`star measure`: scores of a tokenizer on the held-out half of shards made in the test."""

import json
from pathlib import Path

import pytest

from star.cli import main
from star.data.images import read_png
from star.data.synthetic import write
from star.tiny import tiny_tokenizer


def test_measure_scores_held_out_shards_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data", count=12, size=8, test=5)
    tiny_tokenizer().save(tmp_path / "tokenizer", card="tiny")
    data = [str(tmp_path / "data" / "train"), str(tmp_path / "data" / "test")]
    out = tmp_path / "out"
    assert main(["measure", str(tmp_path / "tokenizer"), "--data", *data, "--out", str(out), "--device", "cpu"]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["pictures"] == 5
    assert (scores["device"], scores["dtype"]) == ("cpu", "float32")
    assert scores["psnr"] == scores["psnr_at_cut"][-1]
    assert read_png(out / "reconstructions.png").shape[0] == 3
    assert "PSNR" in capsys.readouterr().out


def test_the_tokenizer_that_ships_is_found_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data", count=4, size=64)
    command = ["measure", "tokenizer-emoji", "--data", str(tmp_path / "data" / "train"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "of 1024 codes used" in capsys.readouterr().out
    exact = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert main([*command, "--dtype", "bfloat16"]) == 0
    rounded = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert rounded["dtype"] == "bfloat16"
    assert rounded["psnr"] != exact["psnr"]
    assert abs(rounded["psnr"] - exact["psnr"]) < 1
    assert main(["measure", "tokenizer-emojy", "--data", str(tmp_path)]) == 2


def test_a_missing_tokenizer_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(tmp_path / "nothing"), "--data", str(tmp_path)]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
