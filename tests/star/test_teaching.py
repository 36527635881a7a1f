"""Laws of what the transformer is taught."""

import math

import pytest
import torch

from star.teaching import code_counts, make_lesson, scale_weights, token_losses, unigram_nats
from star.tiny import CODE_WIDTH, SIZES, VOCABULARY, tiny_tokenizer
from tokenizer.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(SIZES)


def latents(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, CODE_WIDTH, SIZES[-1], SIZES[-1], generator=generator) * 2


def test_without_noise_a_lesson_is_the_tokenizers_pyramid() -> None:
    quantizer = tiny_tokenizer().quantizer
    lesson, codes = make_lesson(quantizer, latents()), quantizer.encode(latents()).codes
    assert torch.equal(lesson.codes_BL, torch.cat(codes, dim=1))
    assert torch.equal(lesson.teacher_input_BlE, quantizer.teacher_input(codes))


def test_a_vanishing_noise_gives_the_same_lesson() -> None:
    """The scale-by-scale loop of the noisy lesson is the same recursion as the quantizer's."""
    quantizer = tiny_tokenizer().quantizer
    clean, noisy = make_lesson(quantizer, latents()), make_lesson(quantizer, latents(), noise=1e-9)
    assert torch.equal(noisy.codes_BL, clean.codes_BL)
    assert torch.allclose(noisy.teacher_input_BlE, clean.teacher_input_BlE, atol=1e-6)


@pytest.mark.parametrize("neighbours", [0, 4])
def test_noise_changes_inputs_and_asks_for_repair(neighbours: int) -> None:
    quantizer = tiny_tokenizer().quantizer
    torch.manual_seed(0)
    lesson = make_lesson(quantizer, latents(), noise=0.9, neighbours=neighbours)
    clean = make_lesson(quantizer, latents())
    first, *later = SCHEDULE.split(lesson.codes_BL)
    assert torch.equal(first, clean.codes_BL[:, :1])  # nothing went wrong before the first scale
    assert not torch.equal(torch.cat(later, dim=1), clean.codes_BL[:, 1:])
    # What the finest scale is asked for brings the running latent nearer to the true one than any other code would.
    last_input_BlE = lesson.teacher_input_BlE[:, -SCHEDULE.lengths[-1] :]
    rest_BlE = latents().flatten(2).transpose(1, 2) - last_input_BlE
    assert torch.equal(later[-1], quantizer.nearest(rest_BlE))


def test_neighbours_are_the_nearest_other_codes() -> None:
    quantizer = tiny_tokenizer().quantizer
    from star.teaching import _nearest_codes, _replacements

    codes = torch.arange(VOCABULARY).repeat(50, 1)
    wrong = _replacements(codes, _nearest_codes(quantizer, 3), VOCABULARY)
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
    lengths = (1, 4)
    train = torch.randint(VOCABULARY, (5000, 5))
    train[:, 0] = 3
    counts = [code_counts(codes_BL, lengths, VOCABULARY) for codes_BL in (train, train[:500])]
    nats = unigram_nats(*counts)
    assert nats[0] < 0.01
    assert nats[1].item() == pytest.approx(math.log(VOCABULARY), abs=0.01)
    rare = torch.full((10, 5), 4)
    assert unigram_nats(counts[0], code_counts(rare, lengths, VOCABULARY))[0].item() == pytest.approx(
        math.log(5000 + VOCABULARY)
    )
