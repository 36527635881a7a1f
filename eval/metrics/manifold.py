"""How much of the generated lies where the real is, and how much of the real is generated: quality and variety.

Around every row of one set is a ball that reaches to its k-th nearest neighbour in that set; together they stand for
the set's support. Each measure is a mean of one value per row, which is returned, since an interval needs it:

    precision   is a generated row inside any real ball          (Kynkaanniemi et al. 2019, §2)
    recall      is a real row inside any generated ball
    density     of how many real balls is a generated row a part, over k: not bounded by 1     (Naeem et al. 2020, §3)
    coverage    is any generated row inside a real row's own ball

All of them change with the number of rows: compare only at equal numbers. Distances are taken block by block.
N generated rows, M real rows, D feature width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from star.eval.metrics.features import Features

ROWS = 2048  # at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifold:
    """One value per row, float64; their means are the measures."""

    precision_N: Tensor
    recall_M: Tensor
    density_N: Tensor
    coverage_M: Tensor

    @property
    def values(self) -> dict[str, Tensor]:
        """Values by name of the measure."""
        return {
            "precision": self.precision_N,
            "recall": self.recall_M,
            "density": self.density_N,
            "coverage": self.coverage_M,
        }


def precision_recall_density_coverage(
    real_MD: Features, generated_ND: Features, *, k: int = 3, k_density: int = 5
) -> Manifold:
    """k: neighbours of precision and recall; k_density: of density and coverage; the defaults are the papers'.

    Raises ValueError unless both sides have more rows than neighbours are asked for.
    """
    if min(len(real_MD), len(generated_ND)) <= max(k, k_density) or min(k, k_density) < 1:
        raise ValueError(
            f"{len(real_MD)} real and {len(generated_ND)} generated rows given with k {k} and {k_density}; expected "
            "more rows than neighbours, and at least 1 of these"
        )
    centre_D = real_MD[:ROWS].double().mean(dim=0)  # far from the origin, float32 distances would be mostly rounding
    near_real_M2 = _radii(real_MD, centre_D, (k, k_density))
    near_generated_N = _radii(generated_ND, centre_D, (k,))[:, 0]
    N, M = len(generated_ND), len(real_MD)
    precision_N, density_N = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    recall_M, coverage_M = torch.zeros(M, dtype=torch.float64), torch.zeros(M, dtype=torch.float64)
    for top in range(0, N, ROWS):
        for left in range(0, M, ROWS):
            rows, columns = slice(top, top + ROWS), slice(left, left + ROWS)
            squared_nm = _squared(generated_ND[rows], real_MD[columns], centre_D)
            inside_nm = squared_nm <= near_real_M2[columns, 0]
            inside_wide_nm = squared_nm <= near_real_M2[columns, 1]
            in_generated_nm = squared_nm <= near_generated_N[rows, None]
            precision_N[rows] = precision_N[rows].maximum(inside_nm.any(dim=1).double())
            recall_M[columns] = recall_M[columns].maximum(in_generated_nm.any(dim=0).double())
            density_N[rows] += inside_wide_nm.sum(dim=1) / k_density
            coverage_M[columns] = coverage_M[columns].maximum(inside_wide_nm.any(dim=0).double())
    return Manifold(precision_N=precision_N, recall_M=recall_M, density_N=density_N, coverage_M=coverage_M)


def _radii(features_ND: Features, centre_D: Tensor, neighbours: tuple[int, ...]) -> Tensor:
    """Squared distance of each row to its k-th nearest other row, for several k; (N, len(neighbours))."""
    most = max(neighbours)
    parts = []
    for top in range(0, len(features_ND), ROWS):
        rows = features_ND[top : top + ROWS]
        nearest = torch.full((len(rows), most), float("inf"))
        for left in range(0, len(features_ND), ROWS):
            squared = _squared(rows, features_ND[left : left + ROWS], centre_D)
            if top == left:
                squared.fill_diagonal_(float("inf"))  # a row is no neighbour of itself
            nearest = torch.cat([nearest, squared], dim=1).topk(most, dim=1, largest=False).values
        parts.append(nearest[:, [k - 1 for k in neighbours]])
    return torch.cat(parts)


def _squared(one_ND: Tensor, other_MD: Tensor, centre_D: Tensor) -> Tensor:
    """Squared distances float32 (N, M), of rows brought near the origin first."""
    one_ND, other_MD = ((rows.double() - centre_D).float() for rows in (one_ND, other_MD))
    squared_NM = one_ND.square().sum(dim=1)[:, None] + other_MD.square().sum(dim=1) - 2 * one_ND @ other_MD.T
    return squared_NM.clamp_(min=0)
