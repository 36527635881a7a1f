"""From the features of one group of pictures to numbers with intervals: the statistics behind
`star.eval.metrics.registry.score`.

A kind is left out where there are too few rows for it. N drawn rows, M reference rows, D feature width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from star.eval.metrics import distances
from star.eval.metrics.distances import Gaussian, can_extrapolate, frechet, frechet_infinity
from star.eval.metrics.feature_table import Table
from star.eval.metrics.manifold import precision_recall_density_coverage
from star.eval.metrics.resampling import (
    Interval,
    can_tell,
    centred,
    counts,
    frechet_infinity_resamples,
    frechet_resamples,
    mean_interval,
    normal_interval,
)
from star.eval.run.record import Estimate

KID_SCALE = 1000.0  # as tables show it
K, K_DENSITY = 3, 5  # neighbours
DEAR = 16  # resamples at most of a number that itself takes nine decompositions

MANIFOLD = ("precision", "recall", "density", "coverage")
Measure = tuple[float, Interval | None]


def estimates(
    kinds: Sequence[str], drawn_ND: Table, real_MD: Table, *, bootstrap: int, seed: int
) -> dict[str, Estimate]:
    """kind -> estimate. bootstrap: resamples behind each interval; too few for one (see
    `star.eval.metrics.resampling`): none.
    """
    N, fewest = len(drawn_ND), min(len(drawn_ND), len(real_MD))
    found: dict[str, Measure] = {}
    if fewest >= 2 and {"fd", "fid"} & set(kinds):
        found |= dict.fromkeys(("fd", "fid"), _frechet(drawn_ND, real_MD, bootstrap, seed))
    if "fd_infinity" in kinds and can_extrapolate(N, len(real_MD), drawn_ND.shape[1]):
        found["fd_infinity"] = _infinity(drawn_ND, real_MD, bootstrap, seed)
    if fewest >= 2 and "kid" in kinds:
        found["kid"] = _kernel(distances.cubic, KID_SCALE, drawn_ND, real_MD, bootstrap, seed)
    if fewest >= 2 and "cmmd" in kinds:
        found["cmmd"] = _kernel(distances.gaussian, distances.CMMD_SCALE, drawn_ND, real_MD, bootstrap, seed)
    if fewest > max(K, K_DENSITY) and set(MANIFOLD) & set(kinds):
        manifold = precision_recall_density_coverage(real_MD, drawn_ND, k=K, k_density=K_DENSITY)
        found |= {
            kind: mean(values, bootstrap, seed, shares=kind != "density") for kind, values in manifold.values.items()
        }
    return {kind: estimate(found[kind], N) for kind in kinds if kind in found}


def estimate(measure: Measure, pictures: int) -> Estimate:
    """A number and its interval, as a record has them."""
    value, interval = measure
    low, high = interval or (None, None)
    return Estimate(value=value, low=low, high=high, pictures=pictures)


def mean(values_N: Tensor, bootstrap: int, seed: int, *, shares: bool = False) -> Measure:
    """Of one value per picture; shares: which are 0 or 1."""
    return float(values_N.double().mean()), mean_interval(values_N, bootstrap, seed, shares=shares)


def _frechet(drawn_ND: Table, real_MD: Table, bootstrap: int, seed: int) -> Measure:
    reference = Gaussian.of(real_MD)
    value = frechet(Gaussian.of(drawn_ND), reference)
    if not can_tell(len(drawn_ND), bootstrap):
        return value, None
    return value, centred(value, frechet_resamples(drawn_ND, reference, bootstrap, seed))


def _infinity(drawn_ND: Table, real_MD: Table, bootstrap: int, seed: int) -> Measure:
    value = frechet_infinity(drawn_ND, real_MD, seed=seed)
    if not can_tell(len(drawn_ND), bootstrap):
        return value, None
    few = min(bootstrap, DEAR)
    return value, normal_interval(value, frechet_infinity_resamples(drawn_ND, real_MD, few, seed))


def _kernel(
    kernel: Callable[[Tensor, Tensor], Tensor],
    scale: float,
    drawn_ND: Table,
    real_MD: Table,
    bootstrap: int,
    seed: int,
) -> Measure:
    N = len(drawn_ND)
    if not can_tell(N, bootstrap):
        return scale * float(distances.mmd(drawn_ND, real_MD, kernel)), None
    # The sample itself is the first of its resamples: the kernel is taken once.
    weights_NR = torch.cat([torch.ones(N, 1, dtype=torch.uint8), counts(N, bootstrap, seed)], dim=1)
    value, *resampled = (scale * distances.mmd(drawn_ND, real_MD, kernel, weights_NR)).tolist()
    return value, centred(value, torch.tensor(resampled, dtype=torch.float64))
