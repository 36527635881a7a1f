"""The kernel distances as the metrics take them, for tests: without intervals, KID not times 1000."""

from star.eval.metrics.distances import CMMD_SCALE, cubic, gaussian, mmd
from star.eval.metrics.features import Features


def kid(features_ND: Features, reference_MD: Features) -> float:
    return float(mmd(features_ND, reference_MD, cubic))


def cmmd(features_ND: Features, reference_MD: Features) -> float:
    return CMMD_SCALE * float(mmd(features_ND, reference_MD, gaussian))
