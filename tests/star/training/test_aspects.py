"""Pictures of several shapes: each batch has one, training on them learns, goes on exactly, and draws those shapes."""

import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import star.training.train
from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.write import write_shard
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.generators.training.run import RunConfig
from star.model.transformer import NextScaleTransformer
from star.precomputed.dataset import EncodedReader
from star.precomputed.encode import encode
from star.precomputed.format import EncodingConfig, encoding_of
from star.tiny import tiny_tokenizer, tiny_transformer
from star.tokenizer.scales import ScaleSchedule
from star.training.config import TrainConfig
from star.training.optimizers import parameter_groups
from star.training.presets import PRESETS
from star.training.targets import make_targets
from star.training.token_dropping import Part, TokenWeights
from star.training.train import train

ASPECTS = ("1:1", "3:2", "1:2")
SIZES = ((16, 16), (20, 31), (30, 14), (12, 11))  # of the pictures, (H, W), in turn
GRIDS = ((4, 4), (3, 5), (6, 3), (4, 4))  # and the finest grids they come to


def picture(number: int) -> bytes:
    """A coloured rectangle on white, in one of four sizes."""
    H, W = SIZES[number % 4]
    random = np.random.default_rng(number)
    pixels = np.full((H, W, 3), 255, dtype=np.uint8)
    pixels[H // 4 : -H // 4, W // 4 : -W // 4] = random.integers(0, 255, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def samples(numbers: range) -> Iterator[tuple[str, dict[str, bytes]]]:
    """In the order of their shapes, in which encoding leaves them."""
    for number in sorted(numbers, key=lambda number: GRIDS.index(GRIDS[number % 4])):
        record = {"caption": f"picture {number % 5}", "captions": [f"picture {number % 5}", "a box"]}
        yield f"k{number:03d}", {"png": picture(number), "json": json.dumps(record).encode()}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures of three aspects, the frozen networks, and the shards encoded, with latents and without."""
    root = tmp_path_factory.mktemp("house")
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(root / "tokenizer")
    generator.text_encoder.save_pretrained(root / "text")
    for name, numbers in (("train-0", range(24)), ("train-1", range(24, 48)), ("test-0", range(48, 56))):
        (root / "data").mkdir(exist_ok=True)
        write_shard(root / "data" / f"{name}.tar", samples(numbers))
    networks: dict[str, Any] = {"tokenizer": root / "tokenizer", "text_encoder": root / "text"}
    encode([str(root / "data")], root / "codes", aspects=ASPECTS, **networks)
    encode([str(root / "data")], root / "latents", aspects=ASPECTS, latents=True, **networks)
    return root


def config(house: Path, steps: int = 6, **changes: Any) -> TrainConfig:
    run = RunConfig(steps=steps, batch_size=4, log_every=1, sample_every=0, checkpoint_every=2, trackers=())
    given: dict[str, Any] = {"run": run, "tokenizer": str(house / "tokenizer"), "text_encoder": str(house / "text")}
    return replace(PRESETS["test-aspect"], **given | {"validate_every": 3} | changes)


def losses(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "loss" in name or name == "grad_norm"} for line in lines]


def flat(lines: list[dict[str, Any]]) -> list[float]:
    values = [value for line in lines for value in line.values()]
    return [number for value in values for number in (value if isinstance(value, list) else [value])]


def test_a_training_has_batches_of_one_shape_each_and_draws_those_shapes(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    learn = star.training.train.learn

    def watched(config: Any, run: Any, model: Any, encoder: Any, batch: Batch, *rest: Any) -> None:
        wanted = {GRIDS[int(key[1:]) % 4] for key in batch.keys}
        size = (batch.image_B3HW.shape[2] // 2, batch.image_B3HW.shape[3] // 2)
        assert wanted == {size}
        seen[size] += 1
        learn(config, run, model, encoder, batch, *rest)

    monkeypatch.setattr(star.training.train, "learn", watched)
    made = train(config(house, steps=9), data=[str(house / "data")], out=tmp_path / "run")
    assert set(seen) == set(GRIDS)
    found = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert set(found["shapes"]) == {"4x4", "3x5", "6x3"}
    assert found["pictures"] == 8
    weights = {"4x4": 4, "3x5": 2, "6x3": 2}
    for k, scale in enumerate(found["scales"]):
        of_shapes = sum(found["shapes"][name][k] * count for name, count in weights.items()) / 8
        assert scale["loss"] == pytest.approx(of_shapes, abs=2e-4)

    model = build(str(made))
    assert isinstance(model, StarGenerator)
    assert model.aspects == ASPECTS
    with caplog.at_level(logging.WARNING):
        for aspect, (h, w) in zip(ASPECTS, GRIDS, strict=False):
            drawn = model.generate(["a box"], seeds=[1], options=SampleOptions(size=aspect))
            assert drawn.shape == (1, 3, 2 * h, 2 * w)
        assert not caplog.records
        for _ in range(2):
            model.generate(["a box"], seeds=[1], options=SampleOptions(size="4:1"))
    (record,) = caplog.records
    assert "trained on 8 x 8, 6 x 10, 12 x 6" in record.getMessage()


def test_a_training_on_aspects_goes_on_where_it_stopped(house: Path, tmp_path: Path) -> None:
    settings = config(house, dropout=0.1, code_noise=0.2)
    whole = train(settings, data=[str(house / "data")], out=tmp_path / "whole")

    class KilledError(Exception):
        pass

    def dying(*given: Any, step: list[int] = [0]) -> None:  # noqa: B006
        step[0] += 1
        if step[0] > 3:
            raise KilledError
        learn(*given)

    learn = star.training.train.learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star.training.train, "learn", dying)
        with pytest.raises(KilledError):
            train(settings, data=[str(house / "data")], out=tmp_path / "killed")
    resumed = train(settings, data=[str(house / "data")], out=tmp_path / "killed", resume=True)
    one, other = (load_file(model / "model.safetensors") for model in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.parametrize(
    ("encoded", "changes"),
    [("codes", {}), ("latents", {"code_noise": 0.5, "noise_neighbours": 3, "keep_last_scale": 0.5})],
    ids=["codes", "latents and noise"],
)
def test_training_on_codes_of_rectangles_has_the_losses_of_training_on_the_pictures(
    house: Path, tmp_path: Path, encoded: str, changes: dict[str, Any]
) -> None:
    train(config(house, **changes), data=[str(house / "data")], out=tmp_path / "pictures")
    train(config(house, **changes), data=[str(house / encoded)], out=tmp_path / "codes")
    one, other = losses(tmp_path / "pictures"), losses(tmp_path / "codes")
    assert [set(line) for line in one] == [set(line) for line in other]
    assert flat(one) == pytest.approx(flat(other), rel=2e-3)  # text features are kept in bfloat16


def test_encoded_rectangles_come_in_batches_of_their_shape(house: Path) -> None:
    encoding = encoding_of([str(house / "codes" / "train-0.tar")])
    assert encoding is not None
    buckets = tuple((2 * h, 2 * w) for h, w in dict.fromkeys(GRIDS))
    shards = (str(house / "codes" / "train-0.tar"), str(house / "codes" / "train-1.tar"))
    settings = DataConfig(shards=shards, buckets=buckets)
    pipeline = Pipeline(settings, batch_size=4, reader=EncodedReader(encoding.config))
    for batch in islice(pipeline.batches(), 12):
        (grid,) = {GRIDS[int(key[1:]) % 4] for key in batch.keys}
        assert batch.image_B3HW.shape == (4, 0, *grid)
        assert batch.extra["codes_L"].shape == (4, encoding.tokenizer.schedule.at(*grid).length)
    keys = [key for batch in pipeline.one_pass() for key in batch.keys]
    assert sorted(keys) == [f"k{number:03d}" for number in range(48)]
    with pytest.raises(InputError, match="tell no size"):
        Pipeline(settings, batch_size=4, reader=lambda members, choice: {})


def test_what_cannot_be_is_refused(house: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precompute is true and aspects are given"):
        config(house, precompute=True)
    with pytest.raises(InputError, match="expected width:height"):
        config(house, aspects=("1:1", "wide"))
    with pytest.raises(InputError, match="two of which give the same grid"):
        train(config(house, aspects=("3:2", "6:4")), data=[str(house / "data")], out=tmp_path / "a")
    for aspects, told in (((), "aspects is none"), (("1:1",), "aspects is 1:1")):
        with pytest.raises(InputError, match=f"{told}, the shards were encoded with 1:1 3:2 1:2: set --aspects"):
            train(config(house, aspects=aspects), data=[str(house / "codes")], out=tmp_path / "b")


def test_encodings_of_squares_are_marked_as_before() -> None:
    """Shards that were encoded before there were aspects still fit their description."""
    assert EncodingConfig(tokenizer="t", text_encoder="e").mark == "b16f4057b998a691"
    assert EncodingConfig(tokenizer="t", text_encoder="e", aspects=("3:2",)).mark != "b16f4057b998a691"


def test_parts_and_weights_follow_the_shape() -> None:
    square = ScaleSchedule((1, 2, 3, 4))
    wide = square.of_aspect("3:2")
    part = Part(square, 4, 0.5)
    assert part.of(square) is part
    assert part.of(wide).lengths == (*wide.lengths[:3], round(wide.lengths[3] / 2))
    weights = TokenWeights(0.75, torch.device("cpu"))
    for one in (part, part.of(wide)):
        assert len(weights[one]) == sum(one.lengths)
        assert float(weights[one].sum()) == pytest.approx(1)
        assert weights[one] is weights[one]


def test_fifty_steps_on_one_batch_of_rectangles_are_learnt() -> None:
    tokenizer, encoder = tiny_tokenizer(), tiny_text_encoder()
    model: NextScaleTransformer = tiny_transformer(sharpness=1.0, width=64, heads=4).train()
    schedule = tokenizer.schedule.of_aspect("2:1")
    image_B3HW = (
        torch.rand(4, 3, *(2 * side for side in schedule.grid), generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    targets = make_targets(tokenizer.quantizer, tokenizer.image_to_latent(image_B3HW) * 5)
    assert targets.schedule == schedule
    text = encoder.encode(["one", "two", "three", "four"])
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=3e-3)
    found = []
    for _ in range(50):
        loss = model(targets.teacher_input_BlE, text, codes_BL=targets.codes_BL, schedule=schedule).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    assert found[-1] < 0.3 * found[0]
