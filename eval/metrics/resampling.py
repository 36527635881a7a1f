"""How sure a number is: 95 % intervals from resampling pictures (Efron 1979).

The generated pictures are drawn anew, with repeats, as many as there are; the reference stays as it is, part of the
protocol. What is a mean over pictures is resampled as a mean. A distance needs care: resampled rows repeat, so a
resample lies further from the reference than the sample did, and its plain percentiles would lie above the number they
belong to. So the spread of the resamples is laid around the number (`centred`): the interval tells how far the number
moves with other pictures at this count, not what an endless count would give. FD has the same bias upwards once more,
by the count itself, which no interval shows; `star.eval.metrics.distances.frechet_infinity` and the kernel distances
are free of it. There is none of one picture, of fewer than `FEWEST` resamples, of
values all alike. A share of none or all has Wilson's interval: its resamples have no spread, but another sample might.
N M rows, D feature width, R resamples, r rank.
"""

import numpy as np
import torch
from torch import Tensor

from star.eval.metrics.distances import ROWS, Gaussian, frechet_infinity, gaussian_distance, root
from star.eval.metrics.features import Features, subset

Interval = tuple[float, float]
TAILS = (0.025, 0.975)
FEWEST = 20  # resamples behind an interval: of fewer the outer 2.5 % are no tails at all
DIFFERENT = 0.64  # of the rows, in a resample: 1 - 1/e
ALIKE = 1e-6  # spread, as a share of the largest value, up to which resamples differ by rounding alone
AT_ONCE = 8  # resamples whose covariances are held at a time


def counts(rows: int, resamples: int, seed: int) -> Tensor:
    """counts_NR uint8: how often each row is drawn in each resample of as many draws."""
    generator = np.random.default_rng(seed)
    drawn_NR = np.empty((rows, resamples), np.uint8)
    for number in range(resamples):
        drawn_NR[:, number] = np.bincount(generator.integers(0, rows, rows), minlength=rows)
    return torch.from_numpy(drawn_NR)


def can_have_interval(rows: int, resamples: int) -> bool:
    """Whether there are enough of both for an interval."""
    return rows >= 2 and resamples >= FEWEST


def centred(value: float, resampled_R: Tensor) -> Interval | None:
    """The spread of resamples around their mean, laid around the value; None if they have none."""
    if len(resampled_R) < FEWEST or _alike(resampled_R):
        return None
    low, high = np.quantile(resampled_R.double().numpy(), TAILS) - float(resampled_R.double().mean())
    return value + float(low), value + float(high)


def _alike(values: Tensor) -> bool:
    return float(values.max() - values.min()) <= ALIKE * float(values.abs().max())


def wilson(share: float, rows: int) -> Interval:
    """95 % interval of a share; Wilson 1927, which holds for none and all."""
    z = 1.959964
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z / (1 + z * z / rows) * ((share * (1 - share) + z * z / (4 * rows)) / rows) ** 0.5
    return max(0.0, middle - reach), min(1.0, middle + reach)


def mean_interval(values_N: Tensor, resamples: int, seed: int, *, binary: bool = False) -> Interval | None:
    """Percentile interval of a mean over rows; None if there is none. binary: values are 0 or 1."""
    if not can_have_interval(len(values_N), resamples):
        return None
    if _alike(values_N):
        return wilson(float(values_N[0]), len(values_N)) if binary else None
    generator = np.random.default_rng(seed)
    values = values_N.double().numpy()
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)


def frechet_resamples(features_ND: Features, reference: Gaussian, resamples: int, seed: int) -> Tensor:
    """FD to the reference of R resamples, float64 (R,).

    With the reference's covariance F F', only rows projected onto F are needed, as wide as its rank: each resample is
    one weighted product and the eigenvalues of a matrix of that size. Where a resample has fewer different rows than
    that, these are the eigenvalues of the products of its rows with each other, which are taken once for all.
    """
    N, reference_DR = len(features_ND), root(reference.covariance_DD)
    weights_NR = counts(N, resamples, seed)
    if reference_DR.shape[1] > DIFFERENT * N:
        return _by_products_of_rows(features_ND, reference, reference_DR, weights_NR)
    found = []
    for first in range(0, resamples, AT_ONCE):
        weights_NG = weights_NR[:, first : first + AT_ONCE]
        mean_GD, squares_G, product_Grr = _moments(features_ND, reference.mean_D, reference_DR, weights_NG)
        for mean_D, squares, product_rr in zip(mean_GD, squares_G, product_Grr, strict=True):
            projected_r = mean_D @ reference_DR
            product_rr = (product_rr - N * torch.outer(projected_r, projected_r)) / (N - 1)
            trace = (float(squares) - N * float(mean_D.square().sum())) / (N - 1)
            shift = float(mean_D.square().sum())
            found.append(gaussian_distance(shift, trace + float(reference.covariance_DD.trace()), product_rr))
    return torch.tensor(found, dtype=torch.float64)


def _by_products_of_rows(
    features_ND: Features, reference: Gaussian, reference_DR: Tensor, weights_NR: Tensor
) -> Tensor:
    """`frechet_resamples` for few rows N of a large width."""
    N = len(features_ND)
    rows_ND = features_ND[0:N].double() - reference.mean_D
    projected_NR = rows_ND @ reference_DR
    inner_NN, outer_NN = rows_ND @ rows_ND.T, projected_NR @ projected_NR.T
    traces, found = float(reference.covariance_DD.trace()), []
    for drawn_N in weights_NR.T:
        rows_n = drawn_N.nonzero().squeeze(1)
        weights_n = drawn_N[rows_n].double()
        inner_nn, outer_nn = inner_NN[rows_n][:, rows_n], outer_NN[rows_n][:, rows_n]
        shift = float(weights_n @ inner_nn @ weights_n) / N**2
        trace = (float(weights_n @ inner_nn.diagonal()) - N * shift) / (N - 1)
        means_n = outer_nn @ weights_n / N
        centred_nn = outer_nn - means_n[:, None] - means_n + weights_n @ means_n / N
        roots_n = weights_n.sqrt()
        product_nn = roots_n[:, None] * centred_nn * roots_n / (N - 1)
        found.append(gaussian_distance(shift, trace + traces, product_nn))
    return torch.tensor(found, dtype=torch.float64)


def _moments(
    features_ND: Features, centre_D: Tensor, reference_DR: Tensor, weights_NG: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean (G, D), sum of squares (G,) and projected products (G, r, r) of rows around the centre."""
    N, groups, rank = len(features_ND), weights_NG.shape[1], reference_DR.shape[1]
    total_GD = torch.zeros(groups, len(centre_D), dtype=torch.float64)
    squares_G = torch.zeros(groups, dtype=torch.float64)
    product_Grr = torch.zeros(groups, rank, rank, dtype=torch.float64)
    for top in range(0, N, ROWS):
        rows_nD = features_ND[top : top + ROWS].double() - centre_D
        weights_nG = weights_NG[top : top + ROWS].double()
        projected_nr = rows_nD @ reference_DR
        total_GD += weights_nG.T @ rows_nD
        squares_G += weights_nG.T @ rows_nD.square().sum(dim=1)
        for group in range(groups):
            product_Grr[group] += (projected_nr * weights_nG[:, group, None]).T @ projected_nr
    return total_GD / N, squares_G, product_Grr


def frechet_infinity_resamples(features_ND: Features, reference_MD: Features, resamples: int, seed: int) -> Tensor:
    """FD-infinity of R resamples; of pairs of rows where both sides have as many, so that these stay together."""
    generator = np.random.default_rng(seed)
    N, M, found = len(features_ND), len(reference_MD), []
    for number in range(resamples):
        rows = generator.integers(0, N, N)
        others = subset(reference_MD, rows) if M == N else reference_MD
        found.append(frechet_infinity(subset(features_ND, rows), others, seed=seed + number))
    return torch.tensor(found, dtype=torch.float64)


def normal_interval(value: float, resampled_R: Tensor) -> Interval | None:
    """Two standard deviations (1.96) of resamples on either side: for few resamples, whose tails say nothing."""
    if len(resampled_R) < 2 or _alike(resampled_R):
        return None
    reach = 1.96 * float(resampled_R.std())
    return value - reach, value + reach
