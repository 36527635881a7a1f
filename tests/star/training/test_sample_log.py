"""Two real processes of a training log what they learnt from: every key exactly once per epoch."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.tiny import tiny_tokenizer, tiny_transformer


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--precompute=true"], ["--precompute=false", "--workers=1"]])
def test_two_processes_learn_from_every_picture_once_per_epoch(options: list[str], tmp_path: Path) -> None:
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(tmp_path / "tokenizer")
    generator.text_encoder.save_pretrained(tmp_path / "text")
    write(tmp_path / "data", count=40, size=8, test=0)
    data = str(tmp_path / "data" / "train")
    run = ["--run.steps=10", "--run.batch_size=8", "--run.sample_every=0", "--held_out=0.0", "--log_samples=true"]
    frozen = [f"--tokenizer={tmp_path / 'tokenizer'}", f"--text_encoder={tmp_path / 'text'}", "--run.precision=no"]
    command = ["train", "star", "--preset", "test", "--data", data, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "star.cli"]
        + [*command, *run, *frozen, *options],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [
        json.loads(line)
        for rank in range(2)
        for line in (tmp_path / "run" / f"samples-{rank}.jsonl").read_text().splitlines()
    ]
    seen = Counter(pair for line in lines for pair in zip(line["epochs"], line["keys"], strict=True))
    every = Pipeline(DataConfig(shards=(data,), resolution=8), batch_size=8).one_pass()
    keys = [key for batch in every for key in batch.keys]
    assert seen == Counter({(epoch, key): 1 for epoch in range(2) for key in keys})
