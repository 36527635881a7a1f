"""What a token is: one code of a codebook, or a row of bits. Its shape, how it is stored, and how much of it is used.

B batch, l tokens of one scale, L of all, D bits of a token, V codebook, K scales.

A tensor of tokens has the batch and the place first and then the shape of one token: codes (B, l) int64, bits
(B, l, D) uint8. Whoever moves tokens about (targets, encoded shards, given codes, sampling) looks at the first two
dimensions alone and asks the kind for the rest. The output head that belongs to a kind is in star/model/heads.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

ALIVE = 0.01  # share of a scale's tokens in which the rarer value of a living bit occurs


class Usage(Protocol):
    """How much of what tokens can say each scale uses; a dataclass of plain values."""

    def log(self) -> dict[str, Any]:
        """For the training log: lists of K numbers, and single ones."""
        ...

    def summary(self) -> str:
        """In one phrase."""
        ...

    def columns(self) -> dict[str, list[str]]:
        """Of a table with one row for each scale."""
        ...


class TokenKind(Protocol):
    """What everything between quantizer and head needs to know of a token."""

    unit: ClassVar[str]  # what a loss is counted in, "token" or "bit"
    panels: ClassVar[dict[str, str]]  # curves that a training plots for each scale: key of the log, title

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one token, behind (B, l)."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def outputs(self) -> int:
        """Numbers that an output head gives for a token."""
        ...

    @property
    def ceiling(self) -> int:
        """The most that a panel's curve reaches."""
        ...

    def store(self, tokens_BL: Tensor) -> Tensor:
        """As they lie in a shard: (B, L, ...) of a small integer type."""
        ...

    def restore(self, stored_BL: Tensor) -> Tensor:
        """The tokens that were stored."""
        ...

    def check(self, stored_L: Tensor, length: int) -> None:
        """Raises ValueError unless this is what `store` makes of the L = `length` tokens of a picture."""
        ...

    def counts(self, tokens: Sequence[Tensor]) -> Tensor:
        """How often each value occurs in K tensors (B, l, ...): float64 (K, ...), which may be added up."""
        ...

    def usage(self, counts: Tensor, threshold: float = 0.0) -> Usage:
        """What counts say; a code counts as used above the threshold."""
        ...

    def unigram_nats(self, train: Tensor, held: Tensor) -> Tensor:
        """Nats per unit, float32 (K,), that knowing only each scale's frequencies would cost on held-out pictures.

        Cross-entropy of held-out tokens under the training tokens' frequencies, with one count added for every value;
        both are given as `counts`.
        """
        ...


@dataclass(frozen=True, slots=True)
class CodeUsage:
    """How much of the codebook each scale uses. distinct: codes seen; perplexity: exp of their entropy in nats."""

    distinct: list[int]
    perplexity: list[float]
    distinct_overall: int
    perplexity_overall: float
    vocabulary: int

    def log(self) -> dict[str, Any]:
        """usage_distinct and usage_perplexity of the scales; usage_overall, a share of the codebook."""
        return {
            "usage_distinct": torch.tensor(self.distinct, dtype=torch.float32),
            "usage_perplexity": torch.tensor(self.perplexity),
            "usage_overall": self.distinct_overall / self.vocabulary,
        }

    def summary(self) -> str:
        """Codes used by any scale."""
        share = self.distinct_overall / self.vocabulary
        return f"{self.distinct_overall} of {self.vocabulary} codes used ({share:.1%})"

    def columns(self) -> dict[str, list[str]]:
        """Distinct codes and perplexity."""
        return {
            "distinct": [str(value) for value in self.distinct],
            "perplexity": [f"{value:.1f}" for value in self.perplexity],
        }


@dataclass(frozen=True, slots=True)
class Codes:
    """A token is one of `vocabulary` codes."""

    vocabulary: int
    unit: ClassVar[str] = "token"
    panels: ClassVar[dict[str, str]] = {"usage_distinct": "codes in use", "usage_perplexity": "perplexity"}

    @property
    def shape(self) -> tuple[int, ...]:
        """A single number."""
        return ()

    @property
    def dtype(self) -> torch.dtype:
        """int64, which indexes."""
        return torch.int64

    @property
    def outputs(self) -> int:
        """A logit for each code."""
        return self.vocabulary

    @property
    def ceiling(self) -> int:
        """All codes."""
        return self.vocabulary

    def store(self, tokens_BL: Tensor) -> Tensor:
        """int16 where that holds all codes, else int32: (B, L)."""
        return tokens_BL.to(torch.int16 if self.vocabulary <= 2**15 else torch.int32)

    def restore(self, stored_BL: Tensor) -> Tensor:
        """int64 (B, L)."""
        return stored_BL.to(torch.int64)

    def check(self, stored_L: Tensor, length: int) -> None:
        """Raises ValueError for another shape, and for what names no codes."""
        if tuple(stored_L.shape) != (length,):
            raise ValueError(f"codes_L has the shape {tuple(stored_L.shape)}, expected {(length,)}")
        if stored_L.is_floating_point() or stored_L.min() < 0 or stored_L.max() >= self.vocabulary:
            raise ValueError(f"codes_L holds no codes of a vocabulary of {self.vocabulary}")

    def counts(self, tokens: Sequence[Tensor]) -> Tensor:
        """float64 (K, V): how often each code occurs at each scale."""
        return torch.stack([torch.bincount(c.flatten().cpu(), minlength=self.vocabulary).double() for c in tokens])

    def usage(self, counts: Tensor, threshold: float = 0.0) -> CodeUsage:
        """From how often each code was chosen at each scale, (K, V)."""
        total_V = counts.sum(0)
        return CodeUsage(
            distinct=[int((row > threshold).sum()) for row in counts],
            perplexity=[_perplexity(row) for row in counts],
            distinct_overall=int((total_V > threshold).sum()),
            perplexity_overall=_perplexity(total_V),
            vocabulary=counts.shape[1],
        )

    def unigram_nats(self, train: Tensor, held: Tensor) -> Tensor:
        """Nats per token; see the protocol."""
        counts_KV = train.double() + 1
        log_share_KV = counts_KV.log() - counts_KV.sum(dim=1, keepdim=True).log()
        return (-(held * log_share_KV).sum(dim=1) / held.sum(dim=1)).float()


@dataclass(frozen=True, slots=True)
class BitUsage:
    """How many of a token's bits each scale uses.

    alive: bits whose rarer value occurs in at least `ALIVE` of the scale's tokens. entropy: of all bits, each by
    itself, summed, in bits. bits: D.
    """

    alive: list[int]
    entropy: list[float]
    bits: int

    def log(self) -> dict[str, Any]:
        """usage_bits_alive and usage_bits_entropy of the scales."""
        return {
            "usage_bits_alive": torch.tensor(self.alive, dtype=torch.float32),
            "usage_bits_entropy": torch.tensor(self.entropy),
        }

    def summary(self) -> str:
        """Bits alive at all scales together."""
        return f"{sum(self.alive)} of {self.bits * len(self.alive)} bits of all scales alive"

    def columns(self) -> dict[str, list[str]]:
        """Living bits and entropy."""
        return {
            "bits alive": [str(value) for value in self.alive],
            "entropy": [f"{value:.1f}" for value in self.entropy],
        }


@dataclass(frozen=True, slots=True)
class Bits:
    """A token is a row of `bits` bits, 0 or 1."""

    bits: int
    unit: ClassVar[str] = "bit"
    panels: ClassVar[dict[str, str]] = {"usage_bits_alive": "bits alive", "usage_bits_entropy": "entropy in bits"}

    @property
    def shape(self) -> tuple[int, ...]:
        """One number for each bit."""
        return (self.bits,)

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return torch.uint8

    @property
    def outputs(self) -> int:
        """A logit for each bit."""
        return self.bits

    @property
    def ceiling(self) -> int:
        """All bits."""
        return self.bits

    def store(self, tokens_BL: Tensor) -> Tensor:
        """Eight bits in a byte, the first one the lowest: uint8 (B, L, ceil(D / 8))."""
        padded = torch.nn.functional.pad(tokens_BL, (0, -self.bits % 8)).unflatten(-1, (-1, 8))
        return (padded << torch.arange(8, dtype=torch.uint8, device=padded.device)).sum(dim=-1, dtype=torch.uint8)

    def restore(self, stored_BL: Tensor) -> Tensor:
        """uint8 (B, L, D)."""
        places = torch.arange(8, dtype=torch.uint8, device=stored_BL.device)
        return ((stored_BL[..., None] >> places) & 1).flatten(-2)[..., : self.bits]

    def check(self, stored_L: Tensor, length: int) -> None:
        """Raises ValueError for another shape or type, and for bits beyond the last."""
        shape = (length, -(-self.bits // 8))
        if tuple(stored_L.shape) != shape or stored_L.dtype != torch.uint8:
            raise ValueError(f"codes_L is {stored_L.dtype} {tuple(stored_L.shape)}, expected torch.uint8 {shape}")
        if bool((stored_L[:, -1].int() >> ((self.bits - 1) % 8 + 1)).any()):
            raise ValueError(f"codes_L has more than {self.bits} bits in a token")

    def counts(self, tokens: Sequence[Tensor]) -> Tensor:
        """float64 (K, D, 2): how often each bit is 0 and 1 at each scale."""
        ones_KD = torch.stack([t.flatten(0, 1).sum(dim=0, dtype=torch.float64).cpu() for t in tokens])
        of_K1 = torch.tensor([[t.shape[0] * t.shape[1]] for t in tokens], dtype=torch.float64)
        return torch.stack((of_K1 - ones_KD, ones_KD), dim=-1)

    def usage(self, counts: Tensor, threshold: float = 0.0) -> BitUsage:
        """From how often each bit was 0 and 1 at each scale, (K, D, 2); the threshold plays no part."""
        share_KD2 = counts.double() / counts.double().sum(dim=-1, keepdim=True).clamp_min(1e-12)
        entropy_KD = -(share_KD2 * share_KD2.clamp_min(1e-12).log2()).sum(dim=-1)
        return BitUsage(
            alive=[int(alive) for alive in (share_KD2.amin(dim=-1) >= ALIVE).sum(dim=1)],
            entropy=[float(row) for row in entropy_KD.sum(dim=1)],
            bits=self.bits,
        )

    def unigram_nats(self, train: Tensor, held: Tensor) -> Tensor:
        """Nats per bit; see the protocol."""
        counts_KD2 = train.double() + 1
        log_share_KD2 = counts_KD2.log() - counts_KD2.sum(dim=-1, keepdim=True).log()
        return (-(held * log_share_KD2).sum(dim=(1, 2)) / held.sum(dim=(1, 2))).float()


def zeros(kind: TokenKind, batch: int, length: int, device: torch.device | str | None = None) -> Tensor:
    """Tokens (B, l, ...) whose numbers are all 0."""
    return torch.zeros(batch, length, *kind.shape, dtype=kind.dtype, device=device)


def where(mask_Bl: Tensor, tokens_Bl: Tensor, other_Bl: Tensor) -> Tensor:
    """`torch.where` of whole tokens: the first where the mask is True, else the other."""
    return torch.where(mask_Bl.view(*mask_Bl.shape, *(1,) * (tokens_Bl.ndim - mask_Bl.ndim)), tokens_Bl, other_Bl)


def _perplexity(counts_V: Tensor) -> float:
    p = counts_V.double() / counts_V.sum().clamp_min(1e-12)
    return float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))
