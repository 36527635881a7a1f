"""The functions behind the metrics of a set of pictures: from features to a number with its interval.

Each is the `function` of a metric of `star.eval.metrics.registry`, and gives None where there are too few rows for it.
N generated rows, M reference rows, D feature width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from star.eval.metrics import distances
from star.eval.metrics.distances import Gaussian, can_extrapolate, frechet, frechet_infinity
from star.eval.metrics.manifold import Manifold, precision_recall_density_coverage
from star.eval.metrics.metric import Inputs, Measure
from star.eval.metrics.resampling import (
    can_have_interval,
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
FEW = 16  # resamples at most of a number that itself takes nine decompositions


def estimate(measure: Measure, pictures: int) -> Estimate:
    """A number and its interval, as a record has them."""
    value, interval = measure
    low, high = interval or (None, None)
    return Estimate(value=value, low=low, high=high, pictures=pictures)


def mean(values_N: Tensor, bootstrap: int, seed: int, *, binary: bool = False) -> Measure:
    """Of one value per picture; binary: which are 0 or 1."""
    return float(values_N.double().mean()), mean_interval(values_N, bootstrap, seed, binary=binary)


def frechet_distance(inputs: Inputs) -> Measure | None:
    """FD, called FID where the network is Inception."""
    return inputs.once(_frechet)


def _frechet(inputs: Inputs) -> Measure | None:
    if _fewest(inputs) < 2:
        return None
    generated_ND = inputs.generated
    reference = Gaussian.of(inputs.references)
    value = frechet(Gaussian.of(generated_ND), reference)
    if not can_have_interval(len(generated_ND), inputs.bootstrap):
        return value, None
    return value, centred(value, frechet_resamples(generated_ND, reference, inputs.bootstrap, inputs.seed))


def frechet_distance_infinity(inputs: Inputs) -> Measure | None:
    """FD extrapolated to endless pictures."""
    generated_ND, references_MD, seed = inputs.generated, inputs.references, inputs.seed
    if not can_extrapolate(len(generated_ND), len(references_MD), generated_ND.shape[1]):
        return None
    value = frechet_infinity(generated_ND, references_MD, seed=seed)
    if not can_have_interval(len(generated_ND), inputs.bootstrap):
        return value, None
    resampled_R = frechet_infinity_resamples(generated_ND, references_MD, min(inputs.bootstrap, FEW), seed)
    return value, normal_interval(value, resampled_R)


def kernel_distance(inputs: Inputs) -> Measure | None:
    """KID, times 1000."""
    return _kernel(inputs, distances.cubic, KID_SCALE)


def clip_mmd(inputs: Inputs) -> Measure | None:
    """CMMD."""
    return _kernel(inputs, distances.gaussian, distances.CMMD_SCALE)


def _kernel(inputs: Inputs, kernel: distances.Kernel, scale: float) -> Measure | None:
    if _fewest(inputs) < 2:
        return None
    generated_ND, references_MD, N = inputs.generated, inputs.references, len(inputs.generated)
    if not can_have_interval(N, inputs.bootstrap):
        return scale * float(distances.mmd(generated_ND, references_MD, kernel)), None
    # The sample itself is the first of its resamples: the kernel is taken once.
    weights_NR = torch.cat([torch.ones(N, 1, dtype=torch.uint8), counts(N, inputs.bootstrap, inputs.seed)], dim=1)
    value, *resampled = (scale * distances.mmd(generated_ND, references_MD, kernel, weights_NR)).tolist()
    return value, centred(value, torch.tensor(resampled, dtype=torch.float64))


def manifold_mean(name: str, *, binary: bool = True) -> Callable[[Inputs], Measure | None]:
    """The function of precision, recall, density or coverage; binary: its values per row are 0 or 1."""

    def function(inputs: Inputs) -> Measure | None:
        if _fewest(inputs) <= max(K, K_DENSITY):
            return None
        return mean(inputs.once(_manifold).values[name], inputs.bootstrap, inputs.seed, binary=binary)

    return function


def _manifold(inputs: Inputs) -> Manifold:
    return precision_recall_density_coverage(inputs.references, inputs.generated, k=K, k_density=K_DENSITY)


def _fewest(inputs: Inputs) -> int:
    return min(len(inputs.generated), len(inputs.references))
