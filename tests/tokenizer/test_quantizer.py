"""Laws of the schedule, the pyramid and the codebook.

B batch, E code width, V codebook, h w latent grid, l tokens of one scale, K scales.
"""

import pytest
import torch

from star.tokenizer.codebook import CodebookConfig, CodebookTrainer
from star.tokenizer.losses import straight_through
from star.tokenizer.quantizer import Quantizer, QuantizerConfig, phi_index
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import Codes

RELEASED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@pytest.fixture
def quantizer() -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(vocabulary=24, code_width=6, sizes=(1, 2, 3, 5)))
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


def latent(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 6, 5, 5, generator=torch.Generator().manual_seed(1))


def test_released_schedule_has_680_tokens_and_offsets_partition_them() -> None:
    schedule = ScaleSchedule(RELEASED)
    assert schedule.length == 680
    covered = [i for part in schedule.slices for i in range(part.start, part.stop)]
    assert covered == list(range(680))
    assert torch.bincount(schedule.level_ids_L()).tolist() == list(schedule.lengths)


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1)])
def test_impossible_schedules_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scale schedule"):
        ScaleSchedule(sizes)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (4, [0, 1, 2, 3]),
        (5, [0, 1, 2, 2, 3]),
        (6, [0, 0, 1, 2, 3, 3]),
        (10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (14, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_four_shared_phis_are_dealt_as_released(scales: int, expected: list[int]) -> None:
    assert [phi_index(k, scales, 4) for k in range(scales)] == expected
    assert [phi_index(k, scales, 0) for k in range(scales)] == list(range(scales))
    assert {phi_index(k, scales, 1) for k in range(scales)} == {0}


def test_the_sum_made_while_encoding_is_the_one_rebuilt_from_codes(quantizer: Quantizer) -> None:
    pyramid = quantizer.encode(latent())
    for scales in range(1, 5):
        assert torch.equal(pyramid.latents[scales - 1], quantizer.decode(pyramid.codes, scales))
    running = quantizer.empty_latent(3)
    inputs = []
    for k, codes in enumerate(pyramid.codes):
        running, following = quantizer.accumulate(running, codes, k)
        inputs.append(following)
    assert torch.equal(running, pyramid.latents[-1])
    assert inputs[-1] is None
    assert torch.equal(torch.cat([i for i in inputs if i is not None], dim=1), quantizer.teacher_input(pyramid.codes))


def test_prescribed_codes_are_kept_and_later_scales_repair_them(quantizer: Quantizer) -> None:
    plain = quantizer.encode(latent())
    wrong = [(plain.codes[0] + 1) % 24]
    repaired = quantizer.encode(latent(), wrong)
    assert torch.equal(repaired.codes[0], wrong[0])
    assert torch.equal(quantizer.encode(latent(), plain.codes[:2]).latents[-1], plain.latents[-1])
    kept_on = quantizer.decode([wrong[0], *plain.codes[1:]])
    error_repaired = (repaired.latents[-1] - latent()).square().mean()
    assert error_repaired < (kept_on - latent()).square().mean()


def test_nearest_agrees_with_brute_force_and_takes_the_lowest_index_on_ties(quantizer: Quantizer) -> None:
    vectors = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(2))
    brute = (vectors[:, :, None] - quantizer.codebook.weight).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer.nearest(vectors), brute)
    with torch.no_grad():
        quantizer.codebook.weight[9] = quantizer.codebook.weight[4]
    assert quantizer.nearest(quantizer.codebook.weight[9].view(1, 1, 6)).item() == 4


def test_straight_through_passes_the_gradient_unchanged() -> None:
    source = latent().requires_grad_()
    out = straight_through(source, torch.zeros_like(source))
    weight = torch.randn_like(source)
    (out * weight).sum().backward()
    torch.testing.assert_close(out, torch.zeros_like(out), atol=1e-6, rtol=0)
    assert torch.equal(source.grad, weight)  # type: ignore[arg-type]


def test_gradient_reaches_every_phi_and_the_codebook(quantizer: Quantizer) -> None:
    (quantizer.encode(latent()).latents[-1] - latent()).square().mean().backward()
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_wrong_shapes_are_refused(quantizer: Quantizer) -> None:
    with pytest.raises(ValueError, match="expected"):
        quantizer.encode(torch.zeros(1, 6, 4, 4))
    with pytest.raises(ValueError, match="scale 1, which holds 4"):
        quantizer.accumulate(quantizer.empty_latent(1), torch.zeros(1, 3, dtype=torch.int64), 1)


def test_ema_codes_become_the_means_of_what_chose_them(quantizer: Quantizer) -> None:
    trainer = CodebookTrainer(quantizer, CodebookConfig(decay=0.9, balance=1.0, restart_below=0.0, scale_floor=0.0))
    pyramid = quantizer.encode(latent(8))
    trainer.update(quantizer, pyramid)  # the first step takes the batch as it is
    weights = [1 / n for n in quantizer.schedule.lengths]
    for code in range(24):
        chosen = [
            (target[codes == code], weight)
            for codes, target, weight in zip(pyramid.codes, pyramid.targets, weights, strict=True)
        ]
        total = sum(len(vectors) * weight for vectors, weight in chosen)
        if total > 0:
            mean = sum(vectors.sum(0) * weight for vectors, weight in chosen) / total
            torch.testing.assert_close(quantizer.codebook.weight[code], mean)


def test_a_collapsed_codebook_comes_back_to_life_at_every_scale() -> None:
    torch.manual_seed(0)
    config = QuantizerConfig(vocabulary=64, code_width=6, sizes=(1, 2, 3, 5))
    alive = {}
    for restart_below in (0.0, 0.02):
        quantizer = Quantizer(config)
        with torch.no_grad():
            quantizer.codebook.weight.fill_(5.0)  # all codes in one far place
        trainer = CodebookTrainer(
            quantizer, CodebookConfig(decay=0.9, restart_below=restart_below, restart_fraction=0.2, scale_floor=0.0)
        )
        for step in range(60):
            batch = torch.randn(32, 6, 5, 5, generator=torch.Generator().manual_seed(step))
            trainer.update(quantizer, quantizer.encode(batch))
        alive[restart_below] = Codes(64).usage(trainer.hits_KV, threshold=0.01).distinct
    assert max(alive[0.0]) <= 4
    assert min(alive[0.02]) >= 16


def test_perplexity_of_uniform_use_is_the_number_of_codes() -> None:
    usage = Codes(5).usage(torch.tensor([[5.0, 5, 5, 5, 0], [1, 0, 0, 0, 0]]))
    assert usage.distinct == [4, 1]
    assert usage.distinct_overall == 4
    assert usage.perplexity == pytest.approx([4.0, 1.0])


def test_a_starving_scale_is_given_codes_of_its_own() -> None:
    config = QuantizerConfig(vocabulary=64, code_width=6, sizes=(1, 2, 3, 5))
    first_scale = {}
    for floor in (0.0, 0.5):
        torch.manual_seed(0)
        quantizer = Quantizer(config)
        trainer = CodebookTrainer(quantizer, CodebookConfig(decay=0.95, scale_floor=floor))
        for step in range(150):
            generator = torch.Generator().manual_seed(step)
            # the mean of a picture varies little, its cells vary much: what starves the 1x1 grid
            batch = torch.randn(32, 6, 5, 5, generator=generator) + 0.02 * torch.randn(32, 6, 1, 1, generator=generator)
            trainer.update(quantizer, quantizer.encode(batch - batch.mean((2, 3), keepdim=True) * 0.9))
        first_scale[floor] = Codes(64).usage(trainer.hits_KV, threshold=0.05).distinct[0]
    assert first_scale[0.5] >= 1.5 * first_scale[0.0]
    assert first_scale[0.5] >= 20


def test_the_defaults_are_those_of_the_released_tokenizer() -> None:
    config = QuantizerConfig()
    assert (config.vocabulary, config.code_width, config.phi_count, config.phi_ratio) == (4096, 32, 4, 0.5)
    assert config.sizes == RELEASED
    assert not config.cosine


@pytest.mark.parametrize(("asked", "made"), [(0, 3), (1, 1), (2, 2), (4, 4)])
def test_there_are_as_many_phis_as_asked_for_or_as_scales(asked: int, made: int) -> None:
    assert len(Quantizer(QuantizerConfig(vocabulary=4, code_width=2, sizes=(1, 2, 3), phi_count=asked)).phis) == made


def test_other_numbers_of_phis_are_dealt_in_equal_parts() -> None:
    assert [phi_index(k, 9, 2) for k in range(9)] == [0, 0, 0, 0, 0, 1, 1, 1, 1]  # the middle is as near to both
    assert [phi_index(k, 5, 3) for k in range(5)] == [0, 0, 1, 2, 2]  # ticks at 1/6, 1/2, 5/6
    assert phi_index(0, 1, 4) == 0


def test_codes_start_within_an_equal_share_of_zero() -> None:
    torch.manual_seed(0)
    weight = Quantizer(QuantizerConfig(vocabulary=50, code_width=40, sizes=(1, 2))).codebook.weight.detach()
    assert weight.abs().max().item() == pytest.approx(1 / 50, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_by_cosine_the_length_of_a_vector_is_no_matter(quantizer: Quantizer) -> None:
    torch.manual_seed(0)
    cosine = Quantizer(QuantizerConfig(vocabulary=24, code_width=6, sizes=(1, 2, 3, 5), cosine=True))
    cosine.load_state_dict(quantizer.state_dict())
    vectors = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(2))
    book = quantizer.codebook.weight.detach()
    brute = torch.cosine_similarity(vectors[:, :, None], book, dim=-1).argmax(-1)
    assert torch.equal(cosine.nearest(vectors), brute)
    assert torch.equal(cosine.nearest(100 * vectors), brute)
    assert not torch.equal(quantizer.nearest(vectors), brute)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_codes_are_brought_up_and_a_share_of_phi_smooths_them(ratio: float) -> None:
    """Bicubic to the finest grid, then (1 - r) u + r conv(u); the finest scale is not resized."""
    torch.manual_seed(0)
    config = QuantizerConfig(vocabulary=24, code_width=6, sizes=(1, 3, 5), phi_count=0, phi_ratio=ratio)
    quantizer = Quantizer(config)
    torch.nn.init.normal_(quantizer.codebook.weight)
    for k, size in enumerate(config.sizes):
        codes = torch.randint(24, (2, size * size))
        coarse = quantizer.codebook(codes).transpose(1, 2).reshape(2, 6, size, size)
        fine = torch.nn.functional.interpolate(coarse, size=(5, 5), mode="bicubic") if size < 5 else coarse
        expected = (1 - ratio) * fine + ratio * quantizer.phis[k](fine)
        torch.testing.assert_close(quantizer.expand(codes, k), expected)


def test_what_is_looked_up_is_the_mean_of_what_is_left(quantizer: Quantizer) -> None:
    pyramid, source = quantizer.encode(latent()), latent()
    for k, size in enumerate((1, 2, 3, 5)):
        left = source - (pyramid.latents[k - 1] if k else 0)
        means = torch.nn.functional.adaptive_avg_pool2d(left, size).flatten(2).transpose(1, 2)
        torch.testing.assert_close(pyramid.targets[k], means, atol=1e-5, rtol=1e-5)
        assert torch.equal(pyramid.codes[k], quantizer.nearest(pyramid.targets[k]))


def test_lessons_may_end_after_some_scales(quantizer: Quantizer) -> None:
    codes = quantizer.encode(latent()).codes
    whole = quantizer.teacher_input(codes)
    assert whole.shape == (3, 4 + 9 + 25, 6)
    assert torch.equal(quantizer.teacher_input(codes[:3]), whole[:, :13])
    assert quantizer.teacher_input(codes[:1]).shape == (3, 0, 6)
    assert torch.equal(quantizer.decode(codes, 0), torch.zeros(3, 6, 5, 5))
    assert quantizer.empty_latent(2).shape == (2, 6, 5, 5)
