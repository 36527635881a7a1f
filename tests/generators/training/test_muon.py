"""Muon: steps along the orthogonal part of the gradient, as torch's own makes them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import star.generators.training.muon
from star.generators.training.muon import (
    COEFFICIENTS,
    STACKED,
    TOGETHER,
    Muon,
    _shared_out,
    matrix_groups,
    orthogonal_part,
)


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def gradient_of(weight: Tensor, seed: int) -> Tensor:
    return matrix(weight.shape[0], weight.shape[1], seed)


def moved(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradients: list[Tensor]) -> Tensor:
    """How far the steps for these gradients move a weight."""
    before = weight.detach().clone()
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach() - before


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    given = matrix(*shape)
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    found = orthogonal_part(given, iterations=5)
    values = left.T @ found @ right.T
    off = values - torch.diag(values.diagonal())
    assert off.abs().max() < 1e-3
    assert values.diagonal().min() > 0.6
    assert values.diagonal().max() < 1.3


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_steps_are_those_of_torch(shape: tuple[int, int]) -> None:
    gradients = [matrix(*shape, seed=seed) for seed in range(4)]
    ours, theirs = nn.Parameter(matrix(*shape, seed=9)), nn.Parameter(matrix(*shape, seed=9))
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95}
    own = moved(Muon([ours], iterations=5, **options), ours, gradients)
    known = torch.optim.Muon([theirs], nesterov=True, adjust_lr_fn="match_rms_adamw", **options)
    expected = moved(known, theirs, gradients)
    # Both iterate to singular values near 1 only, each with its own coefficients.
    assert torch.cosine_similarity(own.flatten(), expected.flatten(), dim=0) > 0.97
    assert own.norm() / expected.norm() == pytest.approx(1, abs=0.15)


def test_stacked_matrices_move_as_each_would_alone() -> None:
    parts = [nn.Parameter(matrix(8, 12, seed=seed)) for seed in range(3)]
    whole = nn.Parameter(torch.cat([part.detach() for part in parts]))
    gradients = [matrix(8, 12, seed=10 + seed) * 10**seed for seed in range(3)]
    alone = [moved(Muon([part], lr=0.1), part, [gradient]) for part, gradient in zip(parts, gradients, strict=True)]
    together = moved(Muon([{"params": [whole], "stacked": 3}], lr=0.1), whole, [torch.cat(gradients)])
    torch.testing.assert_close(together, torch.cat(alone))


def test_matrices_of_one_shape_move_together_as_each_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(8, 12), (12, 8), (8, 12), (24, 12), (8, 8), (12, 8)]
    for most in (2**26, 2 * 8 * 12, 1):
        monkeypatch.setitem(TOGETHER, "cpu", most)
        calls: list[tuple[int, ...]] = []

        def counted(stack: Tensor, iterations: int, half: bool, calls: list[tuple[int, ...]] = calls) -> Tensor:
            calls.append(tuple(stack.shape))
            return orthogonal_part(stack, iterations, half)

        monkeypatch.setattr(star.generators.training.muon, "orthogonal_part", counted)
        weights = [nn.Parameter(matrix(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
        twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
        optimizer = Muon(
            [{"params": [weights[3]], "stacked": 2}, {"params": [*weights[:3], *weights[4:]], "weight_decay": 0.1}],
            lr=0.1,
        )
        for step in range(3):
            for number, weight in enumerate(weights):
                weight.grad = gradient_of(weight, 100 * step + number) * 10**number
            optimizer.step()
        assert {2**26: (4, 8, 12), 2 * 8 * 12: (2, 8, 12), 1: (1, 8, 12)}[most] in calls
        for number, twin in enumerate(twins):
            group: dict[str, Any] = (
                {"params": [twin], "stacked": 2} if number == 3 else {"params": [twin], "weight_decay": 0.1}
            )
            alone = Muon([group], lr=0.1)
            for step in range(3):
                twin.grad = gradient_of(twin, 100 * step + number) * 10**number
                alone.step()
            torch.testing.assert_close(weights[number], twin, rtol=1e-4, atol=1e-6)


def test_the_groups_hold_every_matrix_of_linear_layers_once() -> None:
    layers = nn.ModuleDict({"query_key_value": nn.Linear(4, 12), "up": nn.Linear(4, 8), "codes": nn.Embedding(5, 4)})
    groups = matrix_groups(layers, 0.1)
    assert [(group["stacked"], len(group["params"]), group["weight_decay"]) for group in groups] == [
        (1, 1, 0.1),
        (3, 1, 0.1),
    ]
    layers["up"].requires_grad_(False)
    assert [group["stacked"] for group in matrix_groups(layers, 0.1)] == [STACKED["query_key_value"]]


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Muon moves matrices, got a weight of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="2 stacked"):
        Muon([{"params": [nn.Parameter(torch.zeros(3, 3))], "stacked": 2}])
    with pytest.raises(ValueError, match="iterations is 6, expected 1 to 5"):
        Muon([nn.Parameter(torch.zeros(3, 3))], iterations=len(COEFFICIENTS) + 1)
    with pytest.raises(RuntimeError, match="has no gradient"):
        Muon([nn.Parameter(torch.zeros(3, 3))]).step()


def test_processes_get_like_shares() -> None:
    costs = [9, 1, 1, 1, 9, 1, 9, 9]
    owners = _shared_out(costs, 2)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == process) for process in range(2)]
    assert loads == [20, 20]
    assert _shared_out(costs, 1) == [0] * 8


def test_half_precision_gives_nearly_the_same_directions() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(48, 96), torch.randn(48, 96)
    starts = [(lower, nn.Parameter(weight.clone())) for lower in (False, True)]
    exact, half = (moved(Muon([start], lr=0.1, half=lower), start, [gradient]) for lower, start in starts)
    assert not torch.equal(exact, half)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), half.flatten(), dim=0) > 0.999
