"""The weights of cross-attention: real ones, of the pass that drew the picture."""

import numpy as np
import pytest
import torch

from star.attention_maps import attention, weights_of
from star.data.errors import InputError
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.model.attention import CrossAttention
from star.pipeline import Pipeline

PROMPT = "a red dot, a blue"
OPTIONS = SampleOptions(guidance_scale=2.0)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(StarGenerator.for_test(), OPTIONS)


def test_rows_sum_to_one_and_padding_gets_nothing(pipe: Pipeline) -> None:
    for prompt in (PROMPT, "red"):
        maps = pipe.attention(prompt, seed=3)
        count = len(maps.tokens)
        assert [len(weights) for weights in maps.weights] == [h * w for h, w in maps.grids]
        for weights_lT in maps.weights:
            assert torch.allclose(weights_lT.sum(dim=1), torch.ones(len(weights_lT)), atol=1e-5)
            assert not weights_lT[:, count:].any()
            assert (weights_lT[:, :count] > 0).all()


def test_the_weights_are_those_of_the_layer_itself(pipe: Pipeline) -> None:
    """With them, values become what the layer puts out; the fused kernel does not tell its weights."""
    generator = pipe.generator
    assert isinstance(generator, StarGenerator)
    layers = [module for module in generator.transformer.modules() if isinstance(module, CrossAttention)]
    seen = []
    handles = [
        layer.register_forward_hook(lambda module, given, output: seen.append((module, given, output)))
        for layer in layers
    ]
    maps = pipe.attention(PROMPT, seed=3)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(layers) * len(maps.grids)
    per_scale: list[list[torch.Tensor]] = [[] for _ in maps.grids]
    for i, (module, (x, keys, values, mask), output) in enumerate(seen):
        with torch.inference_mode():
            weights_BNlT = weights_of(module, x, keys, mask)
            assert torch.allclose(module.merge(weights_BNlT @ values), output, atol=1e-4)
        per_scale[i // len(layers)].append(weights_BNlT[0].mean(dim=0))
    for own, wanted in zip(maps.weights, per_scale, strict=True):
        assert torch.allclose(own, torch.stack(wanted).mean(dim=0), atol=1e-6)


def test_a_word_is_found_in_all_its_places(pipe: Pipeline) -> None:
    maps = pipe.attention(PROMPT, seed=3)
    places = maps.spans["red"]
    text = "".join(maps.tokens[place] for place in places)
    assert text.replace("</w>", "") == "red"
    for weights_lT, map_hw, grid in zip(maps.weights, maps.of_word("Red"), maps.grids, strict=True):
        assert map_hw.shape == grid
        assert torch.equal(map_hw.flatten(), weights_lT[:, places].sum(dim=1))
    assert "".join(maps.tokens[place] for place in maps.spans["a"]).replace("</w>", "") == "aa"
    assert set(maps.spans["blue"]).isdisjoint(places)
    with pytest.raises(InputError, match="'green' was asked for, expected one of the prompt: a, red"):
        maps.of_word("green")


def test_to_look_changes_nothing(pipe: Pipeline) -> None:
    before = pipe(PROMPT, seed=3)
    frames = pipe.grow(PROMPT, seed=3)
    maps = pipe.attention(PROMPT, seed=3)
    assert len(frames) == len(maps.pixels) == len(maps.grids)
    assert torch.equal(maps.pixels[-1], before.pixels[0])
    assert np.array_equal(np.asarray(frames[-1]), np.asarray(before.images[0]))
    assert not any(module._forward_hooks for module in pipe.generator.transformer.modules())  # type: ignore[attr-defined]
    other = attention(pipe.generator, "a blue square", seed=3, options=OPTIONS)  # type: ignore[arg-type]
    assert not torch.equal(other.weights[-1], maps.weights[-1])


def test_other_families_say_that_they_cannot() -> None:
    for look in (Pipeline(build("stylenat-test")).attention, Pipeline(build("stylenat-test")).grow):
        with pytest.raises(InputError, match="no next-scale model"):
            look("a dog")
