"""Training the tokenizer: it learns, resumes to the bit, and what is frozen stays frozen."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.generators.training.run import RunConfig
from star.tokenizer.autoencoder import DetailConfig
from star.tokenizer.config import TokenizerTrainConfig
from star.tokenizer.losses import FeatureDistance
from star.tokenizer.metrics import measure, psnr_B
from star.tokenizer.presets import PRESETS
from star.tokenizer.tokenizer import MultiScaleTokenizer
from star.tokenizer.tokens import CodeUsage
from star.tokenizer.train import _initial, jittered, train


def config(**changes: object) -> TokenizerTrainConfig:
    run = RunConfig(steps=10, batch_size=4, log_every=1, sample_every=0, checkpoint_every=5, trackers=())
    return replace(PRESETS["test"], **{"run": run, **changes})  # type: ignore[arg-type]


def weights(directory: Path) -> dict[str, Tensor]:
    return MultiScaleTokenizer.from_directory(directory).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor], names: Sequence[str] = ("",)) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a if name.startswith(tuple(names)))


def test_ten_steps_equal_five_a_stop_and_five(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = config(adversary_weight=0.1, adversary_start=3, cut=0.3)
    whole = train(options, data=[str(shards / "train"), str(shards / "test")], out=tmp_path / "whole", resume=False)

    import star.tokenizer.train as module

    real = module.reconstruction_loss
    calls = 0

    def dies_in_step_eight(*arguments: object, **named: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise KeyboardInterrupt
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "reconstruction_loss", dies_in_step_eight)
    with pytest.raises(KeyboardInterrupt):
        train(options, data=[str(shards / "train"), str(shards / "test")], out=tmp_path / "halves", resume=False)
    monkeypatch.setattr(module, "reconstruction_loss", real)
    halves = train(options, data=[str(shards / "train"), str(shards / "test")], out=tmp_path / "halves", resume=True)
    assert calls == 8
    assert same(weights(whole), weights(halves))
    lines = (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))
    assert all(f"usage_distinct/{k}" in json.loads(lines[-1]) for k in range(3))


def test_fifty_steps_on_one_batch_learn_it(shards: Path, tmp_path: Path) -> None:
    run = RunConfig(steps=50, batch_size=24, log_every=1, sample_every=0, checkpoint_every=50, trackers=())
    train(config(run=run, lr=3e-3), data=[str(shards / "train"), str(shards / "test")], out=tmp_path, resume=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss_reconstruction"] < 0.5 * lines[0]["loss_reconstruction"]


def test_frozen_codes_keep_their_meaning_while_the_decoder_learns(shards: Path, tmp_path: Path) -> None:
    first = train(
        config(dtype="float32"),
        data=[str(shards / "train"), str(shards / "test")],
        out=tmp_path / "first",
        resume=False,
    )
    tuned = train(
        config(dtype="float32", init_from=str(first), freeze_codes=True),
        data=[str(shards / "train"), str(shards / "test")],
        out=tmp_path / "tuned",
        resume=False,
    )
    before, after = weights(first), weights(tuned)
    assert same(before, after, ("encoder.", "quant_conv.", "quantizer."))
    assert not same(before, after, ("decoder.",))
    before_digest = MultiScaleTokenizer.from_directory(first).digest
    assert MultiScaleTokenizer.from_directory(tuned).digest == before_digest


def test_the_stored_model_scores_what_its_record_says(shards: Path, tmp_path: Path) -> None:
    directory = train(config(), data=[str(shards / "train"), str(shards / "test")], out=tmp_path, resume=False)
    record = json.loads((tmp_path / "scores.json").read_text())
    tokenizer = MultiScaleTokenizer.from_directory(directory)
    data = DataConfig(shards=(str(shards / "test"),), resolution=tokenizer.resolution, shuffle=False)
    scores = measure(tokenizer, Pipeline(data, batch_size=4).one_pass())
    assert scores.pictures == record["pictures"] == 6
    assert scores.psnr == pytest.approx(record["psnr"], abs=1e-4)
    assert scores.psnr_at_cut[-1] == scores.psnr
    assert isinstance(scores.usage, CodeUsage)
    assert scores.usage.distinct == record["usage"]["distinct"]
    assert "PSNR" in (directory / "README.md").read_text()


def test_measuring_needs_pictures() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        measure(MultiScaleTokenizer(PRESETS["test"].network), list[Batch]())


def test_psnr_of_a_known_error() -> None:
    black = torch.full((1, 3, 4, 4), -1.0)
    grey = torch.full((1, 3, 4, 4), -1 + 2 * 51 / 255)
    assert psnr_B(black, grey).item() == pytest.approx(20 * torch.log10(torch.tensor(5.0)).item())
    assert psnr_B(black, black).item() == 100.0


def test_another_network_cannot_be_started_from(shards: Path, tmp_path: Path) -> None:
    first = train(config(), data=[str(shards / "train"), str(shards / "test")], out=tmp_path / "first", resume=False)
    wide = replace(PRESETS["test"].network, quant_conv=False)
    with pytest.raises(InputError, match="another network"):
        train(
            config(init_from=str(first), network=wide),
            data=[str(shards / "train"), str(shards / "test")],
            out=tmp_path / "b",
            resume=False,
        )


def test_perceptual_distance_is_zero_for_equal_pictures_and_differentiable() -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    vit = ViTModel(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        )
    )
    distance = FeatureDistance(vit, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert distance(image, image).item() == 0.0
    moved = (image + 0.1).requires_grad_()
    distance(moved, image).backward()
    assert moved.grad is not None
    assert moved.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_a_perceptual_network_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no-such-network"):
        FeatureDistance.from_pretrained("no-such-network")


def test_a_decoder_with_detail_begins_as_the_old_one_and_leaves_the_codes_alone(shards: Path, tmp_path: Path) -> None:
    data = [str(shards / "train"), str(shards / "test")]
    first = train(config(dtype="float32"), data=data, out=tmp_path / "first", resume=False)
    old = MultiScaleTokenizer.from_directory(first)
    detail = DetailConfig(channels=(8, 4), blocks=(1, 1), trunk_blocks=1)
    finer = config(
        dtype="float32",
        init_from=str(first),
        network=replace(PRESETS["test"].network, detail=detail),
        freeze_codes=True,
        jitter=True,
    )
    begun = _initial(finer).eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(begun.decode(begun.encode(image)), old.decode(old.encode(image)))
    tuned = MultiScaleTokenizer.from_directory(train(finer, data=data, out=tmp_path / "tuned", resume=False))
    assert tuned.digest == old.digest == begun.digest
    assert not torch.equal(tuned.decode(tuned.encode(image)), old.decode(old.encode(image)))
    again = train(
        replace(finer, init_from=str(tmp_path / "tuned" / "model")), data=data, out=tmp_path / "b", resume=False
    )
    assert MultiScaleTokenizer.from_directory(again).config.detail == detail


def test_detail_needs_patches_that_halve() -> None:
    with pytest.raises(ValueError, match="even number of pixels"):
        replace(PRESETS["var-256"].network, detail=DetailConfig())


def test_jittered_pictures_are_the_same_moved_and_mirrored() -> None:
    torch.manual_seed(0)
    image = torch.rand(16, 3, 16, 16) * 2 - 1
    out = jittered(image)
    assert out.shape == image.shape
    for before, after in zip(image, out, strict=True):
        for channel in range(3):
            assert set(after[channel].unique().tolist()) <= set(before[channel].unique().tolist())
    ramp = torch.arange(16.0).expand(16, 3, 16, 16)
    across = jittered(ramp)[:, 0, 0].diff(dim=1)
    assert across.abs().max() == 1
    assert (across.sum(dim=1) > 0).any()
    assert (across.sum(dim=1) < 0).any()
    assert (across == 0).any()
    flat = torch.full((8, 3, 16, 16), 0.25)
    flat[:, 1] = -0.5
    assert torch.equal(jittered(flat), flat)  # edges go on outwards
