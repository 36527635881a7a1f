"""Two processes learn what one does, and either continues what the other began."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(out: Path, processes: int, resume: bool = False, stop_at: int = -1) -> int:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "tests.generators.processes",
        out,
        "resume" if resume else "new",
        stop_at,
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=environment).returncode


def learnt(out: Path, processes: int) -> dict[str, Any]:
    results = [torch.load(out / f"rank-{rank}.pt") for rank in range(processes)]
    assert all(result["world"] == processes for result in results), "there were not as many processes as asked for"
    assert results[0]["wrapper"] == ("DistributedDataParallel" if processes > 1 else "Sequential")
    for result in results[1:]:
        assert all(torch.equal(value, results[0]["state"][name]) for name, value in result["state"].items())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [8, 16, 24, 32, 40, 48]
    return {"loss": torch.tensor([line["loss"] for line in lines]), **results[0]["state"]}


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    for processes in (1, 2):
        assert start(tmp_path / str(processes), processes) == 0
    compare(learnt(tmp_path / "1", 1), learnt(tmp_path / "2", 2))


def test_a_run_of_two_processes_is_continued_by_one(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", 1) == 0
    assert start(tmp_path / "parts", 2, stop_at=5) != 0
    assert start(tmp_path / "parts", 1, resume=True) == 0
    compare(learnt(tmp_path / "whole", 1), learnt(tmp_path / "parts", 1))
