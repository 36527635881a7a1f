"""A training that is killed ten times, at moments that it does not choose, ends where an undisturbed one does."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.tiny import tiny_tokenizer, tiny_transformer

ROOT = Path(__file__).parents[3]
STEPS, KILLS = 240, 10
pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(tmp_path / "tokenizer")
    generator.text_encoder.save_pretrained(tmp_path / "text")
    write(tmp_path / "data", count=40, size=16, test=0)
    fields: dict[str, Any] = {"run.steps": STEPS, "run.checkpoint_every": 7, "run.log_every": 10, "run.sample_every": 0}
    fields |= {
        "validate_every": 50,
        "dropout": 0.1,
        "tokenizer": tmp_path / "tokenizer",
        "text_encoder": tmp_path / "text",
    }
    options = [f"--{name}={value}" for name, value in fields.items()]
    return ["-m", "star.cli", "train", "star", "--preset", "test", "--data", str(tmp_path / "data" / "train"), *options]


def begin(command: list[str], out: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command, "--out", str(out), *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finished(out: Path) -> int:
    """Steps of the newest checkpoint."""
    return max((int(path.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*")), default=0)


def test_ten_kills_change_nothing(command: list[str], tmp_path: Path) -> None:
    assert begin(command, tmp_path / "whole").wait() == 0
    chance, out = random.Random(0), tmp_path / "killed"
    for kill in range(KILLS):
        training = begin(command, out, *(["--resume"] if kill else []))
        reach = finished(out) + chance.randint(1, STEPS // KILLS - 8)  # a step somewhere between two checkpoints
        while training.poll() is None and finished(out) < reach:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.2)
        assert training.poll() is None, "it ended before it could be killed"
        training.send_signal(signal.SIGKILL)
        training.wait()
    assert finished(out) < STEPS
    assert begin(command, out, "--resume").wait() == 0
    whole, killed = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "whole", out))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    assert (tmp_path / "whole" / "metrics.jsonl").read_text().count("\n") == STEPS // 10
    assert (out / "metrics.jsonl").read_text().count("\n") == STEPS // 10
