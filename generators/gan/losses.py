"""What GANs minimise, apart from how often: logistic and hinge losses, R1, path length, lazy regularisation.

A penalty is returned per picture and unweighted; a trainer multiplies by its weight, and by the interval where it adds
the penalty only every so many steps (Karras et al. 2020, §B).

B batch, S style slots, W style width, H W pixels, 3 RGB.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def logistic_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of softplus(-real) plus mean of softplus(fake): the discriminator's side (Goodfellow et al. 2014, Eq. 1)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def logistic_generator(fake_logits: Tensor) -> Tensor:
    """Mean of softplus(-fake): the generator's side, non-saturating (Goodfellow et al. 2014, §3)."""
    return F.softplus(-fake_logits).mean()


def hinge_real(real_logits: Tensor, pictures: int = 1) -> Tensor:
    """Mean of max(0, 1 - real). pictures: see `hinge_discriminator`."""
    return F.relu(1 - real_logits).mean() / pictures


def hinge_fake(fake_logits: Tensor, pictures: int = 1) -> Tensor:
    """Mean of max(0, 1 + fake): the discriminator's side. pictures: see `hinge_discriminator`."""
    return F.relu(1 + fake_logits).mean() / pictures


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor, pictures: int = 1) -> Tensor:
    """Sum of both: the discriminator's loss (Lim & Ye 2017).

    pictures: divides once more. The released code divides these means by the size of a process's micro-batch, though
    not the guidance loss: with `pictures=len(batch)` both weigh against each other as there.
    """
    return hinge_real(real_logits, pictures) + hinge_fake(fake_logits, pictures)


def hinge_generator(fake_logits: Tensor, pictures: int = 1) -> Tensor:
    """Mean of -fake: the generator's loss. pictures: see `hinge_discriminator`."""
    return -fake_logits.mean() / pictures


def r1_penalty(logits: Tensor, image_B3HW: Tensor) -> Tensor:
    """(B,): squared norm of the discriminator's gradient at each real picture, differentiable.

    logits: (B,) or (B, N), made from `image_B3HW`, which requires a gradient. Augmentations between the two are part of
    what is differentiated. Weight gamma / 2. Mescheder et al. 2018, Eq. 9.
    """
    (gradient_B3HW,) = torch.autograd.grad(logits.sum(), image_B3HW, create_graph=True)
    return gradient_B3HW.square().sum(dim=(1, 2, 3))


def path_lengths(raw_B3HW: Tensor, w_BSW: Tensor, noise_B3HW: Tensor) -> Tensor:
    """(B,): length of J^T y, root mean square over slots, differentiable; J = d raw / d w, y the noise.

    A slot that the network never reads counts as one of gradient zero.
    """
    (gradient_BSW,) = torch.autograd.grad((raw_B3HW * noise_B3HW).sum(), w_BSW, create_graph=True)
    return gradient_BSW.square().sum(dim=2).mean(dim=1).sqrt()


class PathLength(nn.Module):
    """Penalty on path lengths that differ from their running mean (Karras et al. 2020, §3.2, Eq. 4).

    Usual weight 2, on half of the batch, every 4 steps. The running mean is a buffer, so that a run resumes with it.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, raw_B3HW: Tensor, w_BSW: Tensor, noise_B3HW: Tensor | None = None) -> Tensor:
        """penalty_B, and moves the running mean by `decay` towards this batch.

        noise_B3HW: N(0, 1) / sqrt(H W); drawn from torch's global generator if not given. As released, the mean that
        lengths are held against includes this batch, and a gradient flows through its part.
        """
        if noise_B3HW is None:
            noise_B3HW = torch.randn_like(raw_B3HW) / math.sqrt(raw_B3HW.shape[2] * raw_B3HW.shape[3])
        lengths_B = path_lengths(raw_B3HW, w_BSW, noise_B3HW)
        mean = self.mean.lerp(lengths_B.mean().to(self.mean.dtype), self.decay)
        self.mean.copy_(mean.detach())
        return (lengths_B - mean).square()


def lazy_optimizer_settings(lr: float, betas: tuple[float, float], interval: int) -> tuple[float, tuple[float, float]]:
    """Learning rate and Adam's betas where each `interval` steps bring one of regularisation on top.

    All for k / (k + 1) of a step, so that k + 1 of them move as far as k would (Karras et al. 2020, §B). An interval of
    0 means no such steps and changes nothing. Raises ValueError for a negative one.
    """
    if interval < 0:
        raise ValueError(f"the interval is {interval} steps, expected at least 0: correct it")
    share = interval / (interval + 1) if interval else 1.0
    return lr * share, (betas[0] ** share, betas[1] ** share)
