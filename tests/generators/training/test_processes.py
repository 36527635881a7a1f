"""Two processes learn what one does, and either continues what the other began."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


WRAPPERS = {"none": "DistributedDataParallel", "fsdp2": "FSDPSequential"}
PARAMETERS = 6 * 16 + 16 + 16 * 5 + 5 + 5 + 1


def start(out: Path, processes: int, resume: bool = False, stop_at: int = -1, sharding: str = "none") -> int:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "tests.generators.training.processes",
        out,
        "resume" if resume else "new",
        stop_at,
        sharding,
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=environment).returncode


def learnt(out: Path, processes: int, sharding: str = "none") -> dict[str, Any]:
    results = [torch.load(out / f"rank-{rank}.pt") for rank in range(processes)]
    assert all(result["world"] == processes for result in results), "there were not as many processes as asked for"
    assert results[0]["wrapper"] == (WRAPPERS[sharding] if processes > 1 else "Sequential")
    held = [result["parameters"] for result in results]
    if sharding == "none":
        assert held == [PARAMETERS] * processes
    else:
        assert sum(held) == PARAMETERS, "the pieces are not the whole"
        assert max(held) < PARAMETERS or processes == 1
    for result in results[1:]:
        assert all(torch.equal(value, results[0]["state"][name]) for name, value in result["state"].items())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [12, 24, 36, 48, 60, 72]
    return {"loss": torch.tensor([line["loss"] for line in lines]), **results[0]["state"]}


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert start(out, 1) == 0
    return learnt(out, 1)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_learn_what_one_does(tmp_path: Path, alone: dict[str, Any], sharding: str) -> None:
    assert start(tmp_path / "two", 2, sharding=sharding) == 0
    compare(alone, learnt(tmp_path / "two", 2, sharding))


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_of_two_processes_is_continued_by_others(
    tmp_path: Path, alone: dict[str, Any], sharding: str, processes: int
) -> None:
    assert start(tmp_path / "parts", 2, stop_at=5, sharding=sharding) != 0
    assert (tmp_path / "parts/checkpoints/step-00000004/pieces").is_dir() == (sharding == "fsdp2")
    assert start(tmp_path / "parts", processes, resume=True, sharding=sharding) == 0
    compare(alone, learnt(tmp_path / "parts", processes, sharding))
