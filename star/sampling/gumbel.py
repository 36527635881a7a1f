"""The Gumbel noise behind a picture of codes, and pictures drawn with noise in between.

A code that is drawn from p is the argmax of log p + G with standard Gumbel noise G (Maddison et al. 2014). So a picture
has noise that makes it, one number for each token and code. To go from one picture to another, that noise is moved,
not the uniform numbers that drew it: these walk through the codebook in the order of its numbers, which means nothing,
while noise that moves a little leaves most tokens their code.

Which noise made a picture that was drawn by a uniform number? Given the code, noise is drawn from its posterior, top
down (Maddison et al. 2014, §3; Oberst & Sontag 2019): the sum of the drawn code is the largest, Gumbel(0), the others
are cut off below it. Over all pictures that is Gumbel noise again, and it leads to the very code. As normal scores, one
for one, such noises are joined by arcs (`slerp`), which keep their distribution.

B pictures, l tokens of one scale, n choices of one scale (as many, or one for each bit of each token), V codebook, or 2
of a bit, K scales, k scale index.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from star.generators.interpolation import slerp
from star.model.heads import BitHead, TokenHead
from star.sampling.sampler import SampleRng


def choices(kept_1l: Tensor, head: TokenHead) -> Tensor:
    """The logits of one picture's tokens as n choices among V: a code of V for each token, or 0 or 1 for each bit."""
    if isinstance(head, BitHead):
        return torch.stack((F.logsigmoid(-kept_1l), F.logsigmoid(kept_1l)), dim=-1).view(-1, 2)
    return kept_1l[0]


def posterior(kept_nV: Tensor, codes_n: Tensor, seed: int, k: int) -> Tensor:
    """Gumbel noise (n, V), float64 on the CPU, under which the codes win; a function of logits, codes, seed and scale.

    kept_nV: the logits that a scale was drawn from, -inf for codes that were out of the question.
    """
    digest = hashlib.sha256(f"{seed}/{k}/gumbel".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    length, vocabulary = kept_nV.shape
    waits_nV = torch.empty(length, vocabulary + 1, dtype=torch.float64).exponential_(generator=generator)
    gumbel_nV, largest_n1 = -waits_nV[:, 1:].log(), -waits_nV[:, :1].log()
    log_p_nV = kept_nV.double().cpu().log_softmax(dim=-1)
    below_nV = -torch.logaddexp(-largest_n1, -(gumbel_nV + log_p_nV))
    noise_nV = torch.where(log_p_nV.isneginf(), gumbel_nV, below_nV - log_p_nV)
    codes_n1 = codes_n.cpu().long()[:, None]
    return noise_nV.scatter(1, codes_n1, largest_n1 - log_p_nV.gather(1, codes_n1))


def to_normal(gumbel: Tensor) -> Tensor:
    """Gumbel noise as normal scores of the same rank, float64; the upper tail by its own probability."""
    log_below = -(-gumbel).exp()
    upper = -torch.expm1(log_below)
    return torch.where(gumbel < 0.37, torch.special.ndtri(log_below.exp()), -torch.special.ndtri(upper))


def to_gumbel(score: Tensor) -> Tensor:
    """The inverse of `to_normal`."""
    return -(-torch.special.log_ndtr(score)).log()


def between(start: Sequence[Tensor], end: Sequence[Tensor], t: float) -> list[Tensor]:
    """Noise of every scale (n, V) at t in 0..1 of the way between that of two pictures."""
    return [
        to_gumbel(slerp(to_normal(a).flatten(), to_normal(b).flatten(), t)).view_as(a)
        for a, b in zip(start, end, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class GumbelRng(SampleRng):
    """The randomness of one picture as Gumbel noise: K tensors (n, V), see `choices`.

    Where a scale is drawn in several steps the uniform numbers of the seed serve, as without noise.
    """

    noise: Sequence[Tensor] = ()

    def pick(self, kept_BlV: Tensor, k: int, step: int | None = None) -> Tensor:
        """Tokens (1, l, ...) of scale k."""
        if step is not None or self.options.top_k == 1:
            return SampleRng.pick(self, kept_BlV, k, step)
        log_p_nV = choices(kept_BlV, self.head).double().cpu().log_softmax(dim=-1)
        drawn_n = (log_p_nV + self.noise[k]).argmax(dim=-1).to(kept_BlV.device)
        bits = isinstance(self.head, BitHead)
        return drawn_n.to(torch.uint8).view(kept_BlV.shape) if bits else drawn_n.view(kept_BlV.shape[:-1])
