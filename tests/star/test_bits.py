"""The bitwise pair as a whole: the same programs train, resume, encode and draw with tokens that are bits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import star
from star.data.errors import InputError
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.editing import encode_picture, given_coarse
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.generators.training.run import Run, RunConfig
from star.model.refiner import Refiner, RefinerConfig, ScalePlan
from star.precomputed.encode import encode
from star.precomputed.format import encoding_of
from star.sampling.masked_decoding import MaskedDecoder
from star.sampling.sampler import SampleRng
from star.tiny import CODE_WIDTH, SIZES, tiny_tokenizer, tiny_transformer
from star.training.config import TrainConfig
from star.training.presets import PRESETS
from star.training.train import train


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, the frozen networks, and shards of bits with latents."""
    root = tmp_path_factory.mktemp("house")
    generator = StarGenerator(
        tiny_transformer(bits=CODE_WIDTH, vocabulary=2), tiny_tokenizer(bits=True), tiny_text_encoder(max_tokens=64)
    )
    generator._save_tokenizer(root / "tokenizer")
    generator.text_encoder.save_pretrained(root / "text")
    write(root / "pictures", count=16, size=8, test=4)
    encode(
        [str(root / "pictures" / part) for part in ("train", "test")],
        root / "bits",
        tokenizer=root / "tokenizer",
        text_encoder=root / "text",
        latents=True,
    )
    return root


def config(house: Path, **changes: Any) -> TrainConfig:
    run = RunConfig(steps=4, batch_size=4, log_every=1, sample_every=0, checkpoint_every=2, trackers=())
    given: dict[str, Any] = {"run": run, "tokenizer": str(house / "tokenizer"), "text_encoder": str(house / "text")}
    return replace(PRESETS["bits-test"], **given | changes)


def losses(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "loss" in name} for line in lines]


@pytest.fixture
def generator() -> StarGenerator:
    transformer = tiny_transformer(bits=CODE_WIDTH, vocabulary=2)
    return StarGenerator(transformer, tiny_tokenizer(bits=True), tiny_text_encoder())


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_training_on_shards_of_bits_has_the_losses_of_training_on_pictures(
    house: Path, tmp_path: Path, noise: float
) -> None:
    pictures = [str(house / "pictures" / part) for part in ("train", "test")]
    settings = config(house, code_noise=noise, precompute=False)
    train(settings, data=pictures, out=tmp_path / "pictures")
    train(settings, data=[str(house / "bits")], out=tmp_path / "bits")
    for one, other in zip(losses(tmp_path / "pictures"), losses(tmp_path / "bits"), strict=True):
        assert one == pytest.approx(other, rel=2e-3)  # text features are kept in bfloat16
    validation = json.loads((tmp_path / "bits" / "validation.json").read_text())
    assert validation["unit"] == "bit"
    assert all(0 < scale["unigram"] < 0.75 for scale in validation["scales"])
    assert "Nats per bit on 4 held-out" in (tmp_path / "bits" / "model" / "README.md").read_text()
    encoding = encoding_of([str(path) for path in (house / "bits").glob("*.tar")])
    assert encoding is not None
    assert encoding.tokenizer.bits == CODE_WIDTH


def test_a_run_resumes_to_the_bit_and_its_model_draws(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [str(house / "bits")]
    train(config(house), data=data, out=tmp_path / "whole")
    real = Run._finish_step

    def dies(self: Run) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_finish_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(config(house), data=data, out=tmp_path / "halves")
    train(config(house), data=data, out=tmp_path / "halves", resume=True)
    whole, halves = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "halves"))
    assert whole.read_bytes() == halves.read_bytes()
    pipe = star.load(str(tmp_path / "whole" / "model"))
    picture = pipe("a red circle", seed=3).images[0]
    assert picture.size == (8, 8)
    varied = pipe.vary(picture, "a blue square", keep="2x2", seed=1)
    assert varied.pixels.shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="single bits"):
        pipe("a red circle", seed=3, top_k=5)


def test_neighbours_of_codes_mean_nothing(house: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="noise_neighbours is 3, expected 0 with a tokenizer of bits"):
        train(config(house, noise_neighbours=3), data=[str(house / "bits")], out=tmp_path / "run")


def test_given_bits_stay_and_the_rest_is_drawn(generator: StarGenerator) -> None:
    pixels = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes = encode_picture(generator, pixels)
    assert [tuple(code.shape) for code in codes] == [(1, size * size, CODE_WIDTH) for size in SIZES]
    given = given_coarse(codes, 2, pictures=2)
    seen: list[Tensor] = []
    generator.generate(["a", "b"], seeds=[1, 2], given=given, watch=lambda k, logits, chosen: seen.append(chosen))
    for row in (seen[:4], seen[4:]):  # one pass for each picture
        assert all(torch.equal(row[k], codes[k]) for k in (0, 1))
        assert not torch.equal(row[3], codes[3])


def test_networks_of_another_kind_of_token_are_refused() -> None:
    wide = tiny_transformer(bits=CODE_WIDTH + 1, vocabulary=2)
    with pytest.raises(ValueError, match="bits of a token is 5, its tokenizer or text encoder has 4"):
        StarGenerator(wide, tiny_tokenizer(bits=True), tiny_text_encoder())
    with pytest.raises(ValueError, match="vocabulary is 32"):
        StarGenerator(tiny_transformer(), tiny_tokenizer(bits=True), tiny_text_encoder())


def test_a_refiner_reveals_bits(generator: StarGenerator) -> None:
    """Masked decoding asks the head too: whole tokens are revealed, the surest first, and never revised."""
    refiner = Refiner(
        RefinerConfig(depth=1, plans=(ScalePlan(scale=3, steps=4, plain=1),)), generator.transformer.config
    )
    assert refiner.head.out_features == CODE_WIDTH
    decoder = MaskedDecoder(refiner.eval(), generator.tokenizer.quantizer)
    text, head = generator.text_encoder.encode(["a red circle"]), generator.transformer.token_head
    hidden, logits = torch.randn(1, 16, 32), torch.randn(1, 16, CODE_WIDTH)
    with torch.no_grad():
        canvas = decoder.reveal(hidden, logits, 3, text, 0.0, SampleRng([0], SampleOptions(), head=head))
    assert canvas.codes_Bl.shape == (1, 16, CODE_WIDTH)
    assert canvas.codes_Bl.dtype == torch.uint8
    assert bool(canvas.known_Bl.all())
