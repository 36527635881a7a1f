"""Numbers with intervals: each is its metric, and each interval the spread that theory gives.

N rows, R resamples.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from star.eval.metrics import distances
from star.eval.metrics.distances import Gaussian, frechet, frechet_infinity
from star.eval.metrics.estimates import estimate, mean
from star.eval.metrics.manifold import precision_recall_density_coverage
from star.eval.metrics.registry import estimates
from star.eval.metrics.resampling import (
    centred,
    counts,
    frechet_infinity_resamples,
    frechet_resamples,
    mean_interval,
    normal_interval,
)
from tests.eval.kernels import cmmd, kid

ALL = ("fd", "fid", "fd_infinity", "kid", "cmmd", "precision", "recall", "density", "coverage")


def rows(count: int, width: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_resample_draws_as_many_rows_as_there_are() -> None:
    drawn = counts(200, 30, seed=1)
    assert drawn.shape == (200, 30)
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn.long().sum(0), torch.full((30,), 200))
    assert float((drawn == 0).float().mean()) == pytest.approx(math.exp(-1), abs=0.02)  # of rows that stay out
    assert float((drawn[0] + drawn[-1]).float().mean()) > 0  # the first and the last row take part
    assert torch.equal(drawn, counts(200, 30, seed=1))
    assert not torch.equal(drawn, counts(200, 30, seed=2))


def test_a_spread_is_laid_around_the_value() -> None:
    resampled = torch.linspace(0, 1, 1001).square()  # its mean is 1/3
    middle = float(resampled.double().mean())
    expected = (5 + 0.025**2 - middle, 5 + 0.975**2 - middle)
    assert centred(5.0, resampled) == pytest.approx(expected, abs=1e-6)
    assert normal_interval(5.0, torch.tensor([1.0, 3.0, 5.0])) == pytest.approx((1.08, 8.92))  # of deviation 2


def test_a_mean_lies_within_two_standard_errors() -> None:
    values = rows(400, 1)[:, 0] + 2
    middle, error = float(values.mean()), float(values.std()) / math.sqrt(400)
    expected = (middle - 1.96 * error, middle + 1.96 * error)
    assert mean_interval(values, 2000, seed=0) == pytest.approx(expected, abs=0.15 * error)
    assert mean_interval(values, 20, seed=0) != mean_interval(values, 20, seed=1)
    assert mean(values, 0, 0) == (pytest.approx(float(values.mean())), None)
    assert mean(values, 20, 0)[1] == mean_interval(values, 20, 0)


def test_rows_of_both_sides_stay_together_in_an_extrapolation() -> None:
    same = rows(40)
    assert frechet_infinity_resamples(same, same.clone(), 3, seed=0).abs().max() < 1e-6
    other = rows(50, seed=1)
    found = frechet_infinity_resamples(same, other, 3, seed=4)
    generator = np.random.default_rng(4)
    for number in range(3):
        drawn = same[torch.from_numpy(generator.integers(0, 40, 40))]
        assert found[number].item() == pytest.approx(frechet_infinity(drawn, other, seed=4 + number))


def test_resamples_are_taken_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, reference = rows(30), Gaussian.of(rows(50, seed=1))
    whole = frechet_resamples(drawn, reference, 11, seed=5)
    monkeypatch.setattr("star.eval.metrics.resampling.AT_ONCE", 3)
    monkeypatch.setattr("star.eval.metrics.resampling.ROWS", 7)
    torch.testing.assert_close(frechet_resamples(drawn, reference, 11, seed=5), whole)


def test_every_number_is_that_of_its_metric() -> None:
    drawn, real = rows(40), rows(50, seed=1) + 0.5
    found = estimates(ALL, drawn, real, bootstrap=0, seed=3)
    assert list(found) == list(ALL)
    assert all((known.low, known.high, known.pictures) == (None, None, 40) for known in found.values())
    values = {name: known.value for name, known in found.items()}
    distance = frechet(Gaussian.of(drawn), Gaussian.of(real))
    assert values["fd"] == values["fid"] == pytest.approx(distance)
    assert values["fd_infinity"] == pytest.approx(frechet_infinity(drawn, real, seed=3))
    assert values["kid"] == pytest.approx(1000 * kid(drawn, real))
    assert values["cmmd"] == pytest.approx(cmmd(drawn, real))
    for name, of_rows in precision_recall_density_coverage(real, drawn, k=3, k_density=5).values.items():
        assert values[name] == pytest.approx(float(of_rows.mean()))


def test_every_interval_is_that_of_its_metric() -> None:
    drawn, real, few, seed = rows(40), rows(50, seed=1) + 0.5, 20, 3
    found = estimates(ALL, drawn, real, bootstrap=few, seed=seed)
    spread = {
        "fd": centred(found["fd"].value, frechet_resamples(drawn, Gaussian.of(real), few, seed)),
        "fd_infinity": normal_interval(
            found["fd_infinity"].value, frechet_infinity_resamples(drawn, real, 16, seed)
        ),  # nine decompositions each: no more than 16
        "recall": mean_interval(precision_recall_density_coverage(real, drawn).recall_M, few, seed),
    }
    weights = counts(40, few, seed)
    for name, kernel, scale in (("kid", distances.cubic, 1000.0), ("cmmd", distances.gaussian, 1000.0)):
        resampled = scale * distances.mmd(drawn, real, kernel, weights)
        spread[name] = centred(found[name].value, resampled)
    for name, interval in spread.items():
        assert (found[name].low, found[name].high) == pytest.approx(interval), name


def test_only_what_is_asked_for_and_has_rows_enough_is_there() -> None:
    def names(kinds: tuple[str, ...], drawn: int, real: int) -> list[str]:
        return list(estimates(kinds, rows(drawn), rows(real, seed=1), bootstrap=0, seed=0))

    for kind in ALL:
        assert names((kind,), 40, 40) == [kind]
    assert names(ALL, 1, 40) == names(ALL, 40, 1) == []
    assert names(ALL, 2, 40) == ["fd", "fid", "kid", "cmmd"]
    assert names(ALL, 5, 40) == names(ALL, 40, 5) == ["fd", "fid", "kid", "cmmd"]
    manifold = ["precision", "recall", "density", "coverage"]
    assert names(ALL, 6, 40) == names(ALL, 40, 6) == ["fd", "fid", "kid", "cmmd", *manifold]
    assert names(ALL, 7, 7) == list(ALL)


def test_an_estimate_is_a_number_and_perhaps_an_interval() -> None:
    known = estimate((2.0, (1.0, 4.0)), 7)
    assert (known.value, known.low, known.high, known.pictures) == (2.0, 1.0, 4.0, 7)
    alone = estimate((2.0, None), 7)
    assert (alone.low, alone.high) == (None, None)
