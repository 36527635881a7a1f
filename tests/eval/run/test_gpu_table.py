"""The script for a GPU, rehearsed on a CPU at tiny size; on a GPU at the smallest released shape."""

import json
from pathlib import Path

import pytest
import torch

from star.eval.run import gpu_rows
from star.eval.run.gpu_table import ceilings, drawing, main, summary

KINDS = ["packages", "training", *["attention"] * 4, "neighbourhood", "neighbourhood", "in_pieces", "drawing"]
TINY = ["--device", "cpu", "--shapes", "d1-64", "--batch", "1"]


def test_every_row_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_rows, "backends", lambda: ("sdpa", "eager", "scalewise", "flex"))
    out = tmp_path / "rows.json"
    command = [*TINY, "--train-batch", "2", "--side", "256", "--repetitions", "1", "--seconds", "3600"]
    assert main([*command, "--out", str(out)]) == 0
    told, _, table = capsys.readouterr().out.partition("\n\n")
    top, *rows = json.loads(out.read_text())
    assert top["products"] > 0
    assert [row["kind"] for row in rows] == KINDS
    assert len(told.splitlines()) == 1 + len(rows)
    assert len(table.splitlines()) == 1 + len(rows)
    by_kind = {row["kind"]: row for row in rows}
    drawn, trained = by_kind["drawing"], by_kind["training"]
    assert drawn["ours_ms"] > 0
    assert drawn["launches"] == drawn["launches_eager"] > 200
    assert 0 < drawn["roofline"] < 2
    assert trained["tokens_per_second"] > 0
    assert 0 < trained["mfu"] < 2
    assert trained["ratio"] == pytest.approx(trained["released_ms"] / trained["ours_ms"])
    attention = {row["backend"]: row for row in rows if row["kind"] == "attention"}
    assert attention["scalewise"]["shape"] == "30 tokens"
    assert attention["scalewise"]["ms"] > 0
    assert "no gradient on a CPU" in attention["flex"]["failure"]
    tiled, natten = [row for row in rows if row["kind"] == "neighbourhood"]
    assert tiled["ms"] > tiled["forward_ms"] > 0
    assert "expected a CUDA device" in natten["failure"]
    assert by_kind["in_pieces"]["processes"] == 1
    assert by_kind["in_pieces"]["ms"] > 0
    assert by_kind["packages"]["torch"] == torch.__version__


def test_no_row_begins_when_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--side", "64", "--seconds", "-1"]) == 0
    told, _, table = capsys.readouterr().out.partition("\n\n")
    rows = len(KINDS) - 4 + len(gpu_rows.backends())
    assert told.count("not measured") == rows
    assert table.count("no time was left") == rows


def test_goals_are_judged() -> None:
    figures = {"ours_ms": 1.0, "released_ms": 2.0, "ratio": 1.24, "released_mfu": 0.2, "tokens_per_second": 5.0}
    row = {"kind": "training", "batch": 2, **figures}
    _, small, large = summary([row | {"shape": "d16-256", "mfu": 0.5}, row | {"shape": "d30-256", "mfu": 0.4}])
    assert "ratio 1.24 (goal 1.25: NOT reached)" in small
    assert "; mfu 0.5 (goal 0.5: reached);" in small
    assert "; mfu 0.4; " in large
    assert small.startswith("training  d16-256, batch 2  ours_ms 1; ")


@pytest.mark.gpu
def test_a_gpu_draws_and_trains_the_released_shape() -> None:
    device = torch.device("cuda")
    top = ceilings(device)
    row = drawing("d16-256", 1, device, top, 3)
    assert row.ratio > 1
    assert row.launches < 0.2 * row.launches_eager
    assert row.launches_eager < 20000
    assert gpu_rows.training("d16-256", 8, device, top.products, 3).ratio > 1
