"""The script for a GPU, rehearsed on a CPU at tiny size; on a GPU at the smallest released shape."""

import json
from pathlib import Path

import pytest
import torch

from star.eval.run.gpu_table import ceilings, drawing, main, training


def test_every_row_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    command = ["--device", "cpu", "--shapes", "d1-64", "--batch", "1", "--train-batch", "2", "--side", "256"]
    command += ["--repetitions", "1", "--seconds", "3600"]
    assert main([*command, "--out", str(out)]) == 0
    told = capsys.readouterr().out.splitlines()
    top, *rows = json.loads(out.read_text())
    assert top["products"] > 0
    assert [row["kind"] for row in rows] == ["drawing", "training"]
    assert len(told) == 1 + len(rows)
    assert rows[0]["ours_ms"] > 0
    assert rows[0]["launches"] == rows[0]["launches_eager"] > 200
    assert 0 < rows[0]["roofline"] < 2
    assert rows[1]["tokens_per_second"] > 0
    assert 0 < rows[1]["mfu"] < 2


def test_no_row_begins_when_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--shapes", "d1-64", "--batch", "1", "--side", "64", "--seconds", "-1"]) == 0
    assert capsys.readouterr().out.count("not measured") == 2


@pytest.mark.gpu
def test_a_gpu_draws_and_trains_the_released_shape() -> None:
    device = torch.device("cuda")
    top = ceilings(device)
    row = drawing("d16-256", 1, device, top, 3)
    assert row.ratio > 1
    assert row.launches < 0.2 * row.launches_eager
    assert row.launches_eager < 20000
    assert training("d16-256", 8, device, top, 3).mfu > 0.05
