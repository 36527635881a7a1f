"""Distances against closed forms and plain loops, against torchmetrics, and the mistakes of other programs, kept."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from star.eval.metrics import distances
from star.eval.metrics.distances import Gaussian, can_extrapolate, cubic, frechet, frechet_infinity, mmd
from tests.eval.kernels import cmmd, kid


def rows(count: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(count: int, width: int = 6, seed: int = 0) -> Tensor:
    return rows(count, width, seed) @ rows(width, width, seed + 100) + rows(1, width, seed + 200)


def normal(mean: Tensor, covariance: Tensor, count: int = 50) -> Gaussian:
    """With exactly these moments."""
    gaussian = Gaussian(len(mean))
    gaussian.count, gaussian.mean_D, gaussian.scatter_DD = count, mean.double(), covariance.double() * (count - 1)
    return gaussian


def by_definition(one: Gaussian, other: Gaussian) -> float:
    """Tr (S T)^(1/2) through the eigenvalues of the product itself, which is not symmetric."""
    product = (one.covariance_DD @ other.covariance_DD).numpy()
    shared = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    shift = float((one.mean_D - other.mean_D).square().sum())
    return shift + float(one.covariance_DD.trace() + other.covariance_DD.trace()) - 2 * float(shared)


# --- statistics ---


def test_statistics_do_not_depend_on_how_rows_come() -> None:
    features = correlated(300)
    whole, pieces = Gaussian.of(features), Gaussian(6)
    for part in features.split([1, 0, 2, 97, 200]):
        pieces.add(part)
    for found in (whole, pieces):
        assert found.count == 300
        np.testing.assert_allclose(found.mean_D, features.numpy().mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance_DD, np.cov(features.numpy(), rowvar=False), rtol=1e-10)


def test_rows_that_are_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 6\)"):
        Gaussian(6).add(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="NaN"):
        Gaussian(2).add(torch.tensor([[0.0, float("nan")], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="at least 2 rows, 1"):
        frechet(Gaussian.of(rows(1)), Gaussian.of(rows(5)))


# --- Frechet ---


def test_frechet_of_axis_parallel_normals() -> None:
    """|m - n|^2 and, along each axis, the squared difference of the standard deviations."""
    one = normal(torch.tensor([0.0, 1.0, 2.0]), torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    other = normal(torch.tensor([3.0, 1.0, 0.0]), torch.diag(torch.tensor([4.0, 4.0, 0.25])))
    assert frechet(one, other) == pytest.approx(9 + 4 + (1 - 2) ** 2 + (3 - 0.5) ** 2, rel=1e-12)


def test_frechet_of_correlated_normals_is_its_definition() -> None:
    one, other = Gaussian.of(correlated(60, seed=1)), Gaussian.of(correlated(50, seed=2))
    assert frechet(one, other) == pytest.approx(by_definition(one, other), rel=1e-9)
    assert frechet(one, other) == pytest.approx(frechet(other, one), rel=1e-9)


def test_frechet_of_a_set_and_itself_and_of_a_shifted_copy() -> None:
    features = correlated(80)
    shift = torch.arange(6.0, dtype=torch.float64)
    assert frechet(Gaussian.of(features), Gaussian.of(features)) == pytest.approx(0, abs=1e-9)
    assert frechet(Gaussian.of(features), Gaussian.of(features + shift)) == pytest.approx(55, rel=1e-9)


def test_fewer_rows_than_features_need_no_help() -> None:
    """Singular covariances: others take a root of their product, and add a constant where that fails."""
    features, reference = correlated(20, width=40, seed=1), correlated(25, width=40, seed=2)
    one, other = Gaussian.of(features), Gaussian.of(reference)
    assert frechet(one, one) == pytest.approx(0, abs=1e-7)
    # both live in the span of all rows, where the same distance is taken with full rank for one at least
    basis = torch.linalg.qr(torch.cat([features, reference]).T)[0]
    inside = frechet(Gaussian.of(features @ basis), Gaussian.of(reference @ basis))
    assert frechet(one, other) == pytest.approx(inside, rel=1e-9)
    assert frechet(one, other) == pytest.approx(by_definition(one, other), rel=1e-5)


def test_a_covariance_in_float32_would_be_wrong() -> None:
    """The mistake: sums of squares minus squared means, in float32. The inputs show it, ours is not moved by it."""
    spread = torch.tensor([0.05, 0.1], dtype=torch.float64)
    features = (rows(4000, 2) * spread + 300).float()
    exact = torch.from_numpy(np.cov(features.double().numpy(), rowvar=False))
    mean = features.mean(dim=0)
    naive = features.T @ features / len(features) - torch.outer(mean, mean)
    assert (naive.double() - exact).abs().max() > 0.5 * exact.max()
    torch.testing.assert_close(Gaussian.of(features).covariance_DD, exact, rtol=1e-9, atol=1e-12)


class Given(nn.Module):
    """Features that were computed elsewhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def test_frechet_equals_torchmetrics() -> None:
    features, reference = correlated(90, 16, seed=1).relu().float(), correlated(70, 16, seed=2).relu().float()
    theirs = FrechetInceptionDistance(feature=Given(16))
    for part in features.split(40):
        theirs.update(part, real=False)
    theirs.update(reference, real=True)
    found = frechet(Gaussian.of(features), Gaussian.of(reference))
    assert found == pytest.approx(float(theirs.compute()), abs=1e-3)
    assert found > 1


# --- FD-infinity ---


def trials(shift: float, drawn: int, references: int, times: int = 24, width: int = 6) -> tuple[Tensor, Tensor]:
    """FD and FD-infinity of samples of two normals that are `shift` apart along the first axis."""
    found = []
    for seed in range(times):
        features, reference = rows(drawn, width, seed), rows(references, width, 1000 + seed)
        features[:, 0] += shift
        plain = frechet(Gaussian.of(features), Gaussian.of(reference))
        found.append((plain, frechet_infinity(features, reference, seed=seed)))
    plain_R, infinite_R = torch.tensor(found, dtype=torch.float64).T
    return plain_R, infinite_R


@pytest.mark.parametrize(("shift", "drawn", "references"), [(0.0, 100, 100), (0.0, 80, 160), (1.0, 100, 100)])
def test_frechet_infinity_is_free_of_the_bias_of_few_rows(shift: float, drawn: int, references: int) -> None:
    plain_R, infinite_R = trials(shift, drawn, references)
    error = float(infinite_R.std()) / math.sqrt(len(infinite_R))
    assert float(infinite_R.mean()) == pytest.approx(shift**2, abs=3 * error + 0.02)
    bias = float(plain_R.mean()) - shift**2
    assert bias > 0.1
    assert abs(float(infinite_R.mean()) - shift**2) < bias / 3


def test_frechet_infinity_of_a_set_and_itself_is_zero() -> None:
    features = correlated(60)
    assert frechet_infinity(features, features) == pytest.approx(0, abs=1e-8)


def test_too_few_rows_are_not_extrapolated() -> None:
    assert can_extrapolate(13, 99, 6)
    assert not can_extrapolate(12, 99, 6)
    with pytest.raises(ValueError, match="more than 12 on both sides"):
        frechet_infinity(rows(50), rows(12))


# --- kernel distances ---


def mmd_by_loops(one: Tensor, other: Tensor, kernel: Any) -> float:
    n, m = len(one), len(other)
    within = sum(kernel(one[i], one[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    beside = sum(kernel(other[i], other[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(x, y) for x in one for y in other) / (n * m)
    return float(within + beside - 2 * across)


def test_kid_is_its_definition() -> None:
    one, other = correlated(9, seed=1), correlated(12, seed=2)
    assert kid(one, other) == pytest.approx(mmd_by_loops(one, other, lambda x, y: (x @ y / 6 + 1) ** 3), rel=1e-10)


@pytest.mark.filterwarnings("ignore:.*will save all extracted features")
def test_kid_equals_torchmetrics() -> None:
    one, other = correlated(50, 16, seed=1).float(), correlated(50, 16, seed=2).float()
    theirs = KernelInceptionDistance(feature=Given(16), subsets=1, subset_size=50)
    theirs.update(one, real=False)
    theirs.update(other, real=True)
    assert kid(one, other) == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


def test_kid_of_samples_of_one_normal_is_zero_on_average() -> None:
    found = torch.tensor([kid(rows(30, seed=seed), rows(40, seed=500 + seed)) for seed in range(60)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / math.sqrt(60)
    assert float(found.min()) < 0  # unbiased, so not bounded by zero


def test_cmmd_is_its_definition_and_its_code_counts_rows_with_themselves() -> None:
    one, other = rows(50, 512, seed=1), rows(50, 512, seed=2) + 0.1
    found = cmmd(one * 7, other)  # lengths do not count
    unit, others = (nn.functional.normalize(x, dim=1) for x in (one, other))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-(x - y).square().sum() / 200)

    assert found == pytest.approx(1000 * mmd_by_loops(unit[:50], others, kernel), rel=1e-9)
    biased = sum(
        sign * torch.exp(-torch.cdist(x, y).square() / 200).mean()
        for sign, x, y in ((1, unit, unit), (1, others, others), (-2, unit, others))
    )
    assert 1000 * float(biased) - found == pytest.approx(0.4, abs=0.02)


def test_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = correlated(30, seed=1), correlated(23, seed=2)
    whole = (kid(one, other), cmmd(one, other), frechet(Gaussian.of(one), Gaussian.of(other)))
    monkeypatch.setattr(distances, "ROWS", 7)
    blocks = (kid(one, other), cmmd(one, other), frechet(Gaussian.of(one), Gaussian.of(other)))
    assert blocks == pytest.approx(whole, rel=1e-9)


def test_weights_stand_for_repeated_rows() -> None:
    one, other = correlated(6, seed=1), correlated(8, seed=2)
    drawn = [0, 0, 3, 4, 4, 4]
    weights = torch.tensor([[2, 1], [0, 1], [0, 1], [1, 1], [3, 1], [0, 1]], dtype=torch.uint8)
    found_R = mmd(one, other, cubic, weights)
    assert found_R.tolist() == pytest.approx([float(mmd(one[drawn], other, cubic)), kid(one, other)], rel=1e-10)


def test_a_kernel_distance_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="at least 2 on both sides"):
        kid(rows(1), rows(5))


def test_rounding_below_zero_is_zero() -> None:
    """An eigenvalue that is negative by rounding has no root, and a distance is not negative."""
    assert distances.gaussian_distance(0.0, 2.0, torch.diag(torch.tensor([1.0, -1e-18]).double())) == 0.0
    assert distances.gaussian_distance(0.5, 2.0, torch.diag(torch.tensor([1.0, 1e-9]).double())) == pytest.approx(
        0.5, 1e-3
    )
    assert distances.gaussian_distance(1.5, 2.0, torch.zeros(0, 0).double()) == 3.5
    assert distances.gaussian_distance(0.0, 1.0, torch.eye(2).double()) == 0.0


def test_a_root_has_the_rank_of_its_covariance() -> None:
    flat = correlated(40)
    flat[:, 4:] = flat[:, :2]
    covariance = Gaussian.of(flat).covariance_DD
    factor = distances.root(covariance)
    assert factor.shape == (6, 4)
    torch.testing.assert_close(factor @ factor.T, covariance)
    assert distances.root(torch.zeros(3, 3).double()).shape == (3, 0)
    assert distances.root(torch.eye(3).double()).shape == (3, 3)


def test_an_extrapolation_is_the_line_through_all_and_halves() -> None:
    drawn, reference = rows(60, 3), rows(60, 3, seed=1) + 0.3
    generator, halves = np.random.default_rng(5), []
    for _ in range(2):
        order = torch.from_numpy(generator.permutation(60))
        for part in (order[:30], order[30:]):
            halves.append(frechet(Gaussian.of(drawn[part]), Gaussian.of(reference[part])))
    whole = frechet(Gaussian.of(drawn), Gaussian.of(reference))
    found = frechet_infinity(drawn, reference, halvings=2, seed=5)
    assert found == pytest.approx(2 * whole - sum(halves) / 4, rel=1e-9)
    assert frechet_infinity(drawn, reference) == frechet_infinity(drawn, reference, halvings=4, seed=0)
    assert frechet_infinity(drawn, reference) != frechet_infinity(drawn, reference, halvings=3, seed=0)
    assert [can_extrapolate(n, 9, 3) for n in (6, 7)] == [False, True]
    assert [can_extrapolate(9, n, 3) for n in (6, 7)] == [False, True]
