"""Multi-scale residual vector quantisation: a latent becomes K grids of codes, coarse to fine, and back.

B batch, E code width, V codebook, h w latent grid, L tokens of all scales, l of one scale, K scales, k scale index.

Scale k describes what the scales before it left over: the residual is averaged down to that scale's grid, looked up in
one codebook that all scales share, brought back up, smoothed by a small convolution phi_k and subtracted
(Tian et al. 2024, §3.2 and Alg. 1-2; "area" on the way down and "bicubic" on the way up, as released).
How the codebook learns is in `codebook.py`. `MultiScaleQuantizer` is all of this but the codebook, and so the
protocol of quantizers: `bitwise.py` is another one, and `quantizers.py` lists them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.config import check_ranges
from star.generators.precision import full_float32
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import Codes, TokenKind

DISTANCES = 2**26  # of vectors to codes, computed at once: 256 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """Codebook and pyramid; the defaults are the released VAR tokenizer's at 256 px.

    phi_count: 4 convolutions shared by nearby scales (released); 1 for all; 0 for one per scale.
    phi_ratio: share r of the convolution in phi(u) = (1-r) u + r conv(u).
    cosine: nearest code by cosine instead of distance (not used by any release).
    """

    vocabulary: int = 4096
    code_width: int = 32
    sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    phi_count: int = 4
    phi_ratio: float = 0.5
    cosine: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, vocabulary=(1, 2**20), code_width=(1, 2**12), phi_count=(0, 64), phi_ratio=(0, 1))
        ScaleSchedule(self.sizes)  # refuses sizes that are none

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales as a schedule."""
        return ScaleSchedule(self.sizes)

    @property
    def bits(self) -> int:
        """0: a token is a code."""
        return 0

    @property
    def tokens(self) -> Codes:
        """What a token is."""
        return Codes(self.vocabulary)


class PyramidConfig(Protocol):
    """What every quantizer's config says; see `QuantizerConfig`."""

    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def code_width(self) -> int: ...
    @property
    def phi_count(self) -> int: ...
    @property
    def phi_ratio(self) -> float: ...
    @property
    def schedule(self) -> ScaleSchedule: ...
    @property
    def vocabulary(self) -> int:
        """Values of a code; 2 of a bit."""
        ...

    @property
    def bits(self) -> int:
        """D of a token that is a row of bits, 0 of a code."""
        ...

    @property
    def tokens(self) -> TokenKind: ...


@dataclass(frozen=True, slots=True)
class Pyramid:
    """What encoding a latent gives, and what training needs of it.

    codes: K tensors of tokens (B, l, ...), row-major. latents: K tensors (B, E, h, w), the sum after each scale.
    targets: K tensors (B, l, E), the vectors that were looked up.
    """

    codes: list[Tensor]
    latents: list[Tensor]
    targets: list[Tensor]


def phi_index(k: int, scale_count: int, phi_count: int) -> int:
    """Which of phi_count convolutions scale k of scale_count uses.

    The tick nearest to k/(K-1), of equispaced ticks from 1/12 to 11/12 for four convolutions and from 1/(2n) to
    1-1/(2n) for another count n. Exact ties exist (K = 10: scales 2 and 7); float64 rounding decides them in the
    released code, so the same expression is evaluated in float64 here.
    """
    if phi_count == 0:
        return k
    margin = 1 / 3 / phi_count if phi_count == 4 else 1 / 2 / phi_count
    ticks = np.linspace(margin, 1 - margin, phi_count)
    return int(np.argmin(np.abs(ticks - k / max(scale_count - 1, 1))))


class MultiScaleQuantizer(nn.Module, ABC):
    """The phi convolutions and the arithmetic of the pyramid, all in float32; what a token is, a subclass says.

    A quantizer is this class with `add_tokens`, `nearest`, `vectors` and `mistakes`. Codes are tokens (B, l, ...), see
    `tokens.py`.
    """

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = config.schedule
        self.add_tokens()
        count = config.phi_count or self.schedule.count
        self.phis = nn.ModuleList(nn.Conv2d(config.code_width, config.code_width, 3, padding=1) for _ in range(count))
        self.init_weights()

    @abstractmethod
    def add_tokens(self) -> None:
        """Gives the module the parameters and buffers that tokens mean something by."""

    @abstractmethod
    def nearest(self, vectors_BlE: Tensor) -> Tensor:
        """The tokens (B, l, ...) that say vectors best."""

    @abstractmethod
    def vectors(self, codes_Bl: Tensor, k: int) -> Tensor:
        """What tokens of scale k say: (B, l, E)."""

    @abstractmethod
    def mistakes(self, neighbours: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of tokens (B, l, ...) and a rate (B, 1) for each picture that gives tokens with mistakes.

        neighbours: see star.training.targets.make_targets. Numbers come from torch's global generator.
        """

    @property
    def tokens(self) -> TokenKind:
        """What a token is."""
        return self.config.tokens

    @property
    def device(self) -> torch.device:
        """Where the quantizer is."""
        return next(self.phis.parameters()).device

    def init_weights(self) -> None:
        """phis: torch's default."""
        for phi in self.phis:
            phi.reset_parameters()  # type: ignore[operator]

    def encode(self, latent_BEhw: Tensor, codes: Sequence[Tensor | None] = ()) -> Pyramid:
        """Quantises a latent on the finest grid scale by scale (Alg. 1); one that is no square on rectangles.

        `codes` may prescribe the codes (B, l) of some scales; later scales then describe what those leave over.
        Raises ValueError on a latent of another width or grid.
        """
        if latent_BEhw.ndim != 4 or latent_BEhw.shape[1] != self.config.code_width:
            grid = self.schedule.finest
            raise ValueError(
                f"latent of shape {tuple(latent_BEhw.shape)} given, expected "
                f"(B, {self.config.code_width}, {grid}, {grid}); check the resolution against the scales"
            )
        schedule = self.schedule_of(latent_BEhw)
        residual = latent_BEhw.float()
        total = torch.zeros_like(residual)
        pyramid = Pyramid([], [], [])
        for k in range(self.schedule.count):
            target_BlE = self.down(residual, k)
            given = codes[k] if k < len(codes) else None
            codes_Bl = self.nearest(target_BlE) if given is None else given
            step = self.expand(codes_Bl, k, schedule)
            total = total + step
            residual = residual - step
            pyramid.codes.append(codes_Bl)
            pyramid.latents.append(total)
            pyramid.targets.append(target_BlE)
        return pyramid

    def schedule_of(self, latent_BEhw: Tensor) -> ScaleSchedule:
        """The grids of a latent's shape. Raises InputError, a ValueError, if there are none."""
        return self.schedule.at(*latent_BEhw.shape[-2:])

    def expand(self, codes_Bl: Tensor, k: int, schedule: ScaleSchedule | None = None) -> Tensor:
        """What the codes of scale k add to the latent: look up, bring to the finest grid, smooth. (B, E, h, w).

        schedule: here and below, of the picture; squares if None.
        """
        return self._smooth(self.vectors(codes_Bl, k).float(), k, schedule or self.schedule)

    def accumulate(self, latent_BEhw: Tensor, codes_Bl: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        """Adds scale k to the running latent and prepares the input of scale k+1 (Alg. 2).

        latent_BEhw: float32, the sum of the scales before k on the finest grid. codes_Bl: tokens, row-major.
        Returns the new latent and the next scale's input (B, l, E), None after the last. Raises ValueError if l is not
        the schedule's.
        """
        schedule = self.schedule_of(latent_BEhw)
        if codes_Bl.shape[1] != schedule.lengths[k]:
            raise ValueError(f"{codes_Bl.shape[1]} codes given for scale {k}, which holds {schedule.lengths[k]}")
        latent_BEhw = latent_BEhw + self.expand(codes_Bl, k, schedule)
        return latent_BEhw, self.down(latent_BEhw, k + 1) if k + 1 < self.schedule.count else None

    def teacher_input(self, codes: Sequence[Tensor], schedule: ScaleSchedule | None = None) -> Tensor:
        """The inputs of scales 1..K-1 given the true codes of all scales: (B, L - l0, E) float32.

        Codes may end after some scale, and the inputs then end there, too.
        """
        latent_BEhw = self.empty_latent(codes[0].shape[0], schedule)
        inputs = []
        for k in range(len(codes) - 1):
            latent_BEhw, next_BlE = self.accumulate(latent_BEhw, codes[k], k)
            inputs.append(next_BlE)
        if not inputs:
            return latent_BEhw.new_zeros(codes[0].shape[0], 0, self.config.code_width)
        return torch.cat([i for i in inputs if i is not None], dim=1)

    def decode(
        self, codes: Sequence[Tensor], scales: int | None = None, schedule: ScaleSchedule | None = None
    ) -> Tensor:
        """The latent (B, E, h, w) that the codes of the first `scales` scales (all by default) describe."""
        latent_BEhw = self.empty_latent(codes[0].shape[0], schedule)
        for k in range(self.schedule.count if scales is None else scales):
            latent_BEhw = latent_BEhw + self.expand(codes[k], k, schedule)
        return latent_BEhw

    def empty_latent(self, batch: int, schedule: ScaleSchedule | None = None) -> Tensor:
        """Zeros (B, E, h, w): the latent before the first scale."""
        shape = (batch, self.config.code_width, *(schedule or self.schedule).grid)
        return torch.zeros(shape, device=self.device)

    def down(self, latent_BEhw: Tensor, k: int) -> Tensor:
        """The latent averaged to the grid of scale k, as vectors (B, l, E)."""
        if k != self.schedule.count - 1:
            latent_BEhw = F.interpolate(latent_BEhw, size=self.schedule_of(latent_BEhw).grids[k], mode="area")
        return latent_BEhw.flatten(2).transpose(1, 2)

    def _smooth(self, vectors_BlE: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """Vectors (B, l, E) of scale k brought to the finest grid and through phi_k: (B, E, h, w)."""
        B, _, E = vectors_BlE.shape
        coarse = vectors_BlE.transpose(1, 2).reshape(B, E, *schedule.grids[k])
        fine = coarse if k == schedule.count - 1 else F.interpolate(coarse, size=schedule.grid, mode="bicubic")
        phi = self.phis[phi_index(k, self.schedule.count, self.config.phi_count)]
        ratio = abs(self.config.phi_ratio)
        return fine * (1 - ratio) + phi(fine) * ratio


class Quantizer(MultiScaleQuantizer):
    """A codebook (V, E) that all scales share."""

    config: QuantizerConfig

    def add_tokens(self) -> None:
        """The codebook."""
        self.codebook = nn.Embedding(self.config.vocabulary, self.config.code_width)

    def init_weights(self) -> None:
        """Codebook: uniform in +-1/V (training reseeds it from data at once); phis: torch's default."""
        nn.init.uniform_(self.codebook.weight, -1 / self.config.vocabulary, 1 / self.config.vocabulary)
        super().init_weights()

    @torch.no_grad()
    def nearest(self, vectors_BlE: Tensor) -> Tensor:
        """int64 (B, l): index of the nearest code; the lowest index wins a tie."""
        flat = vectors_BlE.flatten(0, -2)
        book_VE = self.codebook.weight.float()
        if self.config.cosine:
            with full_float32():
                scores = F.normalize(flat, dim=-1) @ F.normalize(book_VE, dim=-1).T
            return scores.argmax(dim=1).view(vectors_BlE.shape[:-1])
        found = []
        for part in flat.split(max(1, DISTANCES // self.config.vocabulary)):
            # |x|^2 + |e|^2 - 2 x.e, in this order: it decides which of two nearly equal codes wins
            distance = part.square().sum(dim=1, keepdim=True) + book_VE.square().sum(dim=1)
            with full_float32():
                distance.addmm_(part, book_VE.T, alpha=-2, beta=1)
            found.append(distance.argmin(dim=1))
        return torch.cat(found).view(vectors_BlE.shape[:-1])

    def vectors(self, codes_Bl: Tensor, k: int) -> Tensor:
        """Their rows of the codebook: (B, l, E)."""
        return self.codebook(codes_Bl)

    def mistakes(self, neighbours: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
        """Each code is replaced with the picture's rate: by any code, or one of so many nearest to it."""
        near_Vn = self._neighbours(neighbours) if neighbours else None

        def replaced(codes_Bl: Tensor, rate_B1: Tensor) -> Tensor:
            if near_Vn is None:
                wrong_Bl = torch.randint_like(codes_Bl, self.config.vocabulary)
            else:
                wrong_Bl = near_Vn[codes_Bl, torch.randint_like(codes_Bl, near_Vn.shape[1])]
            return torch.where(torch.rand(codes_Bl.shape, device=codes_Bl.device) < rate_B1, wrong_Bl, codes_Bl)

        return replaced

    def _neighbours(self, count: int) -> Tensor:
        """The `count` other codes that are nearest to each: (V, n) int64."""
        book_VE = self.codebook.weight.detach().float()
        distance_VV = torch.cdist(book_VE, book_VE)
        distance_VV.fill_diagonal_(float("inf"))
        return distance_VV.topk(min(count, len(book_VE) - 1), largest=False).indices
