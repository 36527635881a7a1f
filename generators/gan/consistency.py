"""Balanced consistency: a discriminator is to say the same of a picture and of an augmented copy (Zhao et al. 2021,
"Improved Consistency Regularization for GANs", §3.1), as StyleNAT is trained.

    loss = consistency_loss(discriminate, [(real_B3HW, real_logits), (fake_B3HW, fake_logits)])

B batch, H W pixels, 3 RGB.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from star.generators.gan.augment.diffaugment import AugmentDraws, color, cutout, translation

HOLE = 0.5  # side of the hole as a share of the picture's


def augment(raw_B3HW: Tensor, mirrored_B: Tensor, draws: AugmentDraws) -> Tensor:
    """Mirrored or not, moved, recoloured, with a hole of half the side; in any range, as released."""
    raw_B3HW = torch.where(mirrored_B[:, None, None, None], raw_B3HW.flip(3), raw_B3HW)
    return cutout(color(translation(raw_B3HW, draws), draws), draws, HOLE)


def consistency_loss(discriminate: Callable[[Tensor], Tensor], seen: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over batches of the mean squared difference that an augmentation makes; weight 10 as released.

    discriminate: pictures to logits. seen: pictures with their logits; the gradient goes through both sides.
    Augmentations are drawn from torch's global generator.
    """
    losses = []
    for raw_B3HW, logits in seen:
        mirrored_B = torch.rand(len(raw_B3HW), device=raw_B3HW.device) < 0.5
        losses.append(F.mse_loss(discriminate(augment(raw_B3HW, mirrored_B, AugmentDraws.of(raw_B3HW, HOLE))), logits))
    return torch.stack(losses).sum()
