"""What the numbers of the last layer mean: losses, filters and draws of codes and of single bits."""

import math

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generators.config import from_dict, to_dict
from star.generators.protocol import SampleOptions
from star.model.heads import BitHead, CodeHead, head_of
from star.model.transformer import TransformerConfig
from star.sampling.sampler import SampleRng, guide
from star.tiny import CODE_WIDTH, tiny_tokenizer, tiny_transformer
from star.tokenizer.tokens import Bits, Codes

HEAD = BitHead()


def log_odds(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2


def two_classes(logits: Tensor) -> Tensor:
    """The same bits as logits of two codes each: (..., D, 2)."""
    return torch.stack((-logits / 2, logits / 2), dim=-1)


def test_each_kind_has_its_head() -> None:
    assert isinstance(head_of(Bits(4)), BitHead)
    assert isinstance(head_of(Codes(4)), CodeHead)
    assert tiny_transformer(bits=7, vocabulary=2).head.out_features == 7
    assert tiny_transformer(vocabulary=9).head.out_features == 9


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_bits_is_the_mean_cross_entropy_of_two_classes(smoothing: float) -> None:
    logits, bits = log_odds(2, 5, 3), torch.randint(2, (2, 5, 3), dtype=torch.uint8)
    pairs = torch.nn.functional.cross_entropy(
        two_classes(logits).flatten(0, 2), bits.flatten().long(), reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(HEAD.losses(logits, bits, smoothing), pairs.view(2, 5, 3).mean(dim=-1))
    nothing = HEAD.losses(torch.zeros(1, 1, 8).bfloat16(), torch.ones(1, 1, 8, dtype=torch.uint8))
    assert nothing.dtype == torch.float32
    assert nothing.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_top_p_of_bits_is_that_of_two_classes(top_p: float) -> None:
    logits = log_odds(2, 50, 3)
    pairs = CodeHead().filtered(two_classes(logits), 0, top_p).softmax(dim=-1)
    torch.testing.assert_close(HEAD.filtered(logits, 0, top_p).sigmoid(), pairs[..., 1])


def test_top_k_of_bits_is_the_likeliest_or_refused() -> None:
    logits = log_odds(1, 9, 3)
    assert torch.equal(HEAD.filtered(logits, 1, 0.0).sigmoid(), (logits > 0).float())
    assert torch.equal(HEAD.likeliest(logits), (logits > 0).byte())
    HEAD.check(SampleOptions(top_k=1, top_p=0.5))
    with pytest.raises(InputError, match="top_k is 5, but this model draws single bits"):
        HEAD.check(SampleOptions(top_k=5))


def test_bits_are_drawn_with_their_chances_and_by_the_seed_alone() -> None:
    logits = torch.tensor([-2.0, 0.0, 1.0, torch.inf, -torch.inf]).expand(1, 4000, 5)
    rng = SampleRng([3], SampleOptions(), head=HEAD)
    drawn = rng.pick(logits, 2)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (1, 4000, 5)
    torch.testing.assert_close(drawn[0].double().mean(dim=0), logits[0, 0].sigmoid().double(), atol=0.03, rtol=0)
    assert torch.equal(drawn, rng.pick(logits, 2))
    assert not torch.equal(drawn, rng.pick(logits, 3))
    both = SampleRng([9, 3], SampleOptions(), head=HEAD).pick(logits.expand(2, -1, -1), 2)
    assert torch.equal(both[1], drawn[0])
    shares = drawn[0, :, :2].double()  # bits of a token are drawn independently
    assert abs(float(((shares - shares.mean(dim=0)).prod(dim=1)).mean())) < 0.01


def test_temperature_and_guidance_do_to_bits_what_they_do_to_two_classes() -> None:
    logits = log_odds(2, 4, 3)
    cold = SampleRng([0, 1], SampleOptions(temperature=0.5), head=HEAD).keep(logits)
    torch.testing.assert_close(cold.sigmoid(), (two_classes(logits) / 0.5).softmax(dim=-1)[..., 1])
    torch.testing.assert_close(guide(logits, 2.0).sigmoid(), guide(two_classes(logits), 2.0).softmax(dim=-1)[..., 1])


def test_the_probability_of_a_token_is_that_of_all_its_bits() -> None:
    logits = log_odds(1, 3, 4)
    every = ((torch.arange(16)[:, None] >> torch.arange(4)) & 1).byte()
    chances = torch.stack([HEAD.probability(logits, row.expand(1, 3, 4)) for row in every])
    torch.testing.assert_close(chances.sum(dim=0), torch.ones(1, 3))
    assert torch.equal(chances[:, 0, 0].argmax(), (HEAD.likeliest(logits)[0, 0] * 2 ** torch.arange(4)).sum())


def test_a_network_for_bits_trains_on_its_own_losses() -> None:
    """Losses in portions, as with codes; and the config is written with its bits, that of codes without."""
    model = tiny_transformer(bits=CODE_WIDTH, vocabulary=2)
    quantizer, text = tiny_tokenizer(bits=True).quantizer, tiny_text_encoder().encode(["a cat", "a dog"])
    codes = quantizer.encode(torch.randn(2, CODE_WIDTH, 4, 4, generator=torch.Generator().manual_seed(0))).codes
    inputs, codes_BL = quantizer.teacher_input(codes), torch.cat(codes, dim=1)
    loss_BL = model(inputs, text, codes_BL=codes_BL)
    torch.testing.assert_close(loss_BL, HEAD.losses(model(inputs, text), codes_BL))
    config = model.config
    assert from_dict(TransformerConfig, to_dict(config)) == config
    assert to_dict(config)["bits"] == CODE_WIDTH
    assert "bits" not in to_dict(tiny_transformer().config)
