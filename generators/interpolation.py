"""Ways from one vector to another that keep to the sphere: between latents, conditions, noises (Shoemake 1985)."""

import torch
from torch import Tensor

PARALLEL = 1e-4  # radians, below which two vectors have no arc between them worth following


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """The vector at t in 0..1 on the arc from one to the other, over the last axis; its length goes linearly.

    At 0 and 1 exactly the ends, to the bit. Vectors that are parallel, opposite or zero have no arc of their own:
    between these it is a straight line.
    """
    if t <= 0 or t >= 1:
        return start if t <= 0 else end
    a, b = start.double(), end.double()
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp(min=1e-12), b / length_b.clamp(min=1e-12)
    angle = (unit_a * unit_b).sum(dim=-1, keepdim=True).clamp(-1, 1).arccos()
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * unit_a + (t * angle).sin() * unit_b) / sine.clamp(min=1e-12)
    curved = arc * ((1 - t) * length_a + t * length_b)
    straight = (1 - t) * a + t * b
    has_arc = (sine > PARALLEL) & (length_a > 0) & (length_b > 0)
    return torch.where(has_arc, curved, straight).to(start.dtype)


def steps(count: int) -> list[float]:
    """`count` numbers from 0 to 1, both included, equally far apart; of a single one, 0."""
    return [i / max(count - 1, 1) for i in range(count)]
