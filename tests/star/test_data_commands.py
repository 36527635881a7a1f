"""`star data encode`, `star data benchmark` and `star data bench`, as they are typed."""

import re
from pathlib import Path
from typing import get_args

import pytest

from star.cli import main
from star.commands import benchmark, encode
from star.data.benchmark import Split
from star.data.images import CROPS
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.tiny import tiny_tokenizer, tiny_transformer


@pytest.fixture
def house(tmp_path: Path) -> Path:
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(tmp_path / "tokenizer")
    generator.text_encoder.save_pretrained(tmp_path / "text")
    write(tmp_path / "data", count=12, size=8, test=0)
    return tmp_path


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_encode_says_what_it_wrote_and_goes_on(house: Path, capsys: pytest.CaptureFixture) -> None:
    networks = ("--tokenizer", house / "tokenizer", "--text-encoder", house / "text")
    command = ("data", "encode", house / "data" / "train", "--out", house / "codes", *networks)
    assert run(*command) == 0
    assert "12 samples in 4 shards written to" in capsys.readouterr().out
    assert run(*command) == 0
    assert "0 samples in 0 shards" in (out := capsys.readouterr().out)
    assert "4 were there already" in out
    assert run(*command, "--latents") == 2
    assert "was encoded with latents False, expected True" in capsys.readouterr().err


def test_bench_prints_the_pipeline_and_the_shares_of_a_step(house: Path, capsys: pytest.CaptureFixture) -> None:
    networks = (f"--tokenizer={house / 'tokenizer'}", f"--text_encoder={house / 'text'}", "--run.precision=no")
    model = ("--model", "star", "test", *networks)
    shards = house / "data" / "train"
    command = ("data", "bench", shards, "--workers", 0, "--size", 8, "--batch", 4, "--seconds", 0.05, "--steps", 2)
    assert run(*command, *model) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| 0 \| \d+ \| \d+\.\d\d s \|", out)
    for trained_on in ("pictures", "codes"):
        shares = re.search(rf"\| {trained_on} \| 0 \| [\d.]+ \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|", out)
        assert shares is not None
        assert sum(map(float, shares.groups())) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds", 0), "--seconds is 0"),
        (("--model", "clip", "test"), "--model begins with 'clip', expected star"),
        (("--lr=1",), "unknown argument --lr=1; fields of a preset need --model"),
    ],
)
def test_bench_tells_mistakes_in_one_sentence(
    arguments: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("data", "bench", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_choices_are_those_of_the_room_below() -> None:
    assert encode.CROPS == CROPS
    assert get_args(Split) == benchmark.SPLITS


def test_benchmark_says_what_it_wrote_and_what_it_refuses(house: Path, capsys: pytest.CaptureFixture) -> None:
    command = ("data", "benchmark", house / "data" / "train", house / "made", "--count", 5)
    assert run(*command) == 0
    assert "5 pictures in 2 categories, 5 with a subject, 5 with a style, in" in capsys.readouterr().out
    assert run(*command) == 2
    assert "give an empty folder, or one that is not there" in capsys.readouterr().err
