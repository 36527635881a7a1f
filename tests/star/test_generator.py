"""What the contract suite does not ask of StarGenerator: references, digests, and what its directory refuses."""

import json
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.pretrained import ModelDirectory
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.tiny import tiny_tokenizer, tiny_transformer


@pytest.fixture(scope="module")
def generator() -> StarGenerator:
    return StarGenerator.for_test()


@pytest.fixture
def house(tmp_path: Path, generator: StarGenerator) -> Path:
    """A model that refers to a tokenizer and a text encoder beside it."""
    generator._save_tokenizer(tmp_path / "tokenizer")
    generator.text_encoder.save_pretrained(tmp_path / "clip")
    generator.save_pretrained(
        tmp_path / "star", references={"tokenizer": "../tokenizer", "text_encoder": "../clip"}, card="# A card\n"
    )
    return tmp_path


def test_parts_may_lie_beside_the_model(house: Path, generator: StarGenerator) -> None:
    assert {path.name for path in (house / "star").iterdir()} == {"config.json", "README.md", "model.safetensors"}
    assert (house / "star" / "README.md").read_text() == "# A card\n"
    expected = generator.generate(["a red circle"], seeds=[1])
    assert torch.equal(build(house / "star").generate(["a red circle"], seeds=[1]), expected)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_what_was_not_trained_together_is_refused(house: Path, part: str) -> None:
    if part == "tokenizer":
        tiny_tokenizer(seed=1).save(house / "tokenizer", card="")
    else:
        other = tiny_text_encoder(seed=1)
        other.tower.save_pretrained(house / "clip")
    with pytest.raises(InputError, match=f"belongs to a {part} with digest .* not trained together"):
        build(house / "star")


def test_settings_of_drawing_travel_with_the_model(tmp_path: Path) -> None:
    generator = StarGenerator(
        tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(), cross_attention="released", unguided_last=1
    )
    generator.save_pretrained(tmp_path / "model")
    loaded = StarGenerator.from_directory(tmp_path / "model")
    assert (loaded.cross_attention, loaded.unguided_last) == ("released", 1)
    plain = StarGenerator.for_test()
    prompts = ["a red circle", "a cat", "two", "three"]
    drawn = loaded.generate(prompts, seeds=range(4))
    assert not torch.equal(drawn, plain.generate(prompts, seeds=range(4)))


def test_a_weight_of_another_shape_is_named(house: Path) -> None:
    config = house / "star" / "config.json"
    values = json.loads(config.read_text())
    values["config"]["transformer"]["depth"] = 3
    config.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"lacks blocks\.2\.attention"):
        build(house / "star")
    values["config"]["transformer"] |= {"depth": 2, "breadth": 4}
    config.write_text(json.dumps(values))
    with pytest.raises(InputError, match="breadth"):
        build(house / "star")


def test_weights_may_be_stored_narrow(tmp_path: Path, generator: StarGenerator) -> None:
    generator.save_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    stored = ModelDirectory.read(tmp_path / "model").tensors()
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = StarGenerator.from_directory(tmp_path / "model")
    assert {p.dtype for p in loaded.transformer.parameters()} == {torch.float32}
    assert loaded.generate(["a"], seeds=[0]).shape == (1, 3, *generator.resolution)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary is 64, its tokenizer or text encoder has 32"):
        StarGenerator(tiny_transformer(vocabulary=64), tiny_tokenizer(), tiny_text_encoder())


def test_an_empty_request_and_an_empty_prompt(generator: StarGenerator) -> None:
    assert generator.generate([], seeds=[]).shape == (0, 3, *generator.resolution)
    plain = SampleOptions(guidance_scale=1.0)
    unconditional = generator.generate([""], seeds=[3], options=plain)
    assert torch.equal(generator.generate([""], seeds=[3], options=plain), unconditional)
    assert unconditional.float().std() > 0
