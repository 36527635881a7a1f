"""Laws of what the transformer is taught."""

import math

import pytest
import torch

from star.model.losses import token_losses
from star.tiny import CODE_WIDTH, SIZES, VOCABULARY, tiny_tokenizer
from star.tokenizer.quantizer import Quantizer
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import Codes
from star.training.targets import (
    draw_kept,
    kept_lengths,
    make_targets,
    per_scale,
    scale_weights,
    targets_of_codes,
)

SCHEDULE = ScaleSchedule(SIZES)


def latents(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, CODE_WIDTH, SIZES[-1], SIZES[-1], generator=generator) * 2


def test_without_noise_a_lesson_is_the_tokenizers_pyramid() -> None:
    quantizer = tiny_tokenizer().quantizer
    targets, codes = make_targets(quantizer, latents()), quantizer.encode(latents()).codes
    assert torch.equal(targets.codes_BL, torch.cat(codes, dim=1))
    assert torch.equal(targets.teacher_input_BlE, quantizer.teacher_input(codes))


def test_a_vanishing_noise_gives_the_same_lesson() -> None:
    """The scale-by-scale loop of the noisy targets is the same recursion as the quantizer's."""
    quantizer = tiny_tokenizer().quantizer
    clean, noisy = make_targets(quantizer, latents()), make_targets(quantizer, latents(), noise=1e-9)
    assert torch.equal(noisy.codes_BL, clean.codes_BL)
    assert torch.allclose(noisy.teacher_input_BlE, clean.teacher_input_BlE, atol=1e-6)


@pytest.mark.parametrize("neighbours", [0, 4])
def test_noise_changes_inputs_and_asks_for_repair(neighbours: int) -> None:
    quantizer = tiny_tokenizer().quantizer
    torch.manual_seed(0)
    targets = make_targets(quantizer, latents(), noise=0.9, neighbours=neighbours)
    clean = make_targets(quantizer, latents())
    first, *later = SCHEDULE.split(targets.codes_BL)
    assert torch.equal(first, clean.codes_BL[:, :1])  # nothing went wrong before the first scale
    assert not torch.equal(torch.cat(later, dim=1), clean.codes_BL[:, 1:])
    # What the finest scale is asked for brings the running latent nearer to the true one than any other code would.
    last_input_BlE = targets.teacher_input_BlE[:, -SCHEDULE.lengths[-1] :]
    rest_BlE = latents().flatten(2).transpose(1, 2) - last_input_BlE
    assert torch.equal(later[-1], quantizer.nearest(rest_BlE))


def test_neighbours_are_the_nearest_other_codes() -> None:
    quantizer = tiny_tokenizer().quantizer
    assert isinstance(quantizer, Quantizer)
    codes = torch.arange(VOCABULARY).repeat(50, 1)
    wrong = quantizer.mistakes(3)(codes, torch.ones(50, 1))
    book = quantizer.codebook.weight
    ranks = torch.cdist(book, book).argsort(dim=1)
    for code in range(VOCABULARY):
        assert set(wrong[:, code].tolist()) == set(ranks[code, 1:4].tolist())


def test_token_losses_are_cross_entropies() -> None:
    logits, codes = torch.zeros(2, 5, 8), torch.zeros(2, 5, dtype=torch.long)
    assert torch.allclose(token_losses(logits, codes), torch.full((2, 5), math.log(8)))
    logits[0, 0, 0] = 100.0
    assert token_losses(logits, codes)[0, 0] < 1e-6
    assert token_losses(logits.bfloat16(), codes).dtype == torch.float32


def test_weights_of_scales() -> None:
    tokens = scale_weights(SCHEDULE.lengths, 1.0)
    assert torch.allclose(tokens, torch.full((SCHEDULE.length,), 1 / SCHEDULE.length))
    scales = torch.stack([part.sum() for part in SCHEDULE.split(scale_weights(SCHEDULE.lengths, 0.0)[None])])
    assert torch.allclose(scales, torch.full((SCHEDULE.count,), 1 / SCHEDULE.count))
    assert scale_weights(SCHEDULE.lengths, 0.5).sum().item() == pytest.approx(1)


def test_unigram_nats() -> None:
    schedule, tokens = ScaleSchedule((1, 2)), Codes(VOCABULARY)
    train = torch.randint(VOCABULARY, (5000, 5))
    train[:, 0] = 3
    counts = [tokens.counts(schedule.split(codes_BL)) for codes_BL in (train, train[:500])]
    nats = tokens.unigram_nats(*counts)
    assert nats[0] < 0.01
    assert nats[1].item() == pytest.approx(math.log(VOCABULARY), abs=0.01)
    rare = torch.full((10, 5), 4)
    of_rare = tokens.unigram_nats(counts[0], tokens.counts(schedule.split(rare)))
    assert of_rare[0].item() == pytest.approx(math.log(5000 + VOCABULARY))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_lesson_may_end_after_some_scales(noise: float) -> None:
    """Its length is that of its scales, and what it has does not depend on what it leaves out."""
    quantizer = tiny_tokenizer().quantizer
    torch.manual_seed(0)
    whole = make_targets(quantizer, latents(), noise=noise)
    assert whole.codes_BL.shape == (6, SCHEDULE.length)
    assert whole.teacher_input_BlE.shape == (6, SCHEDULE.length - 1, CODE_WIDTH)
    for scales, tokens in ((1, 1), (2, 5), (3, 14)):
        torch.manual_seed(0)
        part = make_targets(quantizer, latents(), noise=noise, scales=scales)
        assert part.teacher_input_BlE.shape == (6, tokens - 1, CODE_WIDTH)
        assert torch.equal(part.codes_BL, targets_of_codes(quantizer, SCHEDULE.split(whole.codes_BL), scales).codes_BL)
        if noise == 0.0:
            assert torch.equal(part.teacher_input_BlE, whole.teacher_input_BlE[:, : tokens - 1])


def test_half_of_the_noise_is_the_share_of_wrong_codes() -> None:
    """A rate for each picture, uniform up to `noise`: the second scale reads how often the first was wrong."""
    quantizer = tiny_tokenizer().quantizer
    many = latents().repeat(500, 1, 1, 1)
    torch.manual_seed(0)
    noisy = make_targets(quantizer, many, noise=0.6, neighbours=1, scales=2)
    clean = make_targets(quantizer, many, scales=2)
    wrong = (noisy.teacher_input_BlE - clean.teacher_input_BlE).abs().sum((1, 2)) > 1e-4
    assert wrong.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_replacements_are_any_code_or_any_of_the_near() -> None:
    codes, always = torch.full((1, 4000), 3), torch.ones(1, 1)
    quantizer = tiny_tokenizer().quantizer
    assert set(quantizer.mistakes()(codes, always)[0].tolist()) == set(range(VOCABULARY))
    assert len(set(quantizer.mistakes(2)(codes, always)[0].tolist())) == 2
    others = set(range(VOCABULARY)) - {3}
    assert set(quantizer.mistakes(999)(codes, always)[0].tolist()) == others  # no more than there are
    assert torch.equal(quantizer.mistakes()(codes, torch.zeros(1, 1)), codes)


def test_a_share_of_the_finest_scale_takes_part() -> None:
    assert kept_lengths(SCHEDULE, 0.5) == (1, 4, 9, 8)
    assert kept_lengths(SCHEDULE, 1.0) == SCHEDULE.lengths
    assert kept_lengths(SCHEDULE, 0.001) == (1, 4, 9, 1)
    assert draw_kept(SCHEDULE, 1.0) is None
    drawn = []
    for seed in range(40):
        torch.manual_seed(seed)
        tokens = draw_kept(SCHEDULE, 0.25)
        assert tokens is not None
        assert len(tokens) == 14 + 4
        assert tokens[:14].tolist() == list(range(14))
        assert bool((tokens.diff() > 0).all())
        drawn += tokens[14:].tolist()
    assert set(drawn) == set(range(14, 30))


def test_means_of_scales_and_smoothed_labels() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [3.0, 6.0, 8.0]], requires_grad=True)
    means = per_scale(losses, [1, 2])
    assert means.tolist() == [2.0, 5.0]
    assert not means.requires_grad
    logits, codes = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5, dtype=torch.long)
    log_shares = logits.log_softmax(-1)
    plain = -log_shares[..., 1]
    torch.testing.assert_close(token_losses(logits, codes), plain)
    torch.testing.assert_close(token_losses(logits, codes, 0.2), 0.8 * plain - 0.2 * log_shares.mean(-1))


def test_a_scale_counts_as_a_power_of_its_tokens() -> None:
    parts = [part.sum().item() for part in SCHEDULE.split(scale_weights(SCHEDULE.lengths, 0.5)[None])]
    assert parts == pytest.approx([size / 10 for size in SIZES])  # the root of size * size, over 1 + 2 + 3 + 4
