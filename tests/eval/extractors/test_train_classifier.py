"""Training of a judge: labels of the training shards alone, motions that keep what is shown, a run that resumes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pixels_to_image
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.synthetic import write
from star.eval.extractors.classifier import (
    ClassifierConfig,
    ClassifierNetwork,
    read_classifier,
    read_phrases,
    subject_meant,
)
from star.eval.extractors.extractor import extractor
from star.eval.extractors.train_classifier import (
    NONE,
    PRESETS,
    ClassifierTrainConfig,
    Labels,
    accuracy,
    jitter,
    save_classifier,
    train,
    with_labels,
)
from star.generators.pretrained import ModelDirectory
from star.generators.training.run import RunConfig

TINY = ClassifierConfig(
    image_size=16,
    widths=(4, 8),
    blocks=(1, 1),
    subjects=("a heart", "a star"),
    styles=("flat", "line"),
    categories=("single",),
    tags=("red", "heart"),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"), count=48, size=16, test=16)


def sources(shards: Path) -> list[str]:
    return [str(shards / "train"), str(shards / "test")]


def tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


# --- labels ---


def test_labels_are_places_and_what_was_never_learnt_has_none() -> None:
    found = Labels(TINY)(
        [
            {"subject": "a star", "style": "flat", "category": "single", "tags": ["heart", "blue"]},
            {"subject": "a moon", "style": "line"},
        ]
    )
    assert found["subject"].tolist() == [1, NONE]
    assert found["style"].tolist() == [0, 1]
    assert found["category"].tolist() == [0, NONE]
    assert found["tags"].tolist() == [[0, 1], [0, 0]]


def test_labels_are_found_in_the_shards_and_rare_tags_left_out() -> None:
    infos = [
        {"subject": "b", "style": "s", "category": "c", "tags": ["often", "often"]},
        {"subject": "a", "style": "s", "category": "c", "tags": ["often", "once"]},
    ]
    found = with_labels(ClassifierConfig(), infos, rarest_tag=2)
    assert (found.subjects, found.styles, found.categories, found.tags) == (("a", "b"), ("s",), ("c",), ("often",))
    with pytest.raises(InputError, match="no style and no category"):
        with_labels(ClassifierConfig(), [{"subject": "a"}], rarest_tag=1)


# --- motions ---


def test_no_motion_is_none_at_all_and_white_stays_white() -> None:
    image = pixels_to_image(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    torch.testing.assert_close(jitter(image, 0, 0, 0), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(jitter(torch.ones(4, 3, 16, 16), 0.1, 0.2, 10), torch.ones(4, 3, 16, 16))


def test_a_picture_moves_by_up_to_the_share_of_its_side() -> None:
    torch.manual_seed(0)
    image = torch.zeros(200, 1, 32, 32)
    image[:, :, 15:17, 15:17] = 1.0
    moved = jitter(image, 0.125, 0, 0)
    ramp = torch.arange(32.0)
    for dimension in (2, 3):
        place_B = (moved.sum(dim=(1, 5 - dimension)) * ramp).sum(dim=1) / moved.sum(dim=(1, 2, 3))
        assert 3.5 < (place_B - 15.5).abs().max() <= 4.01
        assert (place_B - 15.5).mean().abs() < 0.5


def test_pictures_are_turned_and_never_mirrored() -> None:
    """An arrow to the right stays one to the right: the right half is brighter in all copies."""
    torch.manual_seed(0)
    image = torch.linspace(-1, 1, 32).expand(100, 3, 32, 32)
    turned = jitter(image, 0.06, 0.1, 5)
    assert (turned[..., 16:].mean(dim=(1, 2, 3)) > turned[..., :16].mean(dim=(1, 2, 3))).all()
    assert (turned[:, 0, 4, 16] - turned[:, 0, 28, 16]).abs().max() > 0.02


# --- the network ---


def test_a_written_judge_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ClassifierNetwork(TINY).eval()
    save_classifier(tmp_path / "judge", network, dtype=torch.float32)
    read, directory = read_classifier(tmp_path / "judge")
    image = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(read.features(image), network.features(image))
        assert (read.features(image) >= 0).all()
    assert read.config == TINY
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert extractor(f"judge:{tmp_path / 'judge'}").width == 8
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="no safetensors file"):
        read_classifier(tmp_path / "judge")
    assert directory.family == "judge"


def test_blocks_start_as_the_way_around_them() -> None:
    torch.manual_seed(0)
    network = ClassifierNetwork(replace(TINY, widths=(4,), blocks=(2,))).eval()
    hidden = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(network.stages(hidden), hidden)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": (4, 8), "blocks": (1,)}, "give as many of both"),
        ({"image_size": 2, "widths": (4, 8), "blocks": (1, 1)}, "cannot be halved 2 times"),
    ],
)
def test_impossible_sizes_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassifierConfig(**values)


def test_a_share_is_below_one() -> None:
    with pytest.raises(InputError, match="smoothing is 1"):
        ClassifierTrainConfig(run=RunConfig(steps=1), smoothing=1.0)


# --- training ---


def test_a_run_cut_in_the_middle_ends_with_the_same_weights(shards: Path, tmp_path: Path) -> None:
    config = PRESETS["test"]
    whole = tensors(train(config, data=sources(shards), out=tmp_path / "whole"))
    first = replace(config, run=replace(config.run, steps=6, checkpoint_every=3))
    train(first, data=sources(shards), out=tmp_path / "cut")
    for folder in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (tmp_path / "cut" / "model" / "model.safetensors").unlink()
    resumed = tensors(train(first, data=sources(shards), out=tmp_path / "cut", resume=True))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_it_learns_the_training_shards_and_only_measures_the_others(shards: Path, tmp_path: Path) -> None:
    config = replace(
        PRESETS["test"],
        run=RunConfig(steps=40, batch_size=24, log_every=10, sample_every=40, checkpoint_every=40, seed=1),
        learning_rate=2e-2,
    )
    model = train(config, data=sources(shards), out=tmp_path)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["loss"] < 0.75 * logged[0]["loss"]
    network, _ = read_classifier(model)
    train_shards = sorted(str(path) for path in (shards / "train").glob("*.tar"))
    known = accuracy(network, train_shards)
    held_out = accuracy(network, sorted(str(path) for path in (shards / "test").glob("*.tar")))
    assert {"category", "style", "subject", "subject_5"} == set(known)
    assert logged[-1]["validation/subject"] == pytest.approx(held_out["subject"], abs=0.13)  # stored in bfloat16
    assert known["style"] > 1.5 / len(network.config.styles)
    assert known["subject"] <= known["subject_5"]
    phrases = read_phrases(ModelDirectory.read(model), network.config.subjects)
    assert set(phrases.values()) == set(network.config.subjects)
    infos = [
        info for _, info in Pipeline(DataConfig(shards=tuple(train_shards), resolution=16), batch_size=8).records()
    ]
    assert all(subject_meant(str(info["caption"]), phrases) == info["subject"] for info in infos)
