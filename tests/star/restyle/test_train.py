"""Training a restyler: it learns what a style does, resumes to the bit, and never learns from what is held out."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

import star.restyle.train as trainer
from star.cli import main
from star.data.errors import InputError
from star.data.images import read_png
from star.generators.training.run import Run, RunConfig
from star.restyle.model import Restyler
from star.restyle.network import RestyleConfig
from star.restyle.pairs import Collection, parse_pairs, training_examples
from star.restyle.train import EMOJI_PAIRS, PRESETS, RestyleTrainConfig, train
from tests.star.restyle.drawings import PAIR, SIDE, draw, same, sample, write, write_both

STEPS, SAVED, DEATH = 5, 2, 4


def config(**changes: Any) -> RestyleTrainConfig:
    run = RunConfig(steps=STEPS, batch_size=4, log_every=1, sample_every=0, checkpoint_every=SAVED, trackers=())
    given: dict[str, Any] = {"run": run, "pairs": (PAIR,)}
    return replace(PRESETS["test"], **given | changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(path / "model.safetensors"))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_that_died_goes_on_to_the_same_bits(
    precision: Literal["no", "bf16"], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(run=replace(config().run, precision=precision, accumulate=2))
    whole = train(options, data=[str(shards)], out=tmp_path / "whole")
    real = Run._finish_step

    def finish_step(run: Run) -> None:
        if run.step + 1 == DEATH:
            raise KeyboardInterrupt
        real(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_finish_step", finish_step)
        with pytest.raises(KeyboardInterrupt):
            train(options, data=[str(shards)], out=tmp_path / "parts")
    assert not (tmp_path / "parts" / "model").exists()
    parts = train(options, data=[str(shards)], out=tmp_path / "parts", resume=True)
    assert same(weights(whole), weights(parts))
    states = [
        torch.load(run / "checkpoints" / f"step-{STEPS:08d}" / "state.pt", weights_only=True)["tracked"]
        for run in (tmp_path / "whole", tmp_path / "parts")
    ]
    found = [list(tensors(state)) for state in states]
    assert len(found[0]) > 100
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_is_saved_is_the_average(shards: Path, tmp_path: Path) -> None:
    run = replace(config().run, checkpoint_every=1, keep=STEPS)
    path = train(config(run=run), data=[str(shards)], out=tmp_path)
    expected: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        place = tmp_path / "checkpoints" / f"step-{step + 1:08d}" / "state.pt"
        learnt = torch.load(place, weights_only=True)["tracked"]["network"]
        weight = 1 - (step + 1) / (step + 10) if step else 1.0
        expected = {name: torch.lerp(expected.get(name, value), value, weight) for name, value in learnt.items()}
    saved = weights(path)
    assert saved.keys() == expected.keys()
    for name, value in saved.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert not same(saved, learnt)


def test_held_out_pictures_are_measured_and_change_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    real = trainer._moved

    def moved(drawn: Any, *rest: Any) -> Any:
        seen.update(picture.key for pictures in drawn for picture in pictures)
        assert all(one.info["subject"] == other.info["subject"] for one, other in drawn)
        return real(drawn, *rest)

    monkeypatch.setattr(trainer, "_moved", moved)
    run = replace(config().run, steps=30, sample_every=10, checkpoint_every=30)
    with_held_out = train(config(run=run), data=[str(shards)], out=tmp_path / "with")
    assert {key.split("-")[0] for key in seen} == {"colour", "pale", "negative"}
    assert not any("other" in key for key in seen), "their negative is held out"
    shutil.copytree(shards, tmp_path / "shards")
    (tmp_path / "shards" / "drawings-test-0000.tar").unlink()
    without = train(config(run=run), data=[str(tmp_path / "shards")], out=tmp_path / "without")
    assert same(weights(with_held_out), weights(without))
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/l1" in line] == [10, 20, 30]
    sheets = sorted(path.name for path in (tmp_path / "with" / "pictures").iterdir())
    assert sheets == [f"held-out-000000{step}.png" for step in (10, 20, 30)]
    sheet_3HW = read_png(tmp_path / "with" / "pictures" / sheets[0])
    assert sheet_3HW.shape == (3, SIDE, 12 * (SIDE + 2) - 2)
    assert torch.equal(sheet_3HW[:, :, :SIDE], draw("other 0", "colour"))
    assert torch.equal(sheet_3HW[:, :, 2 * (SIDE + 2) : 3 * SIDE + 4], draw("other 0", "negative"))
    assert not (tmp_path / "without" / "pictures").exists() or not any((tmp_path / "without" / "pictures").iterdir())


def test_it_learns_to_invert_colours(shards: Path, tmp_path: Path) -> None:
    run = RunConfig(steps=120, batch_size=16, log_every=20, sample_every=120, checkpoint_every=120, trackers=())
    network = RestyleConfig(widths=(16, 16), blocks=(1, 1), style_width=8)
    options = config(run=run, network=network, learning_rate=1e-2, warmup=10)
    path = train(options, data=[str(shards)], out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["validation/l1"] < 0.1
    restyler = Restyler.from_directory(path)
    given_3HW, true_3HW = draw("never seen", "colour"), draw("never seen", "negative")
    drawn_3HW = restyler.redraw(given_3HW[None], ["colour"], "negative")[0]
    assert (drawn_3HW.float() - true_3HW.float()).abs().mean() < 30
    assert (given_3HW.float() - true_3HW.float()).abs().mean() > 100


def test_both_pictures_are_mirrored_and_moved_alike(shards: Path) -> None:
    collection = Collection.read([str(shards / "drawings-train-0000.tar")], SIDE, parse_pairs(["colour>negative"]))
    found = training_examples(parse_pairs(["colour>negative"]), collection)
    drawn = [(one.sources[0][0], one.target) for one in found]
    options = config(shift=3)
    source_B3HW, target_B3HW = trainer._moved(drawn, options, random.Random(0))
    assert torch.allclose(source_B3HW, -target_B3HW, atol=1e-6)
    still_B3HW, _ = trainer._moved(drawn, replace(options, shift=0, mirror=False), random.Random(0))
    assert not torch.equal(source_B3HW, still_B3HW)
    assert torch.equal(still_B3HW[0], drawn[0][0].pixels_3HW.float() / 127.5 - 1)
    flipped_B3HW, _ = trainer._moved(drawn, replace(options, shift=0), random.Random(0))
    mirrored = [torch.equal(one, other.flip(-1)) for one, other in zip(flipped_B3HW, still_B3HW, strict=True)]
    assert 0 < sum(mirrored) < len(mirrored)


def test_the_presets_are_those_of_the_emoji() -> None:
    preset = PRESETS["emoji-cpu"]
    assert preset.pairs == EMOJI_PAIRS
    assert preset.restyler.network.styles == (
        *("emojitwo", "emojitwo_bw", "fluent_3d", "fluent_color", "fluent_flat", "fluent_high_contrast"),
    )
    assert (preset.run.steps, preset.run.batch_size, preset.resolution) == (600, 24, 64)


def test_wrong_pairs_end_before_the_first_step(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match="expected source>target"):
        config(pairs=("colour",))
    with pytest.raises(InputError, match="resolution is 15"):
        config(resolution=15)
    with pytest.raises(InputError, match=r"network\.styles lacks negative, pale"):
        config(network=RestyleConfig(styles=("colour",), widths=(8,), blocks=(1,)))
    with pytest.raises(InputError, match="no pairs of styles were given"):
        train(config(pairs=()), data=[str(shards)], out=tmp_path / "none")
    command = ["train", "restyle", "--preset", "test", "--pairs", "noto>negative", "--data", str(shards)]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "name noto, of which the training shards hold no picture; there are colour, negative, pale" in told
    assert "Traceback" not in told
    write(tmp_path / "odd", "train", [sample("tree", "colour"), sample("sun", "negative")])
    with pytest.raises(InputError, match="no subject has a picture in both styles of colour>negative"):
        train(config(pairs=("colour>negative",)), data=[str(tmp_path / "odd")], out=tmp_path / "odd run")
