"""Muon: matrices of hidden layers moved along the orthogonal part of their averaged gradient.

    optimizer = Muon(matrix_groups(model.blocks, weight_decay), lr=2.5e-3)       # all else belongs to AdamW

m rows, n columns of a matrix. Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks"), with
steps as large as AdamW's (Liu et al. 2025, §2.2) and coefficients tuned for each iteration (You 2025). torch.optim.Muon
always computes in bfloat16, which a CPU without units for it needs half a minute a step for (EXPERIMENTS.md), and every
process of a run computes all of it; here it is float32 on a CPU unless `half` is asked for, the processes share the
matrices among them, and each computes on a GPU its matrices of one shape in one product.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# a x + (b xx' + c (xx')^2) x, one row for each iteration: singular values come near 1, the largest first.
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
# Numbers of the matrices that go through the iterations together. A GPU is for few large kernels; one CPU core took
# 1.06 times as long with them as with one matrix after the other (width 384, depth 6).
TOGETHER = {"cuda": 2**26, "cpu": 1}
# Layers whose weight holds several matrices one above the other, each to be orthogonal by itself.
STACKED = {"query_key_value": 3, "key_value": 2, "modulation": 6}


class Muon(torch.optim.Optimizer):
    """Matrices only. A group may have `stacked`, so many matrices above one another in each of its weights."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 4,
        half: bool = False,
    ) -> None:
        """iterations: 1 to 5; with more, small singular values get nearer to 1. half: bfloat16 on a CPU, too, for one
        that multiplies in it. Raises ValueError for other shapes."""
        if not 1 <= iterations <= len(COEFFICIENTS):
            raise ValueError(f"iterations is {iterations}, expected 1 to {len(COEFFICIENTS)}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "stacked": 1})
        self.iterations, self.half = iterations, half
        weights = [(weight, group["stacked"]) for group in self.param_groups for weight in group["params"]]
        for weight, stacked in weights:
            if weight.ndim != 2 or len(weight) % stacked:
                raise ValueError(f"Muon moves matrices, got a weight of shape {tuple(weight.shape)}, {stacked} stacked")
        self._owners = _shared_out([_cost(weight, stacked) for weight, stacked in weights], _processes()[1])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. The gradients must be the same in every process, and every weight must have one."""
        rank, world = _processes()
        entries = [(weight, group) for group in self.param_groups for weight in group["params"]]
        if missing := [weight for weight, _ in entries if weight.grad is None]:
            raise RuntimeError(f"a weight of shape {tuple(missing[0].shape)} has no gradient: call backward first")
        mine = []
        for (weight, group), owner in zip(entries, self._owners, strict=True):
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            average = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            if owner == rank:
                ahead = weight.grad.lerp(average, group["momentum"])  # Nesterov's
                mine.append(list(ahead.chunk(group["stacked"])))
        directions = iter(self._directions(mine))
        for (weight, group), owner in zip(entries, self._owners, strict=True):
            step = next(directions).to(weight.dtype) if owner == rank else torch.empty_like(weight)
            if world > 1:
                dist.broadcast(step, owner)
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])

    def _directions(self, weights: list[list[Tensor]]) -> list[Tensor]:
        """One for each weight, given its matrices, as large as a step of AdamW's (root mean square near 0.2).

        Matrices of one shape, lying or standing, go through the iterations together, as many as TOGETHER allows.
        """
        flat = [matrix for weight in weights for matrix in weight]
        by_shape: dict[tuple[int, int], list[int]] = {}
        for number, matrix in enumerate(flat):
            by_shape.setdefault((min(matrix.shape), max(matrix.shape)), []).append(number)
        found: dict[int, Tensor] = {}
        for (rows, columns), numbers in by_shape.items():
            most = TOGETHER.get(flat[numbers[0]].device.type, TOGETHER["cuda"])
            size = max(1, most // (rows * columns))
            for start in range(0, len(numbers), size):
                chosen = numbers[start : start + size]
                lying = torch.stack([flat[i] if len(flat[i]) == rows else flat[i].mT for i in chosen])
                parts = orthogonal_part(lying, self.iterations, self.half) * (0.2 * columns**0.5)
                for i, part in zip(chosen, parts, strict=True):
                    found[i] = part if len(flat[i]) == rows else part.mT
        numbers_of = iter(range(len(flat)))
        return [torch.cat([found[next(numbers_of)] for _ in weight]) for weight in weights]


def orthogonal_part(matrix: Tensor, iterations: int = 5, half: bool = False) -> Tensor:
    """U V' of matrix = U S V', nearly, of one (m, n) or several (..., m, n), by Newton-Schulz iterations.

    Computed and returned in bfloat16 on a GPU, or with `half`, else in float32.
    """
    x = matrix.bfloat16() if half or matrix.device.type == "cuda" else matrix.float()
    standing = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if standing else x.contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in COEFFICIENTS[:iterations]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if standing else x


def matrix_groups(layers: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The linear layers' weights that are trained, in groups by how many matrices are stacked in each."""
    found: dict[int, list[Tensor]] = {}
    for name, layer in layers.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            found.setdefault(STACKED.get(name.rpartition(".")[2], 1), []).append(layer.weight)
    return [{"params": found[n], "stacked": n, "weight_decay": weight_decay} for n in sorted(found)]


def _cost(weight: Tensor, stacked: int) -> int:
    rows, columns = len(weight) // stacked, weight.shape[1]
    return stacked * min(rows, columns) ** 2 * (2 * max(rows, columns) + min(rows, columns))


def _shared_out(costs: list[int], processes: int) -> list[int]:
    """The process that does each task: the dearest first, always to the one with least to do."""
    load, owners = [0] * processes, [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[task] = load.index(min(load))
        load[owners[task]] += costs[task]
    return owners


def _processes() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
