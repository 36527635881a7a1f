"""Ways between pictures: their ends, their frames, and what lies between."""

import numpy as np
import pytest
import torch
from PIL import Image

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.morph import mix_text
from star.pipeline import Pipeline
from star.tiny import CODE_WIDTH, tiny_tokenizer, tiny_transformer

FAMILIES = ("star", "bits", "stylegan-t", "stylenat", "styleformer")


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request: pytest.FixtureRequest) -> Pipeline:
    options = SampleOptions(guidance_scale=2.0, top_p=0.9) if request.param in ("star", "bits") else SampleOptions()
    if request.param == "bits":  # a STAR whose tokens are bits
        transformer = tiny_transformer(bits=CODE_WIDTH, vocabulary=2)
        return Pipeline(StarGenerator(transformer, tiny_tokenizer(bits=True), tiny_text_encoder()), options)
    return Pipeline(build(f"{request.param}-test"), options)


def same(left: Image.Image, right: Image.Image) -> bool:
    return np.array_equal(np.asarray(left), np.asarray(right))


def test_the_ends_are_what_prompt_and_seed_draw(pipe: Pipeline) -> None:
    frames = pipe.morph(["a red circle", "a dog"], seeds=[1, 7], frames=5)
    assert len(frames) == 5
    assert same(frames[0], pipe("a red circle", seed=1).images[0])
    assert same(frames[-1], pipe("a dog", seed=7).images[0])
    assert any(not same(frame, end) for frame in frames[1:-1] for end in (frames[0], frames[-1]))


def test_one_prompt_or_one_seed_serves_all_stops(pipe: Pipeline) -> None:
    frames = pipe.morph("a dog", seeds=[1, 7, 2], frames=3)
    assert len(frames) == 5
    for i, seed in ((0, 1), (2, 7), (4, 2)):
        assert same(frames[i], pipe("a dog", seed=seed).images[0])
    assert same(pipe.morph(["a", "b"], seeds=3, frames=2)[1], pipe("b", seed=3).images[0])


def test_a_way_to_where_one_is_stands_still(pipe: Pipeline) -> None:
    frames = pipe.morph("a dog", seeds=[4, 4], frames=3)
    assert same(frames[0], frames[1])


def test_small_steps_change_little(pipe: Pipeline) -> None:
    frames = pipe.morph("a red circle", seeds=[1, 7], frames=12)
    pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]).astype(np.float32))
    steps = (pixels[1:] - pixels[:-1]).abs().mean(dim=(1, 2, 3))
    assert float(steps.median()) < float((pixels[0] - pixels[-1]).abs().mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "a dog", "seeds": 3}, "1 stops with 8 frames"),
        ({"prompts": ["a", "b"], "frames": 1}, "2 stops with 1 frames"),
        ({"prompts": ["a", "b", "c"], "seeds": [1, 2]}, "3 prompts and 2 seeds were given"),
    ],
)
def test_what_is_no_way_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(build("star-test")).morph(**arguments)


def test_other_families_say_that_they_cannot() -> None:
    with pytest.raises(InputError, match="expected a STAR model or a style-based GAN"):
        Pipeline(build("var-test")).morph("1", seeds=[1, 2])


def test_the_further_words_of_the_longer_prompt_are_read_one_by_one() -> None:
    encoder = build("star-test").text_encoder  # type: ignore[attr-defined]
    short, long = encoder.encode(["red"]), encoder.encode(["a red circle"])
    lengths = [int(text.mask_BT.sum()) for text in (short, long)]
    assert lengths[0] < lengths[1]
    read = [int(mix_text(short, long, t / 20).mask_BT.sum()) for t in range(21)]
    back = [int(mix_text(long, short, t / 20).mask_BT.sum()) for t in range(21)]
    assert (read[0], read[-1]) == tuple(lengths)
    assert read == sorted(read)
    assert back == read[::-1]
    middle = mix_text(short, long, 0.5)
    assert not middle.tokens_BTD[~middle.mask_BT].any()
    assert torch.equal(mix_text(short, long, 0.0).tokens_BTD, short.tokens_BTD)
    assert torch.equal(mix_text(short, long, 1.0).pooled_BD, long.pooled_BD)
