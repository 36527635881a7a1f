"""How codes move, die and restart: each rule by its own arithmetic.

K scales, V codebook, E code width.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from star.tokenizer.codebook import CodebookConfig, CodebookTrainer
from star.tokenizer.quantizer import Pyramid, Quantizer, QuantizerConfig
from star.tokenizer.tokens import Codes, CodeUsage

SIZES, VOCABULARY = (1, 2, 4), 8
CALM = CodebookConfig(decay=0.75, restart_below=0.0, scale_floor=0.0)  # nothing restarts


def quantizer_of(seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    quantizer = Quantizer(QuantizerConfig(vocabulary=VOCABULARY, code_width=3, sizes=SIZES))
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


def pyramid_of(seed: int, highest: int = VOCABULARY, batch: int = 4) -> Pyramid:
    """Codes below `highest` at random, and the vectors that are said to have chosen them."""
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(highest, (batch, side * side), generator=generator) for side in SIZES]
    targets = [torch.randn(batch, side * side, 3, generator=generator) for side in SIZES]
    return Pyramid(codes, [], targets)


def tallies(pyramid: Pyramid, balance: float) -> tuple[Tensor, Tensor, Tensor]:
    """counts_KV, cluster_size_V and sums_VE by loops: a vote of scale k weighs l_k ** -balance."""
    counts, votes, sums = torch.zeros(3, VOCABULARY), torch.zeros(VOCABULARY), torch.zeros(VOCABULARY, 3)
    for k, (codes, targets) in enumerate(zip(pyramid.codes, pyramid.targets, strict=True)):
        for code, target in zip(codes.flatten().tolist(), targets.flatten(0, 1), strict=True):
            counts[k, code] += 1
            votes[code] += codes.shape[1] ** -balance
            sums[code] += target * codes.shape[1] ** -balance
    return counts, votes, sums


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_running_means_over_two_steps(balance: float) -> None:
    quantizer, trainer = quantizer_of(), None
    trainer = CodebookTrainer(quantizer, replace(CALM, balance=balance))
    one, two = pyramid_of(1), pyramid_of(2)
    assert trainer.update(quantizer, one) == 0
    counts, votes, sums = tallies(one, balance)
    torch.testing.assert_close(trainer.hits_KV, counts)  # the first batch is taken as it is
    torch.testing.assert_close(trainer.cluster_size_V, votes)
    trainer.update(quantizer, two)
    later_counts, later_votes, later_sums = tallies(two, balance)
    torch.testing.assert_close(trainer.hits_KV, 0.75 * counts + 0.25 * later_counts)
    votes, sums = 0.75 * votes + 0.25 * later_votes, 0.75 * sums + 0.25 * later_sums
    torch.testing.assert_close(trainer.cluster_size_V, votes)
    torch.testing.assert_close(trainer.sums_VE, sums)
    torch.testing.assert_close(quantizer.codebook.weight.detach(), sums / votes[:, None])
    assert int(trainer.steps) == 2


def test_a_code_without_votes_stays_where_it_is() -> None:
    quantizer = quantizer_of()
    before = quantizer.codebook.weight.detach().clone()
    CodebookTrainer(quantizer, CALM).update(quantizer, pyramid_of(1, highest=5))
    assert torch.equal(quantizer.codebook.weight[5:], before[5:])
    assert not torch.isclose(quantizer.codebook.weight[:5], before[:5]).any()


def test_the_gradient_rule_counts_and_moves_nothing() -> None:
    quantizer = quantizer_of()
    before = quantizer.codebook.weight.detach().clone()
    trainer = CodebookTrainer(quantizer, replace(CALM, rule="gradient", restart_below=0.5))
    assert trainer.update(quantizer, pyramid_of(1, highest=2)) == 0
    assert torch.equal(quantizer.codebook.weight, before)
    torch.testing.assert_close(trainer.hits_KV, tallies(pyramid_of(1, highest=2), 0.5)[0])
    with pytest.raises(ValueError, match="codebook rule 'mean' given, expected 'ema' or 'gradient'"):
        CodebookConfig(rule="mean")


def test_a_known_codebook_is_held_and_then_begins_with_an_equal_share() -> None:
    quantizer = quantizer_of()
    before = quantizer.codebook.weight.detach().clone()
    trainer = CodebookTrainer(quantizer, replace(CALM, hold=2), known=True)
    counts, _, _ = tallies(pyramid_of(0), 0.5)
    for step in range(2):
        assert trainer.update(quantizer, pyramid_of(step)) == 0
        assert torch.equal(quantizer.codebook.weight, before)
        if step == 0:  # an equal share of the votes so far, then this batch
            torch.testing.assert_close(trainer.hits_KV, 0.75 * counts.mean(1, keepdim=True) + 0.25 * counts)
    trainer.update(quantizer, pyramid_of(2))
    _, votes, sums = tallies(pyramid_of(2), 0.5)
    share = votes.mean()
    expected = (0.75 * share * before + 0.25 * sums) / (0.75 * share + 0.25 * votes)[:, None]
    torch.testing.assert_close(quantizer.codebook.weight.detach(), expected)


def test_without_a_hold_a_known_codebook_moves_at_once() -> None:
    quantizer = quantizer_of()
    before = quantizer.codebook.weight.detach().clone()
    CodebookTrainer(quantizer, CALM, known=True).update(quantizer, pyramid_of(2))
    _, votes, sums = tallies(pyramid_of(2), 0.5)
    expected = (0.75 * votes.mean() * before + 0.25 * sums) / (0.75 * votes.mean() + 0.25 * votes)[:, None]
    torch.testing.assert_close(quantizer.codebook.weight.detach(), expected)


def places(quantizer: Quantizer, pyramid: Pyramid, code: int) -> list[int]:
    """The scales in whose vectors a code lies."""
    own = quantizer.codebook.weight[code]
    return [k for k, targets in enumerate(pyramid.targets) if bool((targets.flatten(0, 1) == own).all(1).any())]


def test_dead_codes_move_onto_vectors_of_the_batch() -> None:
    """The first batch moves all of them; later ones a part of the codebook, and at least one."""
    config = CodebookConfig(decay=0.9, restart_below=0.1, restart_fraction=0.25, scale_floor=0.0)
    quantizer = quantizer_of()
    trainer = CodebookTrainer(quantizer, config)
    pyramid = pyramid_of(1, highest=3, batch=16)
    assert trainer.update(quantizer, pyramid) == 5
    for code in range(3, 8):
        born = places(quantizer, pyramid, code)
        assert len(born) == 1
        # It counts as used a little where it was born, four times what would be dead, and nowhere else.
        share = trainer.hits_KV[:, code] * VOCABULARY / tallies(pyramid, 0.5)[0].sum(1)
        expected = torch.zeros(3)
        expected[born[0]] = 4 * 0.1
        torch.testing.assert_close(share, expected, rtol=0.3, atol=0.0)  # of what the scale held when it was born
    assert torch.equal(trainer.cluster_size_V[3:], trainer.cluster_size_V[3].expand(5))
    torch.testing.assert_close(trainer.sums_VE[3:], quantizer.codebook.weight[3:].detach() * trainer.cluster_size_V[3])
    assert trainer.cooldown_V.tolist() == [0] * 3 + [20] * 5  # 2 / (1 - 0.9) steps
    held = CodebookTrainer(quantizer, config, known=True)
    for _ in range(60):
        moved = held.update(quantizer, pyramid)
        assert moved <= 2  # a quarter of eight
    few = CodebookTrainer(quantizer, replace(config, restart_fraction=0.01), known=True)
    assert max(few.update(quantizer, pyramid) for _ in range(60)) == 1


def test_a_code_that_one_scale_uses_is_not_dead() -> None:
    quantizer = quantizer_of()
    pyramid = pyramid_of(1, highest=3, batch=16)
    pyramid.codes[0].copy_(torch.arange(16).view(16, 1) % 5 + 3)  # the 1x1 grid alone has 3 to 7
    trainer = CodebookTrainer(quantizer, CodebookConfig(restart_below=0.1, scale_floor=0.0))
    assert trainer.update(quantizer, pyramid) == 0


def test_a_starving_scale_is_given_the_codes_that_are_used_least() -> None:
    """Of 8 codes the 1x1 grid uses one, and should half: two a step, of the fewest votes, and not those just moved."""
    config = CodebookConfig(decay=0.9, restart_below=0.02, scale_floor=0.5, floor_moves=2)
    quantizer = quantizer_of()
    pyramid = pyramid_of(1, batch=16)
    pyramid.codes[0].zero_()
    trainer = CodebookTrainer(quantizer, config)
    assert trainer.update(quantizer, pyramid) == 0  # the first batch feeds nobody
    fewest = trainer.cluster_size_V.argsort()
    assert trainer.update(quantizer, pyramid) == 2
    moved = trainer.cooldown_V.nonzero().flatten()
    assert set(moved.tolist()) == set(fewest[:2].tolist())
    for code in moved.tolist():
        assert places(quantizer, pyramid, code) == [0]
    trainer.update(quantizer, pyramid)
    assert int((trainer.cooldown_V > 0).sum()) == 4  # two others
    fed = CodebookTrainer(quantizer, replace(config, scale_floor=0.0))
    fed.update(quantizer, pyramid)
    assert fed.update(quantizer, pyramid) == 0


def test_no_more_codes_are_moved_than_are_old_enough() -> None:
    quantizer = quantizer_of()
    trainer = CodebookTrainer(quantizer, CALM)
    trainer.cluster_size_V.copy_(torch.arange(8.0, 0.0, -1.0))
    trainer.cooldown_V[7] = 1
    dead = torch.tensor([6])
    assert trainer._least_used(dead, 3).tolist() == [5, 4, 3]
    assert trainer._least_used(dead, 99).tolist() == [5, 4, 3, 2, 1, 0]


def test_grace_runs_out() -> None:
    quantizer = quantizer_of()
    trainer = CodebookTrainer(quantizer, CALM)
    trainer.cooldown_V[:2] = torch.tensor([2, 1])
    trainer.update(quantizer, pyramid_of(1))
    assert trainer.cooldown_V.tolist() == [1] + [0] * 7


def test_usage() -> None:
    counts = torch.tensor([[6.0, 2, 0, 0], [0, 0, 4, 4]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    usage = Codes(4).usage(counts)
    assert usage == CodeUsage(
        distinct=[2, 2],
        perplexity=[pytest.approx(math.exp(entropy)), pytest.approx(2.0)],  # type: ignore[list-item]
        distinct_overall=4,
        perplexity_overall=usage.perplexity_overall,
        vocabulary=4,
    )
    shares = (6 / 16, 2 / 16, 4 / 16, 4 / 16)
    assert usage.perplexity_overall == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert Codes(4).usage(counts, threshold=2.0).distinct == [1, 2]
    assert Codes(4).usage(counts, threshold=2.0).distinct_overall == 3
    assert Codes(4).usage(torch.zeros(1, 4)).perplexity == [1.0]


def test_codes_are_counted_by_scale() -> None:
    counts = Codes(5).counts([torch.tensor([[2], [2]]), torch.tensor([[0, 1], [1, 3]])])
    assert counts.tolist() == [[0, 0, 2, 0, 0], [1, 2, 0, 1, 0]]
    assert counts.dtype == torch.float64


def test_statistics_of_earlier_checkpoints_are_read() -> None:
    quantizer = Quantizer(QuantizerConfig(vocabulary=4, code_width=2, sizes=(1, 2)))
    trainer = CodebookTrainer(quantizer, CALM)
    trainer.cluster_size_V.copy_(torch.arange(4.0))
    trainer.cooldown_V.fill_(3)
    names = {"cluster_size_V": "votes_V", "cooldown_V": "grace_V"}
    other = CodebookTrainer(quantizer, CALM)
    other.load_state_dict({names.get(name, name): value for name, value in trainer.state_dict().items()})
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in trainer.state_dict().items())
