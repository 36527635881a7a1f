"""The curriculum: presets that continue each other as released, and what its settings do in a run."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from star.convert.published import RELEASED
from star.data.errors import InputError
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.training.run import RunConfig
from star.generators.training.schedule import lr_at
from star.model.transformer import NextScaleTransformer
from star.tiny import SIZES, tiny_tokenizer, tiny_transformer
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokenizer import MultiScaleTokenizer
from star.training.config import TrainConfig
from star.training.presets import CURRICULUM_SIZES, PRESETS
from star.training.targets import kept_lengths
from star.training.train import drop_captions, train

CHAIN = ("star-d30-256", "star-d30-256-finish", "star-d30-512", "star-d30-1024")
FINER = (*SIZES, 6)


def test_every_stage_starts_from_the_one_before() -> None:
    assert PRESETS[CHAIN[0]].init_from == ""
    for before, after in pairwise(CHAIN):
        assert PRESETS[after].init_from == f"runs/{before}/model"
        assert PRESETS[after].width == PRESETS[before].width


@pytest.mark.parametrize("name", ["star-d16-256", "star-d30-256", "star-d30-512", "star-d30-1024"])
def test_a_stage_draws_at_the_released_resolution(name: str) -> None:
    preset = PRESETS[name]
    assert CURRICULUM_SIZES[preset.tokenizer] == RELEASED[name].sizes
    assert (preset.depth, preset.width, preset.heads) == (RELEASED[name].depth,) + (64 * preset.depth, preset.depth)
    assert preset.drop_path == pytest.approx(0.1 * preset.depth / 24)


@pytest.mark.parametrize(
    ("name", "lr", "batch", "precision"),
    [
        ("star-d16-256", 1e-4, 512, "bf16"),
        ("star-d30-256", 1e-4, 480, "bf16"),
        ("star-d30-256-finish", 5e-5, 480, "bf16"),
        ("star-d30-512", 5e-5, 192, "no"),
        ("star-d30-1024", 2e-5, 64, "bf16"),
    ],
)
def test_released_settings(name: str, lr: float, batch: int, precision: str) -> None:
    preset = PRESETS[name]
    assert (preset.lr, preset.run.batch_size, preset.run.precision) == (lr, batch, precision)
    assert (preset.betas, preset.weight_decay, preset.run.grad_clip) == ((0.9, 0.95), 0.05, 2.0)
    assert preset.warmup == preset.run.steps // 50
    assert preset.ema == preset.label_smoothing == preset.code_noise == 0


def test_the_rate_is_held_and_then_falls_to_a_hundredth() -> None:
    preset = PRESETS["star-d30-256"]

    def rate(step: int) -> float:
        return lr_at(
            step,
            peak=preset.lr,
            steps=preset.run.steps,
            warmup=preset.warmup,
            shape=preset.schedule,
            floor=preset.lr_floor,
            hold=preset.lr_hold,
        )

    rest = preset.run.steps - preset.warmup
    assert rate(preset.warmup) == rate(preset.warmup + rest // 25) == preset.lr
    assert rate(preset.warmup + rest // 10) < preset.lr
    assert rate(preset.run.steps - 1) == pytest.approx(0.01 * preset.lr)


def test_the_finest_scale_keeps_3445_tokens_at_1024_pixels() -> None:
    schedule = ScaleSchedule(CURRICULUM_SIZES["models/tokenizer-1024"])
    lengths = kept_lengths(schedule, PRESETS["star-d30-1024"].keep_last_scale)
    assert (lengths[-1], sum(lengths)) == (3445, 8800)
    assert lengths[:-1] == schedule.lengths[:-1]


def test_short_captions_are_never_dropped() -> None:
    torch.manual_seed(0)
    dropped = drop_captions(["a cat"] * 200 + ["a photograph of a tabby cat"] * 200, 0.5, above=20)
    assert dropped[:200] == ["a cat"] * 200
    assert 60 < dropped[200:].count("") < 140


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic shards, one tokenizer on two pyramids, a text encoder, all tiny."""
    root = tmp_path_factory.mktemp("house")
    StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))._save_tokenizer(
        root / "coarse"
    )
    finer = MultiScaleTokenizer(tiny_tokenizer().config.at(FINER))
    finer.load_state_dict(tiny_tokenizer().state_dict())
    finer.save(root / "fine", card="")
    tiny_text_encoder(max_tokens=64).save_pretrained(root / "text")
    write(root / "data", count=16, size=12, test=4)
    return root


def stage(house: Path, tokenizer: str, preset: str, **changes: Any) -> TrainConfig:
    """A stage with the preset's habits and networks of a size for tests."""
    run = RunConfig(
        steps=2, batch_size=4, log_every=1, sample_every=0, checkpoint_every=2, trackers=(), sharding="fsdp2"
    )
    given: dict[str, Any] = {
        "run": run,
        "tokenizer": str(house / tokenizer),
        "text_encoder": str(house / "text"),
        "init_from": "",
        "attention": "scalewise",
        "warmup": 1,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "workers": 0,
    }
    return replace(PRESETS[preset], **given | changes)


def test_two_stages_one_after_the_other(house: Path, tmp_path: Path) -> None:
    data = [str(house / "data" / "train")]
    first = train(stage(house, "coarse", "star-d30-512"), data=data, out=tmp_path / "first")
    fine = stage(house, "fine", "star-d30-1024", init_from=str(first), keep_last_scale=0.5)
    second = train(fine, data=data, out=tmp_path / "second")
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert "loss_scale/4" in lines[0]
    generator = StarGenerator.from_directory(second)
    assert generator.transformer.config.sizes == FINER
    assert generator.transformer.config.checkpointing


def test_a_step_that_leaves_out_tokens_weighs_those_it_computes_alike(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = NextScaleTransformer.forward

    def watched(self: NextScaleTransformer, *args: Any, **options: Any) -> torch.Tensor:
        loss_BL = forward(self, *args, **options)
        if self.training:
            seen.append(loss_BL.shape[1])
            loss_BL.register_hook(lambda gradient: totals.append(gradient.sum(dim=0)))
        return loss_BL

    totals: list[torch.Tensor] = []
    monkeypatch.setattr(NextScaleTransformer, "forward", watched)
    config = stage(house, "coarse", "star-d30-1024", keep_last_scale=0.5, held_out=0.0)
    train(config, data=[str(house / "data" / "train")], out=tmp_path / "run")
    assert seen == [30 - 8] * 2
    assert totals[0].max() / totals[0].min() < 1.001
    seen.clear()
    train(replace(config, whole_last=0.5), data=[str(house / "data" / "train")], out=tmp_path / "whole at the end")
    assert seen == [30 - 8, 30]
    assert totals[-1].numel() == 30
    assert totals[-1].max() / totals[-1].min() < 1.001


def test_flex_is_refused_before_anything_is_read(house: Path, tmp_path: Path) -> None:
    flexible = stage(house, "coarse", "star-d30-256", attention="flex")
    with pytest.raises(InputError, match="attention is flex, which has no gradient on a CPU"):
        train(flexible, data=[str(house / "data" / "train")], out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_an_impossible_share_of_the_finest_scale_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="keep_last_scale is"):
        replace(PRESETS["test"], keep_last_scale=share)
    with pytest.raises(InputError, match="whole_last is"):
        replace(PRESETS["test"], whole_last=share or -0.1)
