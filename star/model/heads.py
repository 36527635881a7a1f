"""What the numbers of the last layer mean: one classifier of codes, or one of every bit (Han et al. 2024).

B batch, l tokens of one scale or of several, V codebook, D bits of a token.

The last layer itself is a plain linear layer of the transformer, with `tokens.outputs` numbers for each token. A head
says what they cost in training, how they are filtered, and how tokens are drawn from them; it has no parameters.
Guidance and temperature need none of it: they do the same to log-odds of bits as to logits of codes.

| kind of token       | logits    | loss of a token           | top_k                   | top_p                        |
|---------------------|-----------|---------------------------|-------------------------|------------------------------|
| `Codes`, CodeHead   | (B, l, V) | nats                      | the likeliest codes     | the likeliest codes          |
| `Bits`, BitHead     | (B, l, D) | nats per bit, their mean  | 1: the likeliest bits;  | per bit: one as sure as p is |
|                     |           |                           | others are refused      | not drawn                    |
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.model.losses import token_losses
from star.tokenizer.tokens import Bits, Codes, TokenKind

if TYPE_CHECKING:
    from star.generators.protocol import SampleOptions


class TokenHead(Protocol):
    """What training, sampling and masked decoding ask of a head."""

    def losses(self, logits_Bl: Tensor, codes_Bl: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of every token in nats per unit of its kind, float32 (B, l)."""
        ...

    def check(self, options: "SampleOptions") -> None:
        """Raises InputError for options that mean nothing here."""
        ...

    def filtered(self, logits_Bl: Tensor, top_k: int, top_p: float | Tensor) -> Tensor:
        """Logits with infinities where top-k, then top-p, leave no choice.

        top_p: as a tensor of no dimensions it is between 0 and 1, and nobody waits for its value.
        """
        ...

    def likeliest(self, logits_Bl: Tensor) -> Tensor:
        """The likeliest tokens (B, l, ...)."""
        ...

    def draws(self, logits_Bl: Tensor) -> int:
        """Uniform numbers that drawing one token takes."""
        ...

    def pick(self, logits_Bl: Tensor, uniforms_Bl: Tensor) -> Tensor:
        """Tokens (B, l, ...) drawn by uniforms (B, l * draws), float64 in [0, 1)."""
        ...

    def probability(self, logits_Bl: Tensor, codes_Bl: Tensor) -> Tensor:
        """Of whole tokens, (B, l)."""
        ...


class CodeHead:
    """Logits (B, l, V) of one classifier."""

    def losses(self, logits_Bl: Tensor, codes_Bl: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Nats of every token."""
        return token_losses(logits_Bl, codes_Bl, label_smoothing)

    def check(self, options: "SampleOptions") -> None:
        """Every option means something."""

    def filtered(self, logits_Bl: Tensor, top_k: int, top_p: float | Tensor) -> Tensor:
        """See `filter_logits`."""
        return filter_logits(logits_Bl, top_k, top_p)

    def likeliest(self, logits_Bl: Tensor) -> Tensor:
        """int64 (B, l)."""
        return logits_Bl.argmax(dim=-1)

    def draws(self, logits_Bl: Tensor) -> int:
        """One number."""
        return 1

    def pick(self, logits_Bl: Tensor, uniforms_Bl: Tensor) -> Tensor:
        """See `pick`."""
        return pick(logits_Bl, uniforms_Bl)

    def probability(self, logits_Bl: Tensor, codes_Bl: Tensor) -> Tensor:
        """Of the codes."""
        return logits_Bl.softmax(dim=-1).gather(-1, codes_Bl.unsqueeze(-1)).squeeze(-1)


class BitHead:
    """Log-odds (B, l, D) of every bit being 1: D classifiers of two classes, instead of one of 2^D."""

    def losses(self, logits_Bl: Tensor, codes_Bl: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Nats per bit: the mean over a token's bits."""
        wanted = codes_Bl.float() * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits_Bl.float(), wanted, reduction="none").mean(dim=-1)

    def check(self, options: "SampleOptions") -> None:
        """Raises InputError for a top_k above 1: a bit has two values, and both stay."""
        if options.top_k > 1:
            raise InputError(
                f"top_k is {options.top_k}, but this model draws single bits, expected 0, or 1 for the likeliest: "
                "use top_p, which counts for each bit, or temperature"
            )

    def filtered(self, logits_Bl: Tensor, top_k: int, top_p: float | Tensor) -> Tensor:
        """A bit takes its likelier value where the other one has at most 1 - p, or with top_k 1; 0 and 1 are off."""
        if top_k == 1:
            sure = torch.ones_like(logits_Bl, dtype=torch.bool)
        elif is_on(top_p):
            sure = (-logits_Bl.abs()).sigmoid() <= 1 - top_p
        else:
            return logits_Bl
        return torch.where(sure, torch.where(logits_Bl > 0, torch.inf, -torch.inf), logits_Bl)

    def likeliest(self, logits_Bl: Tensor) -> Tensor:
        """uint8 (B, l, D)."""
        return (logits_Bl > 0).to(torch.uint8)

    def draws(self, logits_Bl: Tensor) -> int:
        """One number for each bit."""
        return logits_Bl.shape[-1]

    def pick(self, logits_Bl: Tensor, uniforms_Bl: Tensor) -> Tensor:
        """uint8 (B, l, D): 1 where a uniform lies below the bit's chance, computed in float64."""
        uniforms = uniforms_Bl.to(logits_Bl.device, non_blocking=True).view(logits_Bl.shape)
        return (uniforms < logits_Bl.double().sigmoid()).to(torch.uint8)

    def probability(self, logits_Bl: Tensor, codes_Bl: Tensor) -> Tensor:
        """Of all bits together."""
        return (logits_Bl * (2 * codes_Bl.to(logits_Bl.dtype) - 1)).sigmoid().prod(dim=-1)


CODES = CodeHead()
HEADS: dict[type[TokenKind], TokenHead] = {Codes: CODES, Bits: BitHead()}


def head_of(tokens: TokenKind) -> TokenHead:
    """The head of a kind of token."""
    return HEADS[type(tokens)]


def is_on(top_p: float | Tensor) -> bool:
    """Whether top-p removes anything: not at 0, nor at 1."""
    return isinstance(top_p, Tensor) or 0 < top_p < 1


def filter_logits(logits_BlV: Tensor, top_k: int = 0, top_p: float | Tensor = 0.0) -> Tensor:
    """-inf outside the top-k, then outside the top-p of what is left.

    top_k: the k-th largest value and all that equal or exceed it stay; 0 is off. top_p: the least likely are removed
    while their summed probability is <= 1 - p; the likeliest always stays; 0 or 1 is off. Of equal logits at the border
    those of lower codes go first.
    """
    if 0 < top_k < logits_BlV.shape[-1]:
        likeliest_Blk = logits_BlV.topk(top_k, dim=-1).values
        smallest_Bl1 = likeliest_Blk[..., -1:]
        if is_on(top_p) and not sorts_by_numpy(logits_BlV):
            return _nucleus_of_likeliest(logits_BlV, likeliest_Blk, 1 - top_p)
        logits_BlV = logits_BlV.masked_fill(logits_BlV < smallest_Bl1, float("-inf"))
    if is_on(top_p):
        ascending = _ascending(logits_BlV)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed[..., -1].fill_(False)
        count_Bl1 = removed.sum(dim=-1, keepdim=True)
        border_Bl1 = ascending.gather(-1, count_Bl1)  # the least likely that stays, which may have equals that do not
        below, equal = logits_BlV < border_Bl1, logits_BlV == border_Bl1
        left_Bl1 = count_Bl1 - below.sum(dim=-1, keepdim=True)
        logits_BlV = logits_BlV.masked_fill(below | (equal & (equal.cumsum(dim=-1) <= left_Bl1)), float("-inf"))
    return logits_BlV


def _nucleus_of_likeliest(logits_BlV: Tensor, likeliest_Blk: Tensor, rest: float | Tensor) -> Tensor:
    """`filter_logits` of both at once, which puts only k values in order.

    likeliest_Blk: descending. rest: 1 - p. Codes that equal the k-th stay, too, so that what is left are k values and m
    more that equal the least of them. The order of all is: those m, then the k from the least to the largest.
    """
    least_Bl1, largest_Bl1 = likeliest_Blk[..., -1:], likeliest_Blk[..., :1]
    above, equal = logits_BlV > least_Bl1, logits_BlV == least_Bl1
    kept = likeliest_Blk.shape[-1]
    more_Bl1 = equal.sum(dim=-1, keepdim=True) + above.sum(dim=-1, keepdim=True) - kept  # m
    weight_Blk = (likeliest_Blk - largest_Bl1).exp().flip(-1)  # ascending
    sums_Blk = more_Bl1 * weight_Blk[..., :1] + weight_Blk.cumsum(dim=-1)
    room_Bl1 = rest * sums_Blk[..., -1:]
    among_more_Bl1 = (room_Bl1 / weight_Blk[..., :1]).floor().clamp(max=more_Bl1).to(more_Bl1.dtype)
    removed_Blk = sums_Blk <= room_Bl1
    removed_Blk[..., -1].fill_(False)
    among_k_Bl1 = removed_Blk.sum(dim=-1, keepdim=True)
    border_Bl1 = likeliest_Blk.gather(-1, kept - 1 - among_k_Bl1)  # the least likely that stays
    count_Bl1 = torch.where(among_k_Bl1 > 0, more_Bl1, among_more_Bl1) + among_k_Bl1
    below = logits_BlV < border_Bl1
    equal = logits_BlV == border_Bl1
    left_Bl1 = count_Bl1 - (below & (logits_BlV >= least_Bl1)).sum(dim=-1, keepdim=True)
    return logits_BlV.masked_fill(below | (equal & (equal.cumsum(dim=-1) <= left_Bl1)), float("-inf"))


def sorts_by_numpy(logits_BlV: Tensor) -> bool:
    """On a CPU: numpy sorts 30 times as fast as torch where there are wide units, and numbers stay as they were."""
    return logits_BlV.device.type == "cpu" and not logits_BlV.requires_grad


def _ascending(logits_BlV: Tensor) -> Tensor:
    """The logits in order."""
    if sorts_by_numpy(logits_BlV):
        return torch.from_numpy(np.sort(logits_BlV.numpy(), axis=-1))
    return logits_BlV.sort(dim=-1).values


def pick(logits_BlV: Tensor, uniforms_Bl: Tensor) -> Tensor:
    """Codes (B, l) where the cumulative distribution passes the uniforms; summed in float64.

    On a GPU, where float64 may be slow, the chances that are summed are float32. Sums of float32 would not do: added up
    in parts, as a GPU does, they can rise where a code has no chance at all.
    """
    kind = torch.float64 if logits_BlV.device.type == "cpu" else torch.float32
    cumulative = logits_BlV.softmax(dim=-1, dtype=kind).cumsum(dim=-1, dtype=torch.float64)
    # u * total rather than u: rounding may leave the total a little off 1, and no code of probability 0 can be hit.
    level = uniforms_Bl.to(cumulative.device, non_blocking=True).unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, level, right=True).squeeze(-1)
