"""No step of a training waits for the device, but those that log or save; nor do averages."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from star.data.synthetic import write
from star.generators.styleformer.presets import PRESETS as STYLEFORMER
from star.generators.stylegan_t.presets import PRESETS as STYLEGAN_T
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run, RunConfig
from tests.generators.waits import Waits

STEPS = 4
# Chance that belongs to the host, drawn on the CPU by generators of its own or torch's.
# And Adam's count of steps, which torch keeps on the CPU unless it is asked otherwise.
OF_THE_HOST = {"sample_rng.py:chance", "backbones.py:random_crop", "backbones.py:<genexpr>", "trainer.py:_update"}
ONCE = {"clip_text.py:forward"}  # for each caption when it is first met


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("shards")
    write(root, count=8, size=16, test=0)
    return [str(root / "train")]


def run_config() -> RunConfig:
    return RunConfig(
        steps=STEPS, batch_size=4, log_every=STEPS, sample_every=0, checkpoint_every=STEPS, trackers=(), grad_clip=1.0
    )


def places_per_step(monkeypatch: pytest.MonkeyPatch, train: Callable[[], object]) -> list[Counter[str]]:
    """What waited within each step's body."""
    waits, found, steps = Waits(), [], Run.steps

    def counted(run: Run) -> Iterator[int]:
        for step in steps(run):
            before = Counter(waits.places)
            yield step
            found.append(waits.places - before)

    monkeypatch.setattr(Run, "steps", counted)
    with waits:
        train()
    assert len(found) == STEPS
    return found


def assert_nothing_waits(found: list[Counter[str]]) -> None:
    for step in found[1:-1]:  # the first fills caches, the last logs
        assert not set(step) - OF_THE_HOST - ONCE, step


def test_a_star_step_never_waits(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from star.training.presets import PRESETS
    from star.training.train import train

    config = replace(
        PRESETS["test"], run=run_config(), validate_every=100, sample_prompts=(), code_noise=0.0, held_out=0.0
    )
    assert_nothing_waits(places_per_step(monkeypatch, lambda: train(config, data=shards, out=tmp_path / "run")))


@pytest.mark.parametrize("preset", [STYLEFORMER["test"], STYLEGAN_T["test"]], ids=["styleformer", "stylegan-t"])
def test_an_adversarial_step_never_waits(
    preset: object, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from star.generators.gan.config import GanTrainConfig
    from star.generators.gan.train import train

    assert isinstance(preset, GanTrainConfig)
    config = replace(preset, run=run_config(), sample_prompts=(), augment=(), caption_dropout=0.0)
    assert_nothing_waits(places_per_step(monkeypatch, lambda: train(config, data=shards, out=tmp_path / "run")))


def test_the_counter_sees_what_waits() -> None:
    with Waits() as waits:
        if torch.zeros(()) > 1:
            raise AssertionError
        torch.ones(2).isfinite().all().item()
    assert sum(waits.places.values()) == 2


@pytest.mark.parametrize("buffers", [False, True])
def test_averages_are_torchs_and_never_wait(buffers: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
    ours = MovingAverage(network, lambda: 0.9, buffers=buffers)
    with Waits() as waits:
        for _ in range(4):
            network(torch.randn(8, 4))
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(torch.randn_like(parameter))
            ours.update_parameters(network)
    assert not waits.places
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for _ in range(4):
        network(torch.randn(8, 4))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        theirs.update_parameters(network)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    names = [name for name in expected if expected[name].is_floating_point() or name == "n_averaged"]
    assert all(torch.equal(expected[name], found[name]) for name in names)


def test_averages_go_on_after_loading() -> None:
    network = nn.Linear(2, 2)
    first = MovingAverage(network, lambda: 0.5)
    first.update_parameters(network)
    second = MovingAverage(nn.Linear(2, 2), lambda: 0.5)
    second.load_state_dict(first.state_dict())
    before = second.module.weight.detach().clone()  # type: ignore[operator]
    other = nn.Linear(2, 2)
    second.update_parameters(other)
    torch.testing.assert_close(second.module.weight, (before + other.weight) / 2)
