"""Training: it learns, it resumes to the bit, and it keeps apart what is held out."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import star.training.train
from star.data.errors import InputError
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.registry import build
from star.generators.training.run import RunConfig
from star.model.losses import token_losses
from star.planning.flops import work
from star.tiny import tiny_tokenizer, tiny_transformer
from star.training.config import TrainConfig
from star.training.optimizers import parameter_groups
from star.training.presets import PRESETS
from star.training.targets import kept_lengths, make_targets
from star.training.train import compile_blocks, drop_captions, train
from star.training.validation import is_held_out

COARSE_MUON: dict[str, Any] = {"optimizer": "muon", "coarse_scales": 1, "coarse_steps": 0.5}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic shards, a tokenizer and a text encoder, all tiny."""
    root = tmp_path_factory.mktemp("house")
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(root / "tokenizer")
    generator.text_encoder.save_pretrained(root / "text")
    write(root / "data", count=24, size=8, test=6)
    return root


def config(house: Path, steps: int = 10, **changes: Any) -> TrainConfig:
    run = RunConfig(
        steps=steps, batch_size=4, log_every=1, sample_every=0, checkpoint_every=5, trackers=(), grad_clip=2.0
    )
    given: dict[str, Any] = {"run": run, "tokenizer": str(house / "tokenizer"), "text_encoder": str(house / "text")}
    return replace(PRESETS["test"], **given | {"validate_every": 5} | changes)


def shards(house: Path) -> list[str]:
    return [str(house / "data" / "train")]


def result(out: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "images_per_second", "data_wait", "tflops", "utilisation")
    return load_file(out / "model" / "model.safetensors"), [
        {key: value for key, value in line.items() if key not in clock} for line in lines
    ]


def test_fifty_steps_on_one_batch_are_learnt() -> None:
    tokenizer, encoder = tiny_tokenizer(), tiny_text_encoder()
    model = tiny_transformer(sharpness=1.0, width=64, heads=4).train()
    generator = torch.Generator().manual_seed(0)
    image_B3HW = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    targets = make_targets(tokenizer.quantizer, tokenizer.image_to_latent(image_B3HW) * 5)
    text = encoder.encode(["one", "two", "three", "four"])
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = token_losses(model(targets.teacher_input_BlE, text), targets.codes_BL).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.3  # log 32
    assert losses[-1] < 1.0  # code frequencies alone stay above 2


def test_a_run_from_shards_to_a_model(house: Path, tmp_path: Path) -> None:
    trained = config(house, steps=4, run=replace(config(house).run, steps=4, sample_every=2), validate_every=2)
    model = train(trained, data=shards(house), out=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == {
        "samples-00000002.png",
        "samples-00000004.png",
    }
    _, lines = result(tmp_path / "run")
    assert {"loss", "loss_scale/0", "loss_scale/3", "grad_norm", "lr"} <= set(lines[0])
    assert "validation_loss_scale/3" in lines[1]
    scales = json.loads((tmp_path / "run" / "validation.json").read_text())["scales"]
    assert [scale["size"] for scale in scales] == [1, 2, 3, 4]
    assert all(scale["unigram"] > 0 for scale in scales)
    assert build(model).generate(["a red circle"], seeds=[1]).shape == (1, 3, 8, 8)
    assert "held-out pictures" in (model / "README.md").read_text()


def test_every_log_line_tells_how_much_of_the_device_is_used(house: Path, tmp_path: Path) -> None:
    given = config(house, keep_last_scale=0.5)
    given = replace(given, run=replace(given.run, steps=3, log_every=1, peak_tflops=0.001))
    model = StarGenerator.from_directory(train(given, data=shards(house), out=tmp_path / "run")).transformer
    done = work(model.config, kept_lengths(model.schedule, 0.5), text_tokens=64)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines[1:]:  # the first step has no rate yet
        expected = (done.forward + done.backward) * line["images_per_second"]
        assert line["tflops"] * 1e12 == pytest.approx(expected, rel=0.01)
        assert line["utilisation"] == pytest.approx(expected / 1e9, rel=0.01, abs=1e-4)


def test_networks_that_are_not_brought_along_are_found_where_they_lie(house: Path, tmp_path: Path) -> None:
    """Also where the tokenizer's folder has the name that the run gives its own: `model`."""
    tokenizer = tmp_path / "tokenizer" / "model"
    shutil.copytree(house / "tokenizer", tokenizer)
    options = config(house, steps=1, tokenizer=str(tokenizer), bring_along=False)
    train(options, data=shards(house), out=tmp_path / "run")
    model = tmp_path / "run" / "model"
    assert not [place for place in model.iterdir() if place.is_dir()]
    assert build(model).generate(["a red circle"], seeds=[0]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"precompute": False, "code_noise": 0.0},
        {"code_noise": 0.5, "noise_neighbours": 3, "scale_power": 0.5, "label_smoothing": 0.1, "drop_path": 0.1},
        {"head_float32": False, "schedule": "linear"},
        COARSE_MUON | {"code_noise": 0.5},
        COARSE_MUON | {"code_noise": 0.0, "keep_last_scale": 0.5, "whole_last": 0.3},
    ],
    ids=["batch by batch", "noise", "bf16", "coarse steps, noise", "coarse steps"],
)
def test_every_way_through_the_trainer(house: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = replace(config(house).run, steps=2, precision="bf16" if "head_float32" in changes else "no")
    train(config(house, run=run, **changes), data=shards(house), out=tmp_path / "run")
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize("changes", [{}, COARSE_MUON], ids=["adamw", "muon, coarse steps"])
def test_interrupted_and_resumed_equals_uninterrupted(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    options = config(house, **changes)
    train(options, data=shards(house), out=tmp_path / "whole")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    calls, original, seventh = (
        iter(range(99)),
        star.training.train.set_lr,
        14 if changes else 7,
    )  # one for each optimiser
    with monkeypatch.context() as patch:
        patch.setattr(
            star.training.train, "set_lr", lambda *given: fail() if next(calls) == seventh else original(*given)
        )
        with pytest.raises(KeyboardInterrupt):
            train(options, data=shards(house), out=tmp_path / "parts")
    train(options, data=shards(house), out=tmp_path / "parts", resume=True)
    compare(result(tmp_path / "whole"), result(tmp_path / "parts"))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(house: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of step 8, in a process of its own."""
    program = (
        "import os, signal, sys, torch, star.training.train as t\n"
        "from pathlib import Path\n"
        "from tests.star.training.test_train import config, shards\n"
        "torch.set_num_threads(1)\n"
        "house, out, kill = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])\n"
        "original, calls = t.set_lr, iter(range(99))\n"
        "def set_lr(*given):\n"
        "    if next(calls) == kill: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(*given)\n"
        "t.set_lr = set_lr\n"
        "t.train(config(house), data=shards(house), out=out, resume=kill < 0)\n"
    )

    def start(out: Path, kill: int) -> int:
        command = [sys.executable, "-c", program, str(house), str(out), str(kill)]
        root = Path(__file__).parents[3]
        return subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False).returncode

    assert start(tmp_path / "whole", kill=-1) == 0
    assert start(tmp_path / "parts", kill=7) == -signal.SIGKILL
    assert not (tmp_path / "parts" / "model").exists()
    assert start(tmp_path / "parts", kill=-1) == 0
    compare(result(tmp_path / "whole"), result(tmp_path / "parts"))


def compare(whole: tuple[dict[str, Tensor], Any], parts: tuple[dict[str, Tensor], Any]) -> None:
    assert whole[1] == parts[1]
    assert whole[0].keys() == parts[0].keys()
    assert [name for name in whole[0] if not torch.equal(whole[0][name], parts[0][name])] == []


def test_decay_spares_what_is_added_or_multiplied_as_it_stands() -> None:
    model = tiny_transformer(
        conditioning="class", classes=3, cross_attention=False, modulation="shared-adaln", positions="absolute"
    )
    decayed, spared = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert {name.rpartition(".")[2] for name in map(names.get, map(id, decayed["params"])) if name} == {"weight"}
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert {"start_position", "position_embedding", "level_embedding.weight"} <= spared_names
    assert {"blocks.1.attention.log_scale", "blocks.1.modulation_offset", "head.bias"} <= spared_names
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)


def test_captions_are_dropped_at_the_given_rate() -> None:
    prompts = [str(number) for number in range(4000)]
    torch.manual_seed(0)
    dropped = drop_captions(prompts, 0.1)
    assert 0.08 < sum(prompt == "" for prompt in dropped) / 4000 < 0.12
    assert all(after in ("", before) for before, after in zip(prompts, dropped, strict=True))
    assert drop_captions(prompts, 0.0) == prompts


def test_held_out_pictures_are_never_taught(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: set[str] = set()
    original = star.training.train.EncodedSet.latents

    def latents(self: Any, batch: Batch) -> Tensor:
        taught.update(batch.keys)
        return original(self, batch)

    def no_counting(self: Any, *_: Any) -> None:
        monkeypatch.setattr(star.training.train.EncodedSet, "latents", latents)  # from here on only training asks

    monkeypatch.setattr(star.training.train.Validation, "count_codes", no_counting)
    train(config(house, steps=10, held_out=0.3), data=shards(house), out=tmp_path / "run")
    every = {key for batch in pictures(house) for key in batch.keys}
    held = {key for key in every if is_held_out(key, 0.3)}
    assert held
    assert taught
    assert not taught & held
    assert taught < every


def test_validation_shards_leave_all_training_pictures_to_training(house: Path, tmp_path: Path) -> None:
    run = replace(config(house).run, steps=1)
    given = config(house, run=run, validation=(str(house / "data" / "test"),), held_out=0.9)
    train(given, data=shards(house), out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "validation.json").read_text())["pictures"] == 6


def pictures(house: Path) -> Iterator[Batch]:
    return Pipeline(DataConfig(shards=tuple(shards(house)), resolution=8), batch_size=8).one_pass()


def test_the_share_held_out_is_the_share_asked_for() -> None:
    keys = [f"picture-{number}" for number in range(5000)]
    assert 0.08 < sum(is_held_out(key, 0.1) for key in keys) / 5000 < 0.12
    assert all(is_held_out(key, 0.2) for key in keys if is_held_out(key, 0.1))


@pytest.mark.parametrize("changes", [{"ema": 1.0}, {"caption_dropout": -0.1}, {"lr": 0.0}, {"validate_every": 0}])
def test_impossible_values_are_refused(house: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        config(house, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coarse_scales": 1}, "coarse_scales is 1 and coarse_steps 0.0, expected both positive"),
        ({"coarse_steps": 0.5}, "coarse_scales is 0 and coarse_steps 0.5, expected both positive"),
        ({"coarse_steps": 1.5, "coarse_scales": 1}, "coarse_steps is 1.5, expected a share"),
        ({"matrix_lr": 0.0}, "matrix_lr is 0.0, expected a positive share"),
        ({"optimizer": "muon", "run": RunConfig(steps=1, sharding="fsdp2")}, "optimizer is muon, which needs whole"),
    ],
)
def test_impossible_ways_to_learn_are_refused(house: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(house, **changes)


def test_more_coarse_scales_than_there_are_is_refused_before_the_run_begins(house: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="coarse_scales is 9, but the tokenizer has"):
        train(config(house, coarse_scales=9, coarse_steps=0.5), data=shards(house), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steps_of_coarse_scales_teach_those_alone(house: Path, tmp_path: Path) -> None:
    run = replace(config(house).run, steps=4, log_every=1)
    train(config(house, run=run, coarse_scales=1, coarse_steps=0.75), data=shards(house), out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scales = [sum(name.startswith("loss_scale/") for name in line) for line in lines]
    assert scales[:3] == [1, 1, 1]
    assert scales[3] > 1
    assert [line["loss"] for line in lines[:3]] == pytest.approx([line["loss_scale/0"] for line in lines[:3]])


def test_a_missing_tokenizer_is_told(house: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model directory"):
        train(config(house, tokenizer=str(tmp_path)), data=shards(house), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_preset_is_a_network() -> None:
    frozen: Any = SimpleNamespace(tokenizer=tiny_tokenizer(), text_encoder=tiny_text_encoder())
    for name, preset in PRESETS.items():
        network = replace(preset, init_from="").network(frozen)
        assert network.width == preset.width, name
        assert network.vocabulary == 32


def test_compiling_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler"):
        compile_blocks(tiny_transformer(), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_compute_the_same() -> None:
    tokenizer, encoder = tiny_tokenizer(), tiny_text_encoder()
    targets = make_targets(tokenizer.quantizer, torch.randn(2, 4, 4, 4))
    text = encoder.encode(["one", "two"])
    plain, compiled = tiny_transformer(attention="eager"), tiny_transformer(attention="eager")
    compile_blocks(compiled, torch.device("cpu"))
    gradients = []
    for model in (plain, compiled):
        token_losses(model(targets.teacher_input_BlE, text), targets.codes_BL).mean().backward()
        gradients.append(
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        )
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5), name
