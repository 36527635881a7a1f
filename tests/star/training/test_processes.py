"""Whole trainings by two real processes, through the command line: they learn what one process learns."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.tiny import tiny_tokenizer, tiny_transformer

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow

COMMON = ["--run.steps=20", "--run.batch_size=8", "--run.log_every=1", "--run.checkpoint_every=20"]
COMMON += ["--run.sample_every=0"]
CALM = ["--caption_dropout=0.0", "--code_noise=0.0", "--held_out=0.0"]  # no draws that belong to a process
# What a process draws for itself (noise, augmentation) or compares within itself is off; latents belong to pictures.
STILL = [
    "--codebook.restart_below=0.0",
    "--codebook.scale_floor=0.0",
]  # codes reborn from pictures of a process
GAN = ["--noise=none", "--augment", "--path_length.weight=0.0", "--discriminator.group=1"]
GAN += ["--lr=1e-4", "--lr_discriminator=1e-4"]  # Adam without momentum makes full steps of rounding errors


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic shards, a tokenizer and a text encoder, all tiny."""
    root = tmp_path_factory.mktemp("house")
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(root / "tokenizer")
    generator.text_encoder.save_pretrained(root / "text")
    write(root / "data", count=40, size=16, test=8)
    return root


def start(arguments: list[str], out: Path, processes: int) -> list[dict[str, Any]]:
    """Trains, and returns the lines of its log."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "star.cli", "train", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = json.loads((out / "checkpoints" / "step-00000020" / "run.json").read_text())
    assert checkpoint["processes"] == processes, "there were not as many processes as asked for"
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def arguments(network: str, house: Path) -> list[str]:
    data = ["--data", str(house / "data" / "train")]
    frozen = [f"--tokenizer={house / 'tokenizer'}", f"--text_encoder={house / 'text'}"]
    return {
        "tokenizer": ["tokenizer", "--preset", "test", *data, *COMMON, *STILL],
        "star": ["star", "--preset", "test", *data, *COMMON, *CALM, *frozen],
        "star-muon": ["star", "--preset", "test", *data, *COMMON, *CALM, *frozen, "--optimizer=muon"],
        "star-fsdp2": ["star", "--preset", "test", *data, *COMMON, *CALM, *frozen, "--run.sharding=fsdp2"],
        "star-fsdp2-bf16": [
            *("star", "--preset", "test", *data, *COMMON, *CALM, *frozen),
            *("--run.sharding=fsdp2", "--run.precision=bf16"),
        ],
        "styleformer": ["styleformer", "--preset", "test", *data, *COMMON, *GAN],
    }[network]


@pytest.mark.parametrize("network", ["tokenizer", "star", "star-muon", "star-fsdp2", "star-fsdp2-bf16", "styleformer"])
def test_two_processes_log_the_losses_of_one(network: str, house: Path, tmp_path: Path) -> None:
    one = start(arguments(network, house), tmp_path / "one", 1)
    two = start(arguments(network, house), tmp_path / "two", 2)
    assert len(one) == len(two) == 20
    tolerance = 1e-3 if network.endswith("bf16") else 1e-5  # sums over fewer pictures are rounded to other bits
    for line, other in zip(one, two, strict=True):
        losses = [name for name in line if name.startswith("loss")]
        assert losses
        for name in losses:
            assert other[name] == pytest.approx(line[name], rel=tolerance, abs=tolerance), (
                f"{name} at step {line['step']}"
            )
