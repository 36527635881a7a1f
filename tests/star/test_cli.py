"""The command line: instant help, paths printed, pictures that say what made them, mistakes in one sentence."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from star.cli import main
from star.commands import shards
from star.commands.train import TRAINERS, configure
from star.data.images import read_png
from star.pictures import names

MODEL = ("--model", "star-test")


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        return int(end.code or 0)


def one_sentence(capsys: pytest.CaptureFixture) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_help_is_instant_and_needs_no_torch() -> None:
    program = (
        "import sys; from star.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'star.commands.fields', 'transformers'}\n"
        "assert not heavy & set(sys.modules), 'heavy import'"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: what else the machine is doing must not fail the test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(
    "command", ["", "sample", "list", "data", "data pack", "data check", "data synthetic", "train", "train star"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    assert run(*command.split(), "--help") == 0
    assert "usage: star" in capsys.readouterr().out


def test_draws_names_and_documents_pictures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = ["a red apple", "🍎", "تفاحة حمراء"]
    assert run("sample", *prompts, *MODEL, "--count", 2, "--seed", 5, "--top-k", 9, "--out", tmp_path) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    expected = [f"{stem}-{seed}.png" for stem in ("a-red-apple", "picture", "تفاحة-حمراء") for seed in (5, 6)]
    assert names == [*expected, "grid.png"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    with Image.open(tmp_path / "picture-6.png") as picture:
        text = picture.info
    assert (text["prompt"], text["seed"], text["model"]) == ("🍎", "6", "star-test")
    assert (text["device"], text["dtype"]) == ("cuda" if torch.cuda.is_available() else "cpu", "float32")
    assert json.loads(text["options"])["top_k"] == 9
    grid, single = read_png(tmp_path / "grid.png"), read_png(tmp_path / "a-red-apple-5.png")
    assert grid.shape[1] > 3 * single.shape[1]
    assert 2 * single.shape[2] < grid.shape[2] < 3 * single.shape[2]


def test_the_same_call_draws_the_same_and_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for batch in (1, 3):
        assert run("sample", "a cat", "a dog", "a cat", *MODEL, "--batch", batch, "--out", tmp_path) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(set(paths)) == 8
    first, second = paths[:3], paths[4:7]
    for one, other in zip(first, second, strict=True):
        assert (read_png(one) == read_png(other)).all()
    assert (read_png(first[0]) == read_png(first[2])).all()
    assert (read_png(first[0]) != read_png(first[1])).any()


def test_empty_prompt_draws_without_condition_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("sample", "", *MODEL, "--out", tmp_path) == 0
    captured = capsys.readouterr()
    assert Path(captured.out.strip()).name == "unconditional-0.png"
    assert "draws without a condition" in captured.err


def test_long_prompt_is_truncated_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("sample", "word " * 2000, *MODEL, "--out", tmp_path) == 0
    assert re.search(r"\d+ .*tokens", caplog.text)
    assert len(Path(capsys.readouterr().out.strip()).name.encode()) < 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "a cat", "--count", "-1"], "--count is -1, expected at least 1"),
        (["sample", "a cat", "--batch", "0"], "--batch is 0, expected at least 1"),
        (["sample", "a cat", "--seed", "-3"], "--seed is -3"),
        (["sample", "a cat", "--count", "three"], "invalid int value: 'three'"),
        (["sample", "a cat", "--model", "star-emjoi"], "no model 'star-emjoi'.* did you mean star-emoji"),
        (["sample", "a cat", "--model", "runs/no/model"], "no model 'runs/no/model'"),
        (["sample", "a cat", *MODEL, "--guidance-ramp", "2"], r"guidance_ramp is 2\.0, expected a share from 0 to 1"),
        (["sample", "a cat", *MODEL, "--guidance", "2"], r"--guidance 2 is --guidance-scale 3 now, where 1 is off"),
        (["sample", "a cat", *MODEL, "--guidance=x"], r"--guidance is --guidance-scale now, which is larger by 1"),
        (["sample", "a cat", *MODEL, "--ramp", "0.5"], r"--ramp 0\.5 is --guidance-ramp 0\.5 now: give that"),
        (["sample", "a cat", *MODEL, "--cooling", "0.2"], r"--cooling 0\.2 is --temperature-decay 0\.2 now"),
        (
            ["sample", "a cat", *MODEL, "--temperature-decay", "1"],
            r"temperature_decay is 1\.0, expected a share from 0 to below 1",
        ),
        (["sample", "a cat", *MODEL, "--top-p", "1.5"], r"top_p is 1\.5, expected a share"),
        (["sample", "a cat", *MODEL, "--out", "FILE/below"], "FILE/below cannot be written"),
        (["sample", *MODEL], "no prompt was given"),
        (["sample", "a cat", "--colour", "red"], "unknown argument --colour"),
        (["paint"], "invalid choice: 'paint'"),
        (["train", "star"], "no preset was given, expected --preset with one of .*emoji"),
        (["train", "star", "--preset", "emjoi", "--data", "x"], "no preset 'emjoi' of star, expected one of .*emoji"),
        (["train", "clip", "--preset", "test"], "no data were given"),
        (["train", "tokenizer", "--preset", "test", "--data", "nowhere/"], "nowhere"),
        (["data", "check", "nowhere/"], "nowhere"),
        (["data", "synthetic", "out", "--count", "-1"], "-1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_sentence_and_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    assert run(*arguments) == 2
    assert re.search(message, one_sentence(capsys))
    assert os.listdir() == ["FILE"]


def test_other_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr("star.pictures.job.draw", fail)
    with pytest.raises(RuntimeError, match="a defect of ours"):
        run("sample", "a cat", *MODEL, "--out", tmp_path)


def test_list_names_the_default(capsys: pytest.CaptureFixture) -> None:
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "family", "resolution", "conditioning", "weights", "licence"]
    assert any(line.startswith("star-emoji ") for line in lines)


@pytest.mark.parametrize("network", TRAINERS)
def test_presets_take_overrides_by_dotted_name(network: str) -> None:
    config = configure(network, "test", ["--run.steps=7", "--run.batch_size", "16", "--run.precision=bf16"])
    assert (config.run.steps, config.run.batch_size, config.run.precision) == (7, 16, "bf16")
    assert configure(network, "test").run.seed == config.run.seed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--run.stpes=7", "--run.stpes"),
        ("--run.steps=many", "'many'"),
        ("--run.steps=-7", "run.steps is -7, expected at least 1"),
        ("--run.precision=fp16", "'fp16'"),
        ("--compile=perhaps", "'perhaps'"),
        ("stray", "stray"),
    ],
)
def test_wrong_override_fails_before_any_work(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "star", "--preset", "test", override, "--data", "nowhere/") == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err
    assert os.listdir() == []


def test_show_prints_the_config(capsys: pytest.CaptureFixture) -> None:
    assert run("train", "star", "--preset", "test", "--show", "--compile=true", "--betas", "0.8", "0.9") == 0
    config = json.loads(capsys.readouterr().out)
    assert config["compile"] is True
    assert config["betas"] == [0.8, 0.9]


def test_help_with_a_preset_lists_its_fields(capsys: pytest.CaptureFixture) -> None:
    assert run("train", "star", "--preset", "test", "--help") == 0
    assert "--run.batch-size" in capsys.readouterr().out


def test_data_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("data", "synthetic", tmp_path / "made", "--count", 6, "--test", 2, "--size", 16) == 0
    assert run("data", "check", tmp_path / "made/train") == 0
    assert run("data", "pack", tmp_path / "made/train", tmp_path / "packed", "--per-shard", 4) == 0
    assert "6 samples in 2 shards" in capsys.readouterr().out
    shard = min((tmp_path / "packed").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:3000])
    assert run("data", "check", tmp_path / "packed") == 1


def test_choices_are_those_of_the_data_room() -> None:
    from star.data.packing.pack import ImageFormat
    from star.data.packing.sources import Kind

    assert get_args(Kind) == shards.KINDS
    assert get_args(ImageFormat) == shards.FORMATS


def test_slugs_are_short_and_safe() -> None:
    assert names.slug("A Red/Apple: ../../etc") == "a-red-apple-etc"
    assert names.slug("  ") == "unconditional"
    assert names.slug("🍎🍏") == "picture"
    assert len(names.slug("я" * 500).encode()) <= names.LONGEST_NAME
