"""Retrieval: of all real pictures of a style, is the one that a prompt belongs to the nearest to the generated one?

The measure for models that learn a known set of pictures: 1 of n by chance, and a blot in the right colours finds no
more than a few. By any extractor's features; `Thumbnail` needs no network, so nothing that was trained decides.
The style is the one that the benchmark names, else what a prompt says behind its last comma; prompts without either are
all of one style.

N pictures, D feature width, B batch, 3 RGB, S pixels a side.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from star.data.images import thumbnail_features
from star.eval.metrics.features import Features, subset
from star.eval.metrics.metric import Inputs
from star.generators.pretrained import digest

SIDE = 16  # of a thumbnail, pixels
BLOCK = 256  # generated pictures compared at once


class Thumbnail:
    """Colours of a 16 x 16 thumbnail and their differences to the right and downwards, an extractor of
    star.eval.extractors.extractor.

    uint8 (B, 3, H, W) -> float32 (B, 2208): means over equal areas in 0..1, and gradients of these.
    """

    name = "thumbnail"
    width = 3 * SIDE * SIDE + 2 * 3 * SIDE * (SIDE - 1)
    resize = f"area {SIDE}x{SIDE}"

    @property
    def digest(self) -> str:
        return digest({"resize": self.resize, "features": "colours and gradients"}, {})

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        return thumbnail_features(pixels_B3HW, SIDE).cpu()


def style_of(prompt: str) -> str:
    """What a prompt says behind its last comma, "" if it has none."""
    return prompt.rpartition(",")[2].strip() if "," in prompt else ""


def styles_of(inputs: Inputs) -> list[str]:
    """The style of each picture: the benchmark's own, else its prompt's."""
    own = inputs.styles or [""] * len(inputs.prompts)
    return [style or style_of(prompt) for style, prompt in zip(own, inputs.prompts, strict=True)]


def rivals(styles: Sequence[str]) -> Tensor:
    """How many other pictures each competes with, those of its style; int64 (N,)."""
    counts = Counter(styles)
    return torch.tensor([counts[style] - 1 for style in styles], dtype=torch.int64)


def among_nearest(count: int) -> Callable[[Inputs], Tensor | None]:
    """The function of a metric: 1 where the own real picture is among the `count` nearest of its style, else 0, (N,).

    NaN where the style has no more than `count`, of which it would be one in any case; None where all are NaN.
    """

    def function(inputs: Inputs) -> Tensor | None:
        counted_N = rivals(styles_of(inputs)) >= count
        if not bool(counted_N.any()):
            return None
        return (inputs.once(_ranks) < count).float().where(counted_N, torch.nan)

    return function


def _ranks(inputs: Inputs) -> Tensor:
    return retrieval_ranks(inputs.generated, inputs.references, styles_of(inputs))


def retrieval_ranks(generated: Features, real: Features, styles: Sequence[str]) -> Tensor:
    """How many real pictures of the same style are nearer to a generated one than its own, int64 (N,); 0 is the best.

    generated, real: (N, D), rows of the same items; Euclidean distance. Ties count as nearer, half of them rounded
    down, so that features which tell nothing reach chance and no more.
    """
    ranks_N = torch.zeros(len(styles), dtype=torch.int64)
    alike: dict[str, list[int]] = {}
    for row, style in enumerate(styles):
        alike.setdefault(style, []).append(row)
    for rows in alike.values():
        real_nD = subset(real, np.array(rows))[:].double()
        for first in range(0, len(rows), BLOCK):
            own = rows[first : first + BLOCK]
            distance_bn = torch.cdist(
                subset(generated, np.array(own))[:].double(), real_nD, compute_mode="donot_use_mm_for_euclid_dist"
            )
            mine_b1 = distance_bn.diagonal(first).unsqueeze(1)
            nearer_b, tied_b = (distance_bn < mine_b1).sum(dim=1), (distance_bn == mine_b1).sum(dim=1) - 1
            ranks_N[own] = nearer_b + tied_b // 2
    return ranks_N
