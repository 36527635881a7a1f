"""The distance of two sets of features: that of their Gaussians (FD), and of all their moments (KID, CMMD).

    frechet(Gaussian.of(features_ND), Gaussian.of(reference_MD))    # FD; called FID where the network is Inception
    1000 * mmd(features_ND, reference_MD, cubic)                    # KID, times 1000
    CMMD_SCALE * mmd(features_ND, reference_MD, gaussian)           # CMMD

Sums are float64 and built up in chunks, so features may lie in files. FD from few pictures is too high, by about a
constant over their number; `frechet_infinity` extrapolates that away. KID and CMMD are unbiased at any number.
N M rows, D feature width, R rank or resamples.
"""

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor

from star.eval.metrics.features import Features, chunks, subset

ROWS = 2048  # at a time, in float64
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) float64 -> (N, M)


class Gaussian:
    """Count, mean and scatter (sum of squares and products around the mean) of the rows added so far, in float64."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean_D = torch.zeros(width, dtype=torch.float64)
        self.scatter_DD = torch.zeros(width, width, dtype=torch.float64)

    @classmethod
    def of(cls, features_ND: Features) -> Self:
        """Of all rows."""
        gaussian = cls(features_ND.shape[1])
        gaussian.add(features_ND)
        return gaussian

    def add(self, features_ND: Features) -> None:
        """Adds rows of any floating type. Raises ValueError for another width, or for values that are not finite."""
        if features_ND.ndim != 2 or features_ND.shape[1] != len(self.mean_D):
            raise ValueError(f"features are {tuple(features_ND.shape)}, expected (N, {len(self.mean_D)})")
        for part_ND in chunks(features_ND, ROWS):
            rows_ND = part_ND.double().cpu()
            if not bool(rows_ND.isfinite().all()):
                raise ValueError("features hold NaN or infinite values; look for the cause in the extractor")
            mean_D = rows_ND.mean(dim=0)
            centred_ND = rows_ND - mean_D
            self._merge(len(rows_ND), mean_D, centred_ND.T @ centred_ND)

    def _merge(self, count: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        """Chan, Golub and LeVeque 1983, eq. 2.1: nothing large is subtracted from anything large."""
        if count == 0:
            return
        total = self.count + count
        step_D = mean_D - self.mean_D
        self.scatter_DD = self.scatter_DD + scatter_DD + torch.outer(step_D, step_D) * (self.count * count / total)
        self.mean_D = self.mean_D + step_D * (count / total)
        self.count = total

    @property
    def covariance_DD(self) -> Tensor:
        """Divided by the count minus one. Raises ValueError for fewer than 2 rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, {self.count} were added")
        return self.scatter_DD / (self.count - 1)


def frechet(one: Gaussian, other: Gaussian) -> float:
    """Squared Frechet (2-Wasserstein) distance of two normal distributions; Heusel et al. 2017, eq. 6.

    |m - n|^2 + tr S + tr T - 2 tr (S T)^(1/2). The last term is taken as the sum of the roots of the eigenvalues of
    F' T F with S = F F', which is symmetric and as wide as the rank of S: no root of a product of two near-singular
    matrices, no complex numbers, no regularisation. Raises ValueError for fewer than 2 rows on either side.
    """
    root_DR = root(one.covariance_DD)
    return gaussian_distance(
        float((one.mean_D - other.mean_D).square().sum()),
        float(one.covariance_DD.trace()) + float(other.covariance_DD.trace()),
        root_DR.T @ other.covariance_DD @ root_DR,
    )


def root(covariance_DD: Tensor) -> Tensor:
    """F of S = F F', (D, R): without the directions in which S is zero but for rounding."""
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    kept_D = values_D > values_D[-1].clamp(min=0) * len(values_D) * torch.finfo(torch.float64).eps
    return vectors_DD[:, kept_D] * values_D[kept_D].sqrt()


def gaussian_distance(shift: float, traces: float, product_RR: Tensor) -> float:
    """`frechet` from its parts: the squared distance of the means, both traces, F' T F."""
    shared = float(torch.linalg.eigvalsh(product_RR).clamp(min=0).sqrt().sum()) if product_RR.numel() else 0.0
    return max(0.0, shift + traces - 2 * shared)


def frechet_infinity(features_ND: Features, reference_MD: Features, *, halvings: int = 4, seed: int = 0) -> float:
    """FD extrapolated to endless pictures: its line over 1 / n, at n -> infinity; Chong and Forsyth 2020, §4.

    The line is laid through all rows and the mean over random halves. Unlike the paper's subsets of one side alone,
    both sides shrink together, which removes the bias of either (the same rows of both, where these are as many), and
    the two halves of a split are used both, whose mean hardly scatters. The result may be negative. Raises ValueError
    where `can_extrapolate` says no.
    """
    N, M, D = len(features_ND), len(reference_MD), features_ND.shape[1]
    if not can_extrapolate(N, M, D):
        raise ValueError(f"{N} and {M} rows of width {D} given; an extrapolation needs more than {2 * D} on both sides")
    generator = np.random.default_rng(seed)
    halves = []
    for _ in range(halvings):
        rows = generator.permutation(N)
        others = rows if M == N else generator.permutation(M)
        for part, other in zip(np.array_split(rows, 2), np.array_split(others, 2), strict=True):
            halves.append(frechet(Gaussian.of(subset(features_ND, part)), Gaussian.of(subset(reference_MD, other))))
    return 2 * frechet(Gaussian.of(features_ND), Gaussian.of(reference_MD)) - float(np.mean(halves))


def can_extrapolate(generated: int, references: int, width: int) -> bool:
    """Whether there are rows enough for `frechet_infinity`: singular covariances do not follow its line."""
    return min(generated, references) > 2 * width


def cubic(one_ND: Tensor, other_MD: Tensor) -> Tensor:
    """The kernel of KID; Binkowski et al. 2018, §4. `mmd` over all rows has less variance than a mean over subsets."""
    return (one_ND @ other_MD.T / one_ND.shape[1] + 1) ** 3


def gaussian(one_ND: Tensor, other_MD: Tensor) -> Tensor:
    """The kernel of CMMD, of width 10 over unit vectors, where |x - y|^2 = 2 - 2 x . y; Jayasumana et al. 2024, §4.

    Rows are brought to unit length. The paper's code also counts each row with itself, which `mmd` does not: that would
    add about 0.4 at 50 rows and 0.0006 at 30,000 to CMMD, which is `CMMD_SCALE` times the squared MMD.
    """
    cosine_NM = torch.nn.functional.normalize(one_ND, dim=1) @ torch.nn.functional.normalize(other_MD, dim=1).T
    return torch.exp((cosine_NM - 1) / CMMD_SIGMA**2)


def mmd(features_ND: Features, reference_MD: Features, kernel: Kernel, weights_NR: Tensor | None = None) -> Tensor:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3), float64.

    weights_NR: how often each row of `features_ND` was drawn in each of R resamples, each of N draws; then (R,), else a
    scalar. A row never meets itself, but meets its repeats. Raises ValueError for fewer than 2 rows on either side.
    """
    N, M = len(features_ND), len(reference_MD)
    if min(N, M) < 2:
        raise ValueError(f"{N} and {M} rows given; a kernel distance needs at least 2 on both sides")
    ones_N1, ones_M1 = (torch.ones(count, 1, dtype=torch.float64) for count in (N, M))
    drawn_NR = ones_N1 if weights_NR is None else weights_NR
    within = _pairs(features_ND, features_ND, kernel, drawn_NR, drawn_NR, alone=True) / (N * (N - 1))
    across = _pairs(features_ND, reference_MD, kernel, drawn_NR, ones_M1, alone=False) / (N * M)
    references = _pairs(reference_MD, reference_MD, kernel, ones_M1, ones_M1, alone=True) / (M * (M - 1))
    found_R = within + references - 2 * across
    return found_R[0] if weights_NR is None else found_R


def _pairs(one: Features, other: Features, kernel: Kernel, one_NR: Tensor, other_MR: Tensor, *, alone: bool) -> Tensor:
    """Sum of the kernel over all pairs of rows, weighted; `alone`: of one set, less each row with itself.

    Of one set, each pair of different blocks is taken once and counted twice: the kernel is symmetric.
    """
    total_R = torch.zeros(one_NR.shape[1], dtype=torch.float64)
    for top in range(0, len(one), ROWS):
        rows, weights = one[top : top + ROWS].double(), one_NR[top : top + ROWS].double()
        for left in range(top if alone else 0, len(other), ROWS):
            block = kernel(rows, other[left : left + ROWS].double())
            if alone and top == left:
                total_R -= (weights * block.diagonal()[:, None]).sum(dim=0)
            times = 2 if alone and top != left else 1
            total_R += times * (weights * (block @ other_MR[left : left + ROWS].double())).sum(dim=0)
    return total_R
