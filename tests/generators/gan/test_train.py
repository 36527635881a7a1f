"""Adversarial training: it resumes to the bit, moves what it should and nothing else, and stops where it must."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import star.generators.gan.trainer
from star.data.errors import DivergenceError, InputError
from star.data.shards.write import ShardWriter
from star.data.synthetic import sample, write
from star.generators.config import from_dict, to_dict
from star.generators.gan.config import Average, Blur, GanTrainConfig, Lazy
from star.generators.gan.train import train
from star.generators.pretrained import ModelDirectory
from star.generators.registration import load
from star.generators.registry import GANS, build, registration
from star.generators.training.run import RunConfig
from tests.generators.gan.fitting import fitting_loss

PRESETS = {name: load(registration(name).presets)["test"] for name in GANS}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("shards")
    write(root, count=24, size=16, test=0)
    return [str(root / "train")]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pictures with the number of a class in their json, as CIFAR-10's shards have it."""
    root = tmp_path_factory.mktemp("classes") / "train"
    with ShardWriter(root, prefix="train", per_shard=8) as writer:
        for index in range(16):
            key, members = sample("train", index, 16, 0)
            members["json"] = json.dumps({**json.loads(members["json"]), "label": index % 2}).encode()
            writer.add(key, members)
    return [str(root)]


def config(family: str, steps: int = 4, every: int = 2, **changes: Any) -> GanTrainConfig:
    run = RunConfig(
        steps=steps, batch_size=4, log_every=1, sample_every=0, checkpoint_every=every, trackers=(), grad_clip=0.0
    )
    return replace(PRESETS[family], **{"run": run, "sample_prompts": (), **changes})


def log(out: Path) -> list[dict[str, Any]]:
    clock = ("seconds", "images_per_second", "data_wait")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def state(out: Path, step: int) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / "checkpoints" / f"step-{step:08d}" / "state.pt")["tracked"]
    return loaded


@pytest.mark.parametrize("family", PRESETS)
def test_ten_steps_equal_five_a_death_and_five(
    family: str, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every regulariser, augmentation, blur and style mixing are on, so all that has a state is in it."""
    changes: dict[str, Any] = {"blur": Blur(sigma=2.0, pictures=2000), "style_mixing": 0.5, "caption_dropout": 0.2}
    if family == "styleformer":
        changes |= {"augment": ("text",), "augment_pictures": 20, "r1": Lazy(weight=0.1, every=3)}
    options = config(family, steps=10, every=5, **changes)
    train(options, data=shards, out=tmp_path / "whole")

    real, calls = star.generators.gan.trainer.AdversarialTrainer.g_step, 0

    def dies_in_step_eight(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(star.generators.gan.trainer.AdversarialTrainer, "g_step", dies_in_step_eight)
    with pytest.raises(KeyboardInterrupt):
        train(options, data=shards, out=tmp_path / "parts")
    monkeypatch.undo()
    train(options, data=shards, out=tmp_path / "parts", resume=True)
    assert log(tmp_path / "whole") == log(tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    if family == "styleformer":
        assert float(state(tmp_path / "whole", 10)["augment"]["probability"]) > 0


@pytest.mark.parametrize("family", PRESETS)
def test_the_model_draws_as_the_averaged_weights_do(family: str, shards: list[str], tmp_path: Path) -> None:
    path = train(config(family), data=shards, out=tmp_path / "run")
    generator: Any = build(str(path))
    average = {
        name.removeprefix("module.network."): tensor
        for name, tensor in state(tmp_path / "run", 4)["average"].items()
        if name.startswith("module.network.")
    }
    assert all(torch.equal(tensor, average[name]) for name, tensor in generator.network.state_dict().items())
    learnt = state(tmp_path / "run", 4)["generator"]
    assert any(not torch.equal(tensor, average[name.removeprefix("network.")]) for name, tensor in learnt.items())
    assert generator.generate(["a red circle"], seeds=[1]).shape == (1, 3, 16, 16)
    assert "Trained for 4 steps on 16 pictures" in (path / "README.md").read_text()


def test_accumulated_micro_batches_count_as_one_batch(shards: list[str], tmp_path: Path) -> None:
    """The pictures and their order are those of the large batch; only draws and groups of pictures differ."""
    options = config("styleformer", steps=2)
    train(replace(options, run=replace(options.run, accumulate=2)), data=shards, out=tmp_path / "run")
    assert [line["images"] for line in log(tmp_path / "run")] == [4, 8]


def test_r1_and_path_length_come_when_they_are_due(shards: list[str], tmp_path: Path) -> None:
    options = config("styleformer", r1=Lazy(weight=1.0, every=3), path_length=Lazy(weight=1.0, every=2))
    train(options, data=shards, out=tmp_path / "run")
    lines = log(tmp_path / "run")
    assert [("loss_r1" in line, "loss_path_length" in line) for line in lines] == [
        (True, True),
        (False, False),
        (False, True),
        (True, False),
    ]


def test_a_discriminator_that_has_won_ends_the_run(shards: list[str], tmp_path: Path) -> None:
    options = config("styleformer", steps=60, every=60, lr=1e-9, lr_discriminator=2e-2, r1=Lazy(), saturated_after=5)
    with pytest.raises(DivergenceError, match=r"made no mistake for \d+ steps, at step \d+: it has won"):
        train(options, data=shards, out=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_gradients_that_are_not_finite_end_the_run(shards: list[str], tmp_path: Path) -> None:
    options = config("stylegan-t", lr=1e30)
    with pytest.raises(DivergenceError, match="no longer finite at step"):
        train(options, data=shards, out=tmp_path / "run")


def test_classes_are_learnt_and_drawn_by_name(classes: list[str], tmp_path: Path) -> None:
    preset = PRESETS["styleformer"]
    options = config(
        "styleformer",
        network=replace(preset.network, conditioning="class", condition_width=2),
        discriminator=replace(preset.discriminator, condition_width=2),
        labels=("odd", "even"),
        guidance=0.0,
        clip="",
    )
    generator = build(str(train(options, data=classes, out=tmp_path / "run")))
    assert torch.equal(generator.generate(["even"], seeds=[3]), generator.generate(["1"], seeds=[3]))
    with pytest.raises(InputError, match="one of odd, even"):
        generator.generate(["prime"], seeds=[3])


def test_a_picture_without_its_class_is_an_error(shards: list[str], tmp_path: Path) -> None:
    preset = PRESETS["styleformer"]
    options = config(
        "styleformer",
        network=replace(preset.network, conditioning="class", condition_width=2),
        discriminator=replace(preset.discriminator, condition_width=2),
        guidance=0.0,
    )
    with pytest.raises(InputError, match="label is None, expected a number from 0 to 1"):
        train(options, data=shards, out=tmp_path / "run")


def test_a_grown_network_learns_behind_its_frozen_trunk(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk here is of 16 pixels, so that the test is quick."""
    monkeypatch.setattr("star.generators.stylegan_t.model.TRUNK", 16)
    trunk = train(config("stylegan-t"), data=shards, out=tmp_path / "trunk")
    network: Any = PRESETS["stylegan-t"].network
    grown = replace(network, resolution=32)
    options = config("stylegan-t", network=grown, phase="freeze64", init_from=str(trunk))
    path = train(options, data=shards, out=tmp_path / "grown")
    assert ModelDirectory.read(path).images_seen == 2 * ModelDirectory.read(trunk).images_seen > 0
    before, after = load_file(trunk / "model.safetensors"), state(tmp_path / "grown", 4)["generator"]
    for name, tensor in before.items():
        same = torch.equal(tensor, after[f"network.{name}"]) if name != "text_projection" else True
        learns = "to_rgb" in name and not name.endswith("kernel_kk")
        followed = name == "mapping.average_W"
        assert same != learns or followed, name


def test_the_text_tower_learns_alone(shards: list[str], tmp_path: Path) -> None:
    start = train(config("stylegan-t"), data=shards, out=tmp_path / "start")
    options = config("stylegan-t", phase="text_encoder", init_from=str(start), lr=1e-3)
    path = train(options, data=shards, out=tmp_path / "text")
    before, after = load_file(start / "model.safetensors"), load_file(path / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if "average" not in name)
    one, other = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (start, path))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_only_a_stylegan_t_has_phases(shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="phase freeze64 was asked of a Styleformer"):
        train(config("styleformer", phase="freeze64"), data=shards, out=tmp_path / "run")


def test_text_of_another_width_is_refused(shards: list[str], tmp_path: Path) -> None:
    network = replace(PRESETS["styleformer"].network, condition_width=99)
    with pytest.raises(InputError, match=r"network.condition_width is 99, expected 256"):
        train(config("styleformer", network=network), data=shards, out=tmp_path / "run")


def test_the_half_life_of_averaged_weights_grows_with_the_pictures_seen() -> None:
    average = Average(half_life=1000, rampup=0.05)
    assert average.decay(10, 2_000) == pytest.approx(0.5 ** (10 / 100))
    assert average.decay(10, 1_000_000) == pytest.approx(0.5 ** (10 / 1000))
    assert Average(half_life=1000, rampup=0).decay(1000, 0) == pytest.approx(0.5)


@pytest.mark.parametrize("family", GANS)
def test_every_preset_survives_its_json(family: str) -> None:
    for preset, recipe in load(registration(family).presets).items():
        assert from_dict(type(recipe), to_dict(recipe)) == recipe, preset


def test_the_same_network_also_learns_outside_the_trainer() -> None:
    """What the contract's laws use is the network that the trainer trains."""
    generator: Any = build("styleformer-test")
    network, loss = fitting_loss(generator, ["a", "b"])
    assert network is generator.network
    value: Tensor = loss()
    assert value.requires_grad


def test_projections_over_tokens_have_a_rate_of_their_own(shards: list[str], tmp_path: Path) -> None:
    """A step of Adam with betas (0, .99) is the rate times the sign at first."""
    moved = {}
    for scale in (1.0, 0.0):
        out = tmp_path / str(scale)
        train(
            config("styleformer", steps=1, every=1, lr_projection=scale, r1=Lazy(), path_length=Lazy()),
            data=shards,
            out=out,
        )
        moved[scale] = state(out, 1)["generator"]
    one, none = moved[1.0], moved[0.0]
    differ = {name for name, tensor in one.items() if not torch.equal(tensor, none[name])}
    assert differ == {name for name in one if name.endswith("attention.projection")}
