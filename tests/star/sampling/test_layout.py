"""Layout prompts have a say in the coarsest scales of their own picture, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from star.clip.wordings import Expansion, Subject
from star.data.errors import InputError
from star.data.text import TextFeatures
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.sampling.layout import LayoutPass, LayoutPrompts
from star.sampling.sampler import draw_codes

OPTIONS = SampleOptions(guidance_scale=2.0, temperature=0.8)
STYLES = ("one style", "other style", "third style")
EXPANSION = Expansion(
    STYLES,
    {
        "apple": Subject(caption="an apple", style=STYLES[0], names={"apple": 30.0}, styles=STYLES[:1]),
        "pear": Subject(caption="a pear", style=STYLES[0], names={"pear": 30.0}, styles=STYLES),
    },
    nearest={STYLES[1]: (STYLES[2], STYLES[0]), STYLES[2]: (STYLES[1], STYLES[0])},
)


@pytest.fixture(scope="module")
def star() -> StarGenerator:
    made = StarGenerator.for_test()
    made.expansion = EXPANSION
    with torch.no_grad():  # so that what is drawn depends on the words
        made.transformer.head.weight.mul_(50)
        made.transformer.text_projection.weight.mul_(30)
    return made


def encode(star: StarGenerator, *prompts: str) -> TextFeatures:
    return star.text_encoder.encode(prompts)


def draw(
    star: StarGenerator, prompts: list[str], layout: LayoutPrompts | None, batch: int | None = None
) -> list[Tensor]:
    codes, _ = draw_codes(
        star.transformer,
        star.tokenizer.quantizer,
        encode(star, *prompts),
        encode(star, ""),
        seeds=range(len(prompts)),
        options=OPTIONS,
        batch=batch,
        layout=layout,
    )
    return codes


def test_blending_is_a_product_of_distributions(star: StarGenerator) -> None:
    torch.manual_seed(0)
    schedule, text = star.transformer.schedule, encode(star, "a cup", "a house", "a dog")
    prompts = LayoutPrompts(text, owners=(1, 1, 1), scales=2, weight=0.6)
    drawn = LayoutPass(star.transformer, prompts, schedule, 2)
    with torch.inference_mode():
        logits_BlV = torch.randn(2, schedule.lengths[0], star.transformer.config.vocabulary)
        blended_BlV = drawn.blend(logits_BlV, None, 0)
        state = star.transformer.begin(text)
        others_NlV = star.transformer.logits(star.transformer.step(None, 0, state)).log_softmax(dim=-1)
    assert torch.equal(blended_BlV[0], logits_BlV[0]), "a picture without layout prompts keeps its logits"
    expected_lV = 0.4 * logits_BlV[1].log_softmax(dim=-1) + 0.6 * others_NlV.mean(dim=0)
    torch.testing.assert_close(
        blended_BlV[1].log_softmax(dim=-1), expected_lV.log_softmax(dim=-1), rtol=1e-4, atol=1e-5
    )


def test_scales_beyond_the_last_that_hears_them_keep_their_logits(star: StarGenerator) -> None:
    prompts = LayoutPrompts(encode(star, "a cup"), owners=(0,), scales=0, weight=1.0)
    drawn = LayoutPass(star.transformer, prompts, star.transformer.schedule, 1)
    logits_BlV = torch.randn(1, 1, star.transformer.config.vocabulary)
    assert drawn.blend(logits_BlV, None, 0) is logits_BlV


@pytest.mark.parametrize("batch", [1, 3])
def test_only_their_own_picture_hears_them(star: StarGenerator, batch: int) -> None:
    prompts = ["an apple", "a pear", "a plum"]
    layout = LayoutPrompts(encode(star, "a house", "a tree"), owners=(1, 1), scales=2, weight=1.0)
    plain, led = draw(star, prompts, None, batch), draw(star, prompts, layout, batch)
    for before, after in zip(plain, led, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not all(torch.equal(before[1], after[1]) for before, after in zip(plain, led, strict=True))


def test_the_whole_say_of_one_prompt_on_all_scales_draws_that_prompt(star: StarGenerator) -> None:
    options = replace(OPTIONS, guidance_scale=1.0)
    layout = LayoutPrompts(encode(star, "a house"), owners=(0,), scales=99, weight=1.0)
    given = (star.transformer, star.tokenizer.quantizer)
    led, _ = draw_codes(*given, encode(star, "an apple"), encode(star, ""), seeds=[5], options=options, layout=layout)
    alone, _ = draw_codes(*given, encode(star, "a house"), encode(star, ""), seeds=[5], options=options)
    assert all(torch.equal(one, other) for one, other in zip(led, alone, strict=True))


def test_a_generator_asks_for_related_captions_where_a_combination_was_not_learnt(star: StarGenerator) -> None:
    options = replace(OPTIONS, related_captions=2, layout_scales=2, layout_weight=1.0)
    prompts = ["an apple, other style", "an apple, one style", "a pear, other style", "a plum, other style"]
    led = star.generate(prompts, seeds=range(4), options=options)
    plain = star.generate(prompts, seeds=range(4), options=replace(options, related_captions=0))
    assert [torch.equal(one, other) for one, other in zip(led, plain, strict=True)] == [False, True, True, True]
    alone = star.generate(prompts[:1], seeds=[0], options=options)
    assert torch.equal(led[0], alone[0]), "a picture is the same whatever is drawn beside it"


@pytest.mark.parametrize("wrong", [{"related_captions": -1}, {"layout_scales": -1}, {"layout_weight": 1.5}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        SampleOptions(**wrong)  # type: ignore[arg-type]
