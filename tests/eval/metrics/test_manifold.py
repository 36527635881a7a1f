"""Precision, recall, density, coverage: by hand, by loops, by expectation; and which of them points which way."""

import math

import pytest
import torch
from torch import Tensor

from star.eval.metrics import manifold
from star.eval.metrics.manifold import precision_recall_density_coverage


def rows(count: int, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def measures(real: Tensor, drawn: Tensor, **options: int) -> dict[str, float]:
    values = precision_recall_density_coverage(real, drawn, **options).values
    return {name: float(value.mean()) for name, value in values.items()}


def by_loops(real: Tensor, drawn: Tensor, k: int, k_density: int) -> dict[str, float]:
    def radii(points: Tensor, neighbours: int) -> list[float]:
        return [
            sorted(float((p - q).norm()) for j, q in enumerate(points) if j != i)[neighbours - 1]
            for i, p in enumerate(points)
        ]

    def inside(points: Tensor, balls: Tensor, reach: list[float]) -> Tensor:
        return torch.tensor([[float((p - b).norm()) <= r for b, r in zip(balls, reach, strict=True)] for p in points])

    wide = inside(drawn, real, radii(real, k_density)).double()
    return {
        "precision": float(inside(drawn, real, radii(real, k)).any(dim=1).double().mean()),
        "recall": float(inside(real, drawn, radii(drawn, k)).any(dim=1).double().mean()),
        "density": float(wide.sum()) / k_density / len(drawn),
        "coverage": float(wide.any(dim=0).double().mean()),
    }


def test_by_hand_on_a_line() -> None:
    """Nearest neighbours of the real 0, 1, 3 lie 1, 1 and 2 away; those of the drawn 0.5, 6, 9 lie 5.5, 3 and 3."""
    real, drawn = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [6.0], [9.0]])
    values = precision_recall_density_coverage(real, drawn, k=1, k_density=1).values
    assert values["precision"].tolist() == [1, 0, 0]
    assert values["recall"].tolist() == [1, 1, 1]
    assert values["density"].tolist() == [2, 0, 0]
    assert values["coverage"].tolist() == [1, 1, 0]


def test_the_loops_of_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = rows(40), rows(31, seed=1) * 1.3 + 0.4
    expected = by_loops(real, drawn, 3, 5)
    assert measures(real, drawn) == pytest.approx(expected)
    assert all(0 < value < 1 for value in expected.values())
    monkeypatch.setattr(manifold, "ROWS", 7)  # block by block
    assert measures(real, drawn) == pytest.approx(expected)


def test_a_set_and_itself() -> None:
    real = rows(50)
    found = measures(real, real)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    # each row lies in its own ball, and on the average in those of k others
    assert found["density"] == pytest.approx(6 / 5)


def test_sets_that_never_meet() -> None:
    assert measures(rows(50), rows(50, seed=1) + 100) == dict.fromkeys(
        ("precision", "recall", "density", "coverage"), 0
    )


def test_precision_is_of_the_drawn_and_recall_of_the_real() -> None:
    """Swapping the two is a known mistake: few modes drawn well are precise, and recall little."""
    real = torch.cat([rows(60), rows(60, seed=1) + 50])
    drawn = rows(120, seed=2) * 0.5
    found, swapped = measures(real, drawn), measures(drawn, real)
    assert found["precision"] > 0.95
    assert found["recall"] < 0.6
    assert found["coverage"] < 0.6
    assert (swapped["precision"], swapped["recall"]) == (found["recall"], found["precision"])


def test_expectations_for_samples_of_one_distribution() -> None:
    """Naeem et al. 2020, §3.3: density 1; coverage 1 less the product of (M - i) / (M + N - i) over i = 1..k."""
    count, k = 60, 5
    found = [measures(rows(count, seed=2 * seed), rows(count, seed=2 * seed + 1)) for seed in range(30)]
    missed = math.prod((count - i) / (2 * count - i) for i in range(1, k + 1))
    assert sum(one["density"] for one in found) / 30 == pytest.approx(1, abs=0.05)
    assert sum(one["coverage"] for one in found) / 30 == pytest.approx(1 - missed, abs=0.02)


def test_far_from_the_origin_nothing_changes() -> None:
    """Distances as |x|^2 + |y|^2 - 2 x y in float32 would be rounding alone there."""
    real, drawn = rows(60), rows(60, seed=1)
    naive = (
        (drawn + 3000).square().sum(1)[:, None] + (real + 3000).square().sum(1) - 2 * (drawn + 3000) @ (real + 3000).T
    )
    assert (naive - torch.cdist(drawn, real).square()).abs().max() > 1
    assert measures(real + 3000, drawn + 3000) == pytest.approx(measures(real, drawn), abs=0.02)


def test_more_rows_than_neighbours_are_needed() -> None:
    with pytest.raises(ValueError, match="more rows"):
        precision_recall_density_coverage(rows(5), rows(20))
    with pytest.raises(ValueError, match="more rows"):
        precision_recall_density_coverage(rows(20), rows(20), k=0)


def test_a_ball_holds_what_lies_on_its_edge() -> None:
    """Real 0 and 1 have balls of radius 1; a drawn 2 lies on the edge of one, a drawn -1 on that of the other."""
    real, drawn = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-1.0]])
    values = precision_recall_density_coverage(real, drawn, k=1, k_density=1).values
    assert values["precision"].tolist() == [1, 1]
    assert values["density"].tolist() == [1, 1]
    assert values["coverage"].tolist() == [1, 1]
    assert precision_recall_density_coverage(drawn, real, k=1, k_density=1).values["recall"].tolist() == [1, 1]
    touching = precision_recall_density_coverage(
        torch.tensor([[3.0], [9.0]]), torch.tensor([[0.0], [-3.0]]), k=1, k_density=1
    )
    assert touching.values["recall"].tolist() == [1, 0]


def test_the_neighbours_of_the_papers_are_the_default() -> None:
    real, drawn = rows(30), rows(30, seed=1) + 0.5
    assert measures(real, drawn) == measures(real, drawn, k=3, k_density=5)
    assert measures(real, drawn) != measures(real, drawn, k=4, k_density=5)
    assert measures(real, drawn) != measures(real, drawn, k=3, k_density=6)


def test_there_are_more_rows_than_neighbours() -> None:
    for count, k, k_density in ((5, 3, 5), (3, 3, 2), (5, 0, 3), (5, 3, 0)):
        with pytest.raises(ValueError, match="expected more rows than neighbours"):
            precision_recall_density_coverage(rows(count), rows(9), k=k, k_density=k_density)
        with pytest.raises(ValueError, match=f"9 real and {count} generated rows given with k {k} and {k_density}"):
            precision_recall_density_coverage(rows(9), rows(count), k=k, k_density=k_density)
    assert 0 <= measures(rows(6), rows(6, seed=1))["precision"] <= 1
