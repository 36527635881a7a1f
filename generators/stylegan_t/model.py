"""StyleGAN-T: a style-based generator that reads text at every layer (Sauer et al. 2023, "StyleGAN-T: Unlocking the
Power of GANs for Fast Large-Scale Text-to-Image Synthesis").

z goes through a small mapping network, the text beside it untouched: w = [mapped z, text]. So truncation moves only z's
part, towards the mean picture of this text.

    network = StyleGanT(CONFIGS["lite-64"])
    raw_B3HW, w_BSW = network(latent_BZ, condition_BP)

It grows: a network of 64 pixels is trained first, and its weights begin a larger one (`grow_from`), of which either
everything learns or what `trainable` says. The layers and how they start are in layers.py.

B batch, Z latent width, P condition width, S style slots, W = Z + P style width, H W pixels, 3 RGB.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generators.config import check_ranges
from star.generators.gan.generator import GanGenerator, GanNetwork, NoiseMode, Phase
from star.generators.gan.layers import MappingNetwork
from star.generators.protocol import Conditioning
from star.generators.stylegan_t.layers import FIRST_SIDE, Block

TRUNK = 64  # pixels; what is frozen while a grown network learns finer blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleGanTConfig:
    """Sizes of the generator; the defaults are the paper's full network at 64 pixels."""

    resolution: int = 64  # pixels, a power of two from 8
    conditioning: Conditioning = "text"
    condition_width: int = 768  # of the text embedding, or the number of classes; 0 without a condition
    latent_width: int = 64
    channel_base: int = 65536  # a block of side s has min(channel_base / s, channel_max) channels
    channel_max: int = 2048
    residual_blocks: int = 3  # pairs of a plain and a residual convolution at each resolution
    groups: int = 32  # of the group norm
    architecture: Literal["skip", "orig"] = "skip"  # RGB at each resolution, or at the last one alone
    clamp: float | None = 256.0  # largest activation, and largest contribution to the picture; None: off

    def __post_init__(self) -> None:
        check_ranges(
            self,
            resolution=(-math.inf, 2**12),
            condition_width=(-math.inf, 2**16),
            latent_width=(-math.inf, 2**14),
            channel_base=(-math.inf, 2**24),
            channel_max=(-math.inf, 2**14),
            residual_blocks=(-math.inf, 64),
            groups=(-math.inf, 2**12),
        )
        if self.resolution < FIRST_SIDE or self.resolution & (self.resolution - 1):
            raise InputError(f"resolution is {self.resolution}, expected a power of two from {FIRST_SIDE}: correct it")
        for name in ("latent_width", "channel_base", "channel_max", "residual_blocks", "groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1: correct it")
        if self.architecture not in ("skip", "orig"):
            raise InputError(f"architecture is {self.architecture!r}, expected skip or orig: correct it")
        if self.clamp is not None and not self.clamp > 0:
            raise InputError(f"clamp is {self.clamp}, expected more than 0, or none to switch it off: correct it")
        if self.condition_width < 0 or (self.condition_width == 0) != (self.conditioning == "none"):
            raise InputError(
                f"condition_width is {self.condition_width} with conditioning {self.conditioning}, expected 0 with "
                "none and more otherwise: correct one of them"
            )
        for side in self.sides:
            if not (channels := self.channels(side)) or channels % self.groups:
                raise InputError(
                    f"the block of {side} pixels has {channels} channels, expected a multiple of the {self.groups} "
                    "groups: change channel_base, channel_max or groups"
                )

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the blocks, in pixels: 8, 16, ..., resolution."""
        return tuple(FIRST_SIDE << i for i in range((self.resolution // FIRST_SIDE).bit_length()))

    def channels(self, side: int) -> int:
        return min(self.channel_base // side, self.channel_max)

    @property
    def style_width(self) -> int:
        return self.latent_width + self.condition_width


_FULL = StyleGanTConfig()
_LITE = StyleGanTConfig(channel_base=32768, channel_max=512, residual_blocks=2)
# The paper's networks: "full" is the one of its headline scores, "lite" that of its ablations.
CONFIGS = {
    f"{name}-{side}": replace(config, resolution=side)
    for name, config in (("full", _FULL), ("lite", _LITE))
    for side in (64, 256, 512)
}


class StyleGanT(GanNetwork):
    """The generator network; raw pictures are in [-1, 1], as they were trained."""

    grows: ClassVar[bool] = True

    def __init__(self, config: StyleGanTConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioning = config.conditioning
        self.resolution = (config.resolution, config.resolution)
        self.latent_width, self.condition_width = config.latent_width, config.condition_width
        self.mapping = MappingNetwork(config.latent_width, config.latent_width, layers=2, activate_last=False)
        self.blocks = nn.ModuleDict()
        inputs = None
        for side in config.sides:
            outputs = config.channels(side)
            self.blocks[str(side)] = Block(
                inputs,
                outputs,
                side,
                config.style_width,
                pairs=config.residual_blocks,
                groups=config.groups,
                to_rgb=config.architecture == "skip" or side == config.resolution,
                clamp=config.clamp,
            )
            inputs = outputs
        self.slots = (1 + 2 * config.residual_blocks) * len(self.blocks) + 1

    def styles(
        self,
        latent_BZ: Tensor,
        condition_BP: Tensor | None = None,
        *,
        truncation: float = 1.0,
        cutoff: int | None = None,
        track: bool = False,
    ) -> Tensor:
        """w_BSW; see GanNetwork. Raises ValueError if a condition is missing, or given to a network without one."""
        if (condition_BP is None) != (self.condition_width == 0):
            raise ValueError("a conditional network needs a condition, and one without takes none")
        mapped_BZ = self.mapping(latent_BZ)
        if track:
            self.mapping.track(mapped_BZ)
        cutoff = self.slots if cutoff is None else cutoff
        shortened_BZ = self.mapping.truncate(mapped_BZ, truncation) if truncation != 1 else mapped_BZ
        before_BW, after_BW = (
            part_BZ if condition_BP is None else torch.cat([part_BZ, condition_BP.to(part_BZ.dtype)], dim=1)
            for part_BZ in (shortened_BZ, mapped_BZ)
        )
        return torch.stack([before_BW] * cutoff + [after_BW] * (self.slots - cutoff), dim=1)

    def synthesis(self, w_BSW: Tensor, noise: NoiseMode = "random") -> Tensor:
        """raw_B3HW."""
        x_BCHW, raw_B3HW, first = None, None, 0
        for block in self.blocks.values():
            assert isinstance(block, Block)
            last = first + block.convolutions
            w_BsW = w_BSW[:, first : last + (block.to_rgb is not None)]
            x_BCHW, raw_B3HW = block(x_BCHW, raw_B3HW, w_BsW, noise)
            first = last
        assert raw_B3HW is not None  # the last block always has an RGB layer
        return raw_B3HW

    def trainable(self, phase: Phase) -> list[nn.Parameter]:
        """The network's parameters that learn in a phase; the others are to be frozen.

        all: everything, for the network of 64 pixels and, in the paper, for grown ones. freeze64: blocks finer than 64
        pixels and every RGB layer, the coarse ones included, as the released code grows. text_encoder: none, the text
        encoder learns, with a gradient that comes through the frozen network. Raises InputError for freeze64 where
        there is nothing finer than 64 pixels.
        """
        if phase == "all":
            return list(self.parameters())
        if phase == "text_encoder":
            return []
        if self.config.resolution <= TRUNK:
            raise InputError(
                f"the phase freeze64 was asked of a network of {self.config.resolution} pixels, expected more than "
                f"{TRUNK}: grow it first, or train all of it"
            )
        return [
            parameter
            for side, block in self.blocks.items()
            for name, parameter in block.named_parameters()
            if int(side) > TRUNK or name.startswith("to_rgb.")
        ]

    def grow_from(self, smaller: Mapping[str, Tensor]) -> None:
        """Loads the state dict of a lower-resolution network: mapping and shared blocks; finer blocks stay as they are.

        Raises InputError if it has a tensor that the network lacks or has in another shape, or lacks one of a shared
        block.
        """
        own = self.state_dict()
        for name, tensor in smaller.items():
            if name not in own:
                raise InputError(
                    f"the smaller network has {name}, which the larger one lacks: give one of the same kind, with "
                    "fewer resolutions and an RGB layer at each"
                )
            if tensor.shape != own[name].shape:
                raise InputError(
                    f"{name} has shape {tuple(tensor.shape)} in the smaller network and {tuple(own[name].shape)} in "
                    "the larger one: give both the same widths"
                )
        known = {int(match[1]) for name in smaller if (match := re.match(r"blocks\.(\d+)\.", name))}
        for name in own.keys() - smaller.keys():
            match = re.match(r"blocks\.(\d+)\.", name)
            if match is None or int(match[1]) <= max(known, default=0):
                raise InputError(f"the smaller network lacks {name}: give its whole state dict")
        self.load_state_dict(own | dict(smaller))


class StyleGanTGenerator(GanGenerator):
    """A trained StyleGAN-T, see GanGenerator."""

    family, network_class, config_class = "stylegan-t", StyleGanT, StyleGanTConfig

    @classmethod
    def for_test(cls) -> Self:
        """16 pixels, 16 channels, text of 32 numbers."""
        config = StyleGanTConfig(
            resolution=16, condition_width=32, latent_width=16, channel_max=16, residual_blocks=1, groups=4
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = StyleGanT(config)
            text_encoder = tiny_text_encoder()
        return cls(network, text_encoder)
