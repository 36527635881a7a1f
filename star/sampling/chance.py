"""What guidance, options and seeds say about a pass: strengths, temperatures, and randomness that is the picture's own.

What a token's logits mean, top-k and top-p included, is the head's (star/model/heads.py); codes are tokens (B, l, ...).

B pictures, R rows of the transformer's batch (CFG rows: one conditional for each picture, then, with guidance, as many
unconditional ones), l tokens of one scale, n uniform numbers of one scale and picture, V codebook, K number of scales,
k scale index.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from star.model.heads import CODES, TokenHead, is_on
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import where

if TYPE_CHECKING:
    from star.generators.protocol import SampleOptions


def guidance_at(k: int, count: int, strength: float, unguided_last: int = 0, ramp: float = 1.0) -> float:
    """Strength t of scale k in (1 + t) cond - t uncond: up to `strength` at the finest.

    ramp: the share of it that the coarsest lacks. 1 begins at 0, as Tian et al. 2024 do; 0 is the same for every scale.
    The last `unguided_last` scales get 0: details are then drawn from the prompt's own distribution.
    """
    if k >= count - unguided_last:
        return 0.0
    last = max(count - 1, 1)
    return strength * k / last + (1 - ramp) * strength * (last - k) / last


def temperature_at(depth: float, temperature: float, decay: float) -> float:
    """Linear from `temperature` at depth 0, the coarsest scale, to (1 - decay) times that at depth 1, the finest.

    Tokens of one scale are drawn independently of each other. Where they are many and fine, chance shows as texture.
    """
    return temperature * (1 - decay * depth)


def guide(logits_RlV: Tensor, strength: float | Tensor, plus: float | Tensor | None = None) -> Tensor:
    """Conditional rows first, unconditional after: their extrapolation (Ho & Salimans 2022, Eq. 6).

    plus: 1 + strength, where it is known.
    """
    conditional, unconditional = logits_RlV.chunk(2)
    return (1 + strength if plus is None else plus) * conditional - strength * unconditional


def uniforms(seeds: Sequence[int], k: int | str, length: int, *, pinned: bool = False) -> Tensor:
    """One float64 in [0, 1) per token of scale k for every seed: (B, l), on the CPU. pinned: see `pack`.

    Each (seed, scale) has a generator of its own, seeded with the first 8 bytes of SHA-256 of "seed/scale": the same on
    every device, whatever the batch, and nearby seeds share nothing.
    """
    drawn_Bn = torch.empty(len(seeds), length, dtype=torch.float64, pin_memory=pinned)
    draw_uniforms(drawn_Bn, seeds, k)
    return drawn_Bn


def draw_uniforms(into_Bn: Tensor, seeds: Sequence[int], k: int | str) -> None:
    """The same into memory that is there: (B, n) float64."""
    generator = torch.Generator()
    for row_n, seed in zip(into_Bn, seeds, strict=True):
        digest = hashlib.sha256(f"{seed}/{k}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        torch.rand(len(row_n), dtype=torch.float64, generator=generator, out=row_n)


@dataclass(frozen=True, slots=True)
class SampleRng:
    """The randomness of one pass: it comes from the seeds of its pictures alone. head: what the logits mean."""

    seeds: Sequence[int]
    options: "SampleOptions"
    head: TokenHead = field(default=CODES, kw_only=True)

    def keep(self, logits_BlV: Tensor, depth: float = 0.0) -> Tensor:
        """The logits to draw from: after temperature, top-k and top-p; of the likeliest alone if top_k is 1.

        depth: of their scale, from 0 at the coarsest to 1 at the finest, which is the coldest (`temperature_at`).
        """
        if self.options.top_k == 1:
            return self.head.filtered(logits_BlV, 1, 0.0)
        temperature = temperature_at(depth, self.options.temperature, self.options.temperature_decay)
        return self.head.filtered(logits_BlV / temperature, self.options.top_k, self.options.top_p)

    def pick(self, kept_BlV: Tensor, k: int, step: int | None = None) -> Tensor:
        """Codes (B, l) of scale k; `step` where a scale is drawn several times."""
        if self.options.top_k == 1:
            return self.head.likeliest(kept_BlV)
        count = kept_BlV.shape[1] * self.head.draws(kept_BlV)
        pinned = kept_BlV.device.type == "cuda"
        key = k if step is None else f"{k}/{step}"
        return self.head.pick(kept_BlV, uniforms(self.seeds, key, count, pinned=pinned))

    def order(self, k: int, step: int, length: int) -> Tensor:
        """Random numbers (B, l) that say in which order tokens come."""
        return uniforms(self.seeds, f"{k}/{step}/order", length)


@dataclass(frozen=True, slots=True)
class GivenCodes:
    """Codes that are not drawn: of a picture to be varied, or of what lies outside the mask of an inpainting.

    codes: K tensors (B, l, ...). known: K tensors (B, l) bool, True where the code stays as it is.
    """

    codes: Sequence[Tensor]
    known: Sequence[Tensor]

    def rows(self, part: slice) -> "GivenCodes":
        """Those of some of the pictures."""
        return GivenCodes([code[part] for code in self.codes], [known[part] for known in self.known])

    def put(self, codes_Bl: Tensor, k: int) -> Tensor:
        """The codes (B, l, ...) of scale k, on the same device, with the given ones in their places."""
        return where(self.known[k], self.codes[k], codes_Bl)

    def to(self, device: torch.device) -> "GivenCodes":
        """Moved."""
        return GivenCodes([code.to(device) for code in self.codes], [known.to(device) for known in self.known])


class PassShape(NamedTuple):
    """All that decides which operators a pass calls, in which shapes, apart from the text's.

    guided: of each scale, whether its strength is above 0. top_p: whether it removes anything.
    """

    schedule: ScaleSchedule
    pictures: int
    guided: tuple[bool, ...]
    released: bool
    top_k: int
    top_p: bool

    @classmethod
    def of(
        cls,
        options: "SampleOptions",
        schedule: ScaleSchedule,
        pictures: int,
        strengths: Sequence[float],
        released: bool,
    ) -> Self:
        """strengths: of all scales, all 0 where the pass has no unconditional rows."""
        return cls(
            schedule,
            pictures,
            tuple(strength > 0 for strength in strengths),
            released,
            options.top_k,
            is_on(options.top_p),
        )

    @property
    def unguided_from(self) -> int:
        """The first scale from which on nothing is guided: unconditional rows are needed no more."""
        return max((k + 1 for k, guided in enumerate(self.guided) if guided), default=0)

    def draws(self, k: int, bits: int) -> int:
        """Uniform numbers that scale k takes for a picture; bits: of a token, 0 of a code."""
        return 0 if self.top_k == 1 else self.schedule.lengths[k] * (bits or 1)


def strengths_of(options: "SampleOptions", count: int, unguided_last: int) -> list[float]:
    """Of all scales."""
    return [
        guidance_at(k, count, options.guidance_strength, unguided_last, options.guidance_ramp) for k in range(count)
    ]


class Numbers(NamedTuple):
    """All numbers of a pass that are not the network's, on its device: so nothing is copied or waited for on the way.

    plus, strength, temperature: one without dimensions for each scale. top_p: one. uniforms: (B, n) of each scale.
    """

    plus: Sequence[Tensor]
    strength: Sequence[Tensor]
    temperature: Sequence[Tensor]
    top_p: Tensor
    uniforms: Sequence[Tensor]


def pack(shape: PassShape, rng: SampleRng, strengths: Sequence[float], bits: int, *, pinned: bool = False) -> Tensor:
    """One row of float64 on the CPU that `unpack` knows how to read. pinned: for a copy that nobody waits for."""
    count, options = shape.schedule.count, rng.options
    depths = [k / max(count - 1, 1) for k in range(count)]
    told = [1 + strength for strength in strengths] + list(strengths)
    told += [temperature_at(depth, options.temperature, options.temperature_decay) for depth in depths]
    told.append(options.top_p)
    sizes = [shape.pictures * shape.draws(k, bits) for k in range(count)]
    packed = torch.empty(len(told) + sum(sizes), dtype=torch.float64, pin_memory=pinned)
    packed[: len(told)] = torch.tensor(told, dtype=torch.float64)
    for k, part in enumerate(packed[len(told) :].split(sizes)):
        draw_uniforms(part.view(shape.pictures, sizes[k] // shape.pictures), rng.seeds, k)
    return packed


def unpack(packed: Tensor, shape: PassShape, bits: int) -> Numbers:
    """What `pack` wrote, wherever it is now."""
    count = shape.schedule.count
    told = packed[: 3 * count].float().unbind()
    sizes = [shape.pictures * shape.draws(k, bits) for k in range(count)]
    parts = [part.view(shape.pictures, len(part) // shape.pictures) for part in packed[3 * count + 1 :].split(sizes)]
    return Numbers(told[:count], told[count : 2 * count], told[2 * count :], packed[3 * count], parts)
