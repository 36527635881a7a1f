"""What the contract suite does not ask of VarGenerator: how a prompt names a class."""

import pytest
import torch

from star.class_generator import VarGenerator
from star.data.errors import InputError
from star.generators.protocol import SampleOptions
from star.tiny import tiny_tokenizer, tiny_transformer


@pytest.fixture(scope="module")
def generator() -> VarGenerator:
    return VarGenerator.for_test()


def test_a_prompt_is_the_number_of_a_class(generator: VarGenerator) -> None:
    assert [generator.label(prompt) for prompt in ("0", " 4 ", "", " ")] == [0, 4, 5, 5]
    pixels = generator.generate(["3", " 3", "2"], seeds=[1, 1, 1])
    assert torch.equal(pixels[0], pixels[1])


@pytest.mark.parametrize("prompt", ["5", "-1", "1.0", "a cat", "٣", "1e0"])
def test_anything_else_is_refused(generator: VarGenerator, prompt: str) -> None:
    with pytest.raises(InputError, match="given to a model of classes, expected a number from 0 to 4"):
        generator.generate([prompt], seeds=[1])


def test_an_empty_prompt_needs_no_guidance(generator: VarGenerator) -> None:
    """Without a class both halves are the same, so guidance changes nothing."""
    strong, none = (generator.generate([""], seeds=[2], options=SampleOptions(guidance_scale=s)) for s in (5.0, 1.0))
    assert (strong.int() - none.int()).abs().float().mean() < 1


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="conditioning='class'"):
        VarGenerator(tiny_transformer(), tiny_tokenizer())
    wide = tiny_transformer(conditioning="class", cross_attention=False, vocabulary=64)
    with pytest.raises(ValueError, match="scales, vocabulary, code width and bits are"):
        VarGenerator(wide, tiny_tokenizer())


def test_an_empty_request(generator: VarGenerator) -> None:
    assert generator.generate([], seeds=[]).shape == (0, 3, *generator.resolution)
