"""The fast way to draw against the released way: the same codes and pictures; and filters against a full sort."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from star.class_generator import VarGenerator
from star.data.errors import InputError
from star.generator import StarGenerator
from star.generators import registry
from star.generators.protocol import Generator, SampleOptions
from star.model import heads
from star.model.attention import KeyValueCache
from star.model.block import Block
from star.model.heads import filter_logits
from star.sampling.baseline import ConcatenatedCache, full_sort_filter

OPTIONS = SampleOptions(guidance_scale=4.0, top_k=9, top_p=0.9)


@pytest.mark.parametrize("family", [StarGenerator, VarGenerator])
@pytest.mark.parametrize(
    "options", [OPTIONS, SampleOptions(guidance_scale=1), SampleOptions(top_k=1, cross_attention="released")]
)
def test_both_ways_draw_the_same_pictures(family: type[StarGenerator | VarGenerator], options: SampleOptions) -> None:
    prompts = ["a red circle", ""] if family is StarGenerator else ["3", ""]
    expected = family.for_test().generate(prompts, seeds=[5, 6], options=options)
    slow: Generator = family.for_test().baseline()
    drawn = slow.generate(prompts, seeds=[5, 6], options=options)
    assert (drawn.int() - expected.int()).abs().max() <= 1
    assert not torch.equal(drawn[0], drawn[1])


def test_both_ways_draw_the_same_rectangle() -> None:
    size = "4x8"
    options = SampleOptions(guidance_scale=4.0, top_k=9, top_p=0.9, size=size)
    expected = StarGenerator.for_test().generate(["a red circle", ""], seeds=[5, 6], options=options)
    slow = StarGenerator.for_test().baseline()
    assert (slow.generate(["a red circle", ""], seeds=[5, 6], options=options).int() - expected.int()).abs().max() <= 1
    assert expected.shape == (2, 3, 4, 8)
    assert slow.generate([], seeds=[], options=options).shape == (0, 3, 4, 8)
    wide = slow.generate(["a red circle"], seeds=[5], options=replace(options, size="8x8"))
    assert wide.shape == (1, 3, 8, 8)


def test_classes_are_drawn_as_squares_alone() -> None:
    with pytest.raises(InputError, match="draws squares alone"):
        VarGenerator.for_test().baseline().generate(["3"], seeds=[0], options=SampleOptions(size="3:2"))


def test_the_shipped_model_draws_the_same_to_the_bit() -> None:
    options = registry.recommended("star-emoji")
    fast = registry.build("star-emoji").generate(["a red apple"], seeds=[3], options=options)
    model = registry.build("star-emoji")
    assert isinstance(model, StarGenerator)
    assert torch.equal(model.baseline().generate(["a red apple"], seeds=[3], options=options), fast)


def test_the_baseline_computes_text_keys_at_every_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StarGenerator.for_test()
    block = model.transformer.blocks[0]
    assert isinstance(block, Block)
    assert block.cross_attention is not None
    calls, encode = list[int](), block.cross_attention.encode_text

    def counted(tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return encode(tokens_BTD)

    monkeypatch.setattr(block.cross_attention, "encode_text", counted)
    model.baseline().generate(["a"], seeds=[0], options=OPTIONS)
    assert len(calls) == model.transformer.schedule.count
    calls.clear()
    StarGenerator.for_test().generate(["a"], seeds=[0], options=OPTIONS)
    model.generate(["a"], seeds=[0], options=OPTIONS)
    assert len(calls) == 1


def test_both_caches_hold_the_same() -> None:
    torch.manual_seed(0)
    kind, device = torch.float32, torch.device("cpu")
    whole, grown = KeyValueCache.empty((2, 1, 5, 4), kind, device), ConcatenatedCache.empty((2, 1, 0, 4), kind, device)
    for length in (1, 4):
        new = torch.randn(2, 2, 1, length, 4)
        for ours, theirs in zip(whole.append(*new), grown.append(*new), strict=True):
            assert torch.equal(ours, theirs)
    assert grown.rows(slice(1)).keys_BNLd.shape == (1, 1, 5, 4)


@pytest.mark.parametrize("top_k", [0, 3, 40])
@pytest.mark.parametrize("top_p", [0.0, 0.05, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_filters_keep_what_a_full_stable_sort_keeps(top_k: int, top_p: float, kind: torch.dtype) -> None:
    """Rounded to bfloat16 many logits are equal, also where the border is."""
    logits = (3 * torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(1))).to(kind).float()
    logits[:, ::7] = logits[:, ::7].round()
    expected = full_sort_filter(logits, top_k, top_p)
    assert torch.equal(filter_logits(logits, top_k, top_p), expected)
    assert torch.equal(filter_logits(logits.clone().requires_grad_(), top_k, top_p), expected)
    if top_p > 0:
        assert torch.equal(filter_logits(logits, top_k, torch.tensor(top_p, dtype=torch.float64)), expected)


@pytest.mark.parametrize("top_p", [0.013, 0.317, 0.811, 0.9987])
def test_a_sort_of_the_likeliest_keeps_what_a_full_sort_keeps_where_many_are_equal(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU. Of five values, so that the k-th has many equals, of which top-p takes none, some or all."""
    monkeypatch.setattr(heads, "sorts_by_numpy", lambda logits: False)
    logits = torch.randint(5, (4, 500, 40), generator=torch.Generator().manual_seed(2)).float()
    logits[:, ::11] = 1.5
    for top_k in (1, 2, 5, 20, 39, 40):
        assert torch.equal(filter_logits(logits, top_k, top_p), full_sort_filter(logits, top_k, top_p)), top_k
