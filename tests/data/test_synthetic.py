"""Synthetic shards: sound, repeatable, honestly split, and true to their captions."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.check import check
from star.data.synthetic import COLOURS, SHAPES, STYLES, Scene, Thing, describe, draw, sample, write


def test_both_splits_are_sound_and_as_large_as_asked(tmp_path: Path) -> None:
    write(tmp_path / "out", count=24, size=32, test=8)
    for split, number in (("train", 24), ("test", 8)):
        report = check(tmp_path / "out" / split)
        assert report.ok
        assert not report.notes
        assert report.usable == number
        assert report.shards > 1
    batch = next(
        Pipeline(DataConfig(shards=(str(tmp_path / "out" / "train"),), resolution=32), batch_size=24).batches()
    )
    assert len(set(batch.keys)) == 24
    assert {"caption", "captions", "subject", "style", "category", "tags"} <= batch.info[0].keys()
    with pytest.raises(InputError, match="already holds"):
        write(tmp_path / "out", count=2, test=0)


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    def contents(name: str, seed: int = 0) -> dict[str, bytes]:
        out = write(tmp_path / name, count=6, size=16, test=2, seed=seed)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.tar")}

    assert contents("one") == contents("two")
    assert contents("other", seed=1) != contents("third")
    assert sample("train", 3, 16, 0) == sample("train", 3, 16, 0)


def test_the_test_split_asks_for_combinations_never_shown_in_training() -> None:
    def singles(split: str) -> set[tuple[str, str]]:
        records = [json.loads(sample(split, index, 8, 0)[1]["json"]) for index in range(1000)]
        assert {record["style"] for record in records} == set(STYLES)
        return {(record["subject"], record["style"]) for record in records if record["category"] == "single"}

    train, test = singles("train"), singles("test")
    assert len(train) > 5 * len(test) > 100
    assert not train & test
    assert {subject for subject, _ in test} <= {subject for subject, _ in train}


def test_captions_say_what_is_drawn() -> None:
    scene = Scene((Thing("orange", "star"), Thing("blue", "square")), "above", "flat")
    record = describe(scene)
    assert record["caption"] == "an orange star above a blue square, flat style"
    assert record["captions"][0] == record["caption"]
    assert record["captions"][1] == "star, orange, square, blue, flat style"
    assert record["tags"] == ["star", "orange", "square", "blue"]
    assert describe(Scene((Thing("red", "ring"),), None, "pixel"))["caption"] == "a red ring, pixel style"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_in_its_colour_on_white(shape: str, style: str) -> None:
    pixels = np.asarray(draw(Scene((Thing("blue", shape),), None, style), 32, Random(0))).astype(int)
    drawn = np.abs(pixels - 255).sum(-1) > 60
    assert 0.04 < drawn.mean() < 0.8
    assert not drawn[[0, -1]].any()
    assert not drawn[:, [0, -1]].any()
    red, _, blue = pixels[drawn].mean(0)
    assert blue > red + 40


@pytest.mark.parametrize(
    ("relation", "axis", "first"), [("above", 0, 0), ("below", 0, 1), ("left of", 1, 0), ("right of", 1, 1)]
)
def test_relations_are_true(relation: str, axis: int, first: int) -> None:
    scene = Scene((Thing("red", "circle"), Thing("blue", "square")), relation, "flat")
    for seed in range(5):
        pixels = np.asarray(draw(scene, 32, Random(seed))).astype(int)
        centres = [np.argwhere(np.abs(pixels - COLOURS[name]).sum(-1) < 30).mean(0)[axis] for name in ("red", "blue")]
        assert (centres[0] > centres[1]) == bool(first)
        assert abs(centres[0] - centres[1]) > 8


def test_shapes_and_styles_can_be_told_apart() -> None:
    pictures = {
        (shape, style): np.asarray(draw(Scene((Thing("black", shape),), None, style), 24, Random(0))).astype(float)
        for shape in SHAPES
        for style in STYLES
    }
    items = list(pictures)
    for number, one in enumerate(items):
        for other in items[number + 1 :]:
            assert np.abs(pictures[one] - pictures[other]).mean() > 3, (one, other)


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    for count, size, test in ((0, 64, 1), (1, 64, -1), (1, 4, 1)):
        with pytest.raises(InputError, match="Cannot draw"):
            write(tmp_path / "out", count=count, size=size, test=test)
