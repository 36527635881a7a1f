"""The Gumbel noise behind a picture: it leads to the picture's codes, it is Gumbel noise, and arcs keep it that."""

import torch

from star.generators.protocol import SampleOptions
from star.model.heads import BitHead
from star.sampling.gumbel import GumbelRng, between, choices, posterior, to_gumbel, to_normal
from star.sampling.sampler import SampleRng

OPTIONS = SampleOptions(temperature=0.8, top_p=0.9)


def drawn(seed: int, length: int = 400, vocabulary: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after top-p, and codes that the seed draws from them."""
    logits = 2 * torch.randn(1, length, vocabulary, generator=torch.Generator().manual_seed(seed))
    rng = SampleRng([seed], OPTIONS)
    kept = rng.keep(logits)
    return kept, rng.pick(kept, 0)


def noise_of(seed: int) -> torch.Tensor:
    """Behind what the seed draws."""
    kept_1lV, codes_1l = drawn(seed)
    return posterior(kept_1lV[0], codes_1l[0], seed, 0)


def test_the_noise_leads_to_the_very_codes() -> None:
    for seed in range(20):
        kept_1lV, codes_1l = drawn(seed)
        noise_lV = posterior(kept_1lV[0], codes_1l[0], seed, 0)
        assert noise_lV.isfinite().all()
        rng = GumbelRng([seed], OPTIONS, noise=[noise_lV])
        assert torch.equal(rng.pick(kept_1lV, 0), codes_1l)


def test_over_many_pictures_it_is_gumbel_noise() -> None:
    pieces = [noise_of(seed) for seed in range(20)]
    noise = torch.cat(pieces).flatten()
    assert abs(float(noise.mean()) - 0.5772) < 0.01
    assert abs(float(noise.var()) - 1.6449) < 0.02
    ranks = (-(-noise).exp()).exp()  # uniform if it is Gumbel
    places = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert torch.allclose(ranks.quantile(places), places, atol=0.005)
    of_drawn = torch.cat(  # the codes that were drawn have had more luck than others
        [p.gather(1, drawn(seed)[1][0][:, None]) for seed, p in enumerate(pieces)]
    )
    assert float(of_drawn.mean()) > 1.0


def test_normal_scores_are_the_same_ranks_and_come_back() -> None:
    gumbel = torch.linspace(-3.5, 25, 400, dtype=torch.float64)
    score = to_normal(gumbel)
    assert torch.allclose(to_gumbel(score), gumbel, rtol=1e-6, atol=1e-6)
    assert torch.allclose(torch.special.ndtr(score), (-(-gumbel).exp()).exp(), atol=1e-9)


def test_half_way_it_is_gumbel_noise_again_and_at_the_ends_the_ends() -> None:
    start, end = [noise_of(1)], [noise_of(2)]
    for t, wanted in ((0.0, start), (1.0, end)):
        assert torch.allclose(between(start, end, t)[0], wanted[0], atol=1e-5)
    middle = between(start, end, 0.5)[0]
    assert abs(float(middle.mean()) - 0.5772) < 0.05
    assert abs(float(middle.var()) - 1.6449) < 0.1
    assert float((middle - start[0]).abs().mean()) > 0.3


def test_the_likeliest_codes_need_no_noise() -> None:
    greedy = SampleOptions(top_k=1)
    logits = torch.randn(1, 5, 9)
    assert torch.equal(GumbelRng([3], greedy).pick(logits, 0), logits.argmax(dim=-1))


def test_bits_are_choices_between_two() -> None:
    head, length, bits = BitHead(), 200, 6
    logits = 3 * torch.randn(1, length, bits, generator=torch.Generator().manual_seed(0))
    rng = SampleRng([4], OPTIONS, head=head)
    kept = rng.keep(logits)
    assert kept.isinf().any()  # bits that top-p leaves no choice
    codes = rng.pick(kept, 0)
    noise_n2 = posterior(choices(kept, head), codes.flatten(), 4, 0)
    assert noise_n2.shape == (length * bits, 2)
    assert noise_n2.isfinite().all()
    again = GumbelRng([4], OPTIONS, noise=[noise_n2], head=head).pick(kept, 0)
    assert torch.equal(again, codes)
    assert again.dtype == codes.dtype
