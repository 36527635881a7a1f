"""A quantizer without a codebook: a token is the signs of a vector, so many bits (Han et al. 2024, "Infinity").

B batch, E code width, which is D bits, h w latent grid, l tokens of one scale, K scales, k scale index.

Binary spherical quantisation (Zhao et al. 2024): a vector becomes the corner of the cube on a sphere that is nearest
to it, which is its signs, so that D bits say 2^D codes and none is searched for. Residuals shrink from scale to scale,
and signs do not. So each scale has its own sphere, whose corners are at +-step_K[k] in every dimension; the step is the
running mean of what the magnitudes are, which for given signs has the smallest squared error (ours; Infinity leaves
that to phi). The pyramid around it is `quantizer.MultiScaleQuantizer`, the same as with a codebook.

What keeps bits alive is the entropy loss of Zhao et al. 2024, §3.3: each bit of a token should be sure, and over all
tokens of a scale 0 as often as 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from star.generators.config import check_ranges
from star.tokenizer.codebook import all_reduce
from star.tokenizer.quantizer import MultiScaleQuantizer, Pyramid
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import Bits, BitUsage


@dataclass(frozen=True, kw_only=True, slots=True)
class BitwiseConfig:
    """Bits of a token, which are also the latent's channels, and the pyramid; phi_count, phi_ratio: as with codes."""

    bits: int = 32
    sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    phi_count: int = 4
    phi_ratio: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(self, bits=(1, 2**12), phi_count=(0, 64), phi_ratio=(0, 1))
        ScaleSchedule(self.sizes)  # refuses sizes that are none

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales as a schedule."""
        return ScaleSchedule(self.sizes)

    @property
    def code_width(self) -> int:
        """E = D: a sign for every channel."""
        return self.bits

    @property
    def vocabulary(self) -> int:
        """Values of a bit."""
        return 2

    @property
    def tokens(self) -> Bits:
        """What a token is."""
        return Bits(self.bits)


class BitwiseQuantizer(MultiScaleQuantizer):
    """Signs, and for each scale the step that they are worth: step_K, float32."""

    config: BitwiseConfig
    step_K: Tensor

    def add_tokens(self) -> None:
        """The steps, at first those of the unit sphere."""
        self.register_buffer("step_K", torch.full((self.schedule.count,), self.config.bits**-0.5))

    @torch.no_grad()
    def nearest(self, vectors_BlE: Tensor) -> Tensor:
        """uint8 (B, l, D): 1 where a vector is positive."""
        return (vectors_BlE > 0).to(torch.uint8)

    def vectors(self, codes_Bl: Tensor, k: int) -> Tensor:
        """Plus or minus the scale's step: (B, l, E)."""
        return (2 * codes_Bl.float() - 1) * self.step_K[k]

    def mistakes(self, neighbours: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
        """Each bit is flipped with the picture's rate. Raises ValueError for neighbours, which bits do not have."""
        if neighbours:
            raise ValueError(f"{neighbours} neighbours of a row of bits were asked for, expected 0: any bit may flip")

        def flipped(codes_Bl: Tensor, rate_B1: Tensor) -> Tensor:
            flips = torch.rand(codes_Bl.shape, device=codes_Bl.device) < rate_B1.unsqueeze(-1)
            return codes_Bl ^ flips.to(codes_Bl.dtype)

        return flipped


@dataclass(frozen=True, kw_only=True, slots=True)
class BitsConfig:
    """How steps and bits learn. decay: of the running means, per step of training, less at first. entropy: weight of
    the entropy loss. sharpness: how sure a bit is whose channel is at the scale's step, as log-odds."""

    decay: float = 0.99
    entropy: float = 0.1
    sharpness: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(self, decay=(0, 1), entropy=(0, 1e6), sharpness=(1e-3, 1e3))


class BitsTrainer(nn.Module):
    """Running statistics of a bitwise quantizer; call `update` after each training step's encode.

    ones_KD: running share of ones of each bit at each scale. steps: updates so far.
    """

    ones_KD: Tensor
    steps: Tensor

    def __init__(self, quantizer: BitwiseQuantizer, config: BitsConfig, *, known: bool = False) -> None:
        """known: the steps mean something already, and move slowly from the first update on."""
        super().__init__()
        self.config, self.known = config, known
        self.moves: list[nn.Module] = []  # the steps are a buffer
        self.register_buffer("ones_KD", torch.full((quantizer.schedule.count, quantizer.config.bits), 0.5))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, quantizer: BitwiseQuantizer, pyramid: Pyramid) -> None:
        """One update of the steps and of the shares, from the tokens of all processes."""
        ones_KD = torch.stack([codes.flatten(0, 1).float().mean(dim=0) for codes in pyramid.codes])
        size_K = torch.stack([target_BlE.float().abs().mean() for target_BlE in pyramid.targets])
        count = torch.ones((), device=size_K.device)
        for statistic in (ones_KD, size_K, count):
            all_reduce(statistic)
        self.steps += 1
        warmed = 1.0 if self.known else (self.steps - 1) / (self.steps + 8)  # 0 in the first update
        decay = torch.clamp(torch.as_tensor(warmed, device=size_K.device), max=self.config.decay)
        self.ones_KD.lerp_(ones_KD / count, 1 - decay)
        quantizer.step_K.lerp_(size_K / count, 1 - decay)

    def usage(self) -> BitUsage:
        """Bits alive lately."""
        ones_KD = self.ones_KD.cpu()
        return Bits(ones_KD.shape[1]).usage(torch.stack((1 - ones_KD, ones_KD), dim=-1))

    def regulariser(self, quantizer: BitwiseQuantizer, latent_BEhw: Tensor, pyramid: Pyramid) -> Tensor | None:
        """The entropy loss, weighed: mean entropy of a bit minus the entropy of its mean, in nats, over all scales.

        latent_BEhw: with its gradient. A bit's chance of being 1 is a sigmoid of its channel in units of the step. With
        several processes each counts the means of its own pictures.
        """
        if not self.config.entropy:
            return None
        losses, before_BEhw = [], torch.zeros_like(latent_BEhw)
        for k, total_BEhw in enumerate(pyramid.latents):
            residual_BlE = quantizer.down(latent_BEhw.float() - before_BEhw, k)
            chance = (self.config.sharpness * residual_BlE / quantizer.step_K[k].clamp_min(1e-8)).sigmoid()
            losses.append(_entropy(chance).mean() - _entropy(chance.mean(dim=(0, 1))).mean())
            before_BEhw = total_BEhw.detach()
        return self.config.entropy * torch.stack(losses).mean()


def _entropy(chance: Tensor) -> Tensor:
    """Of a bit that is 1 with this chance, in nats."""
    chance = chance.clamp(1e-6, 1 - 1e-6)
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log())
