"""The discriminator of StyleGAN2-ADA (Karras et al. 2020, "Training Generative Adversarial Networks with Limited
Data"): convolutions that halve the picture until 4 x 4 are left, there the deviation within the batch, then one logit.

    discriminator = StyleGan2Discriminator(CONFIGS["celeba-64"])
    logits = discriminator(raw_B3HW)

A condition, class or text, is mapped to a vector, and the logit is its product with the picture's features (the
"projection" of Miyato and Koyama 2018).

B batch, C channels, P condition width, M width of the condition's vector, H W pixels, 3 RGB.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.config import check_ranges
from star.generators.gan import forms
from star.generators.gan.layers import (
    SQRT2,
    EqualConv2d,
    EqualLinear,
    MinibatchDeviation,
    activated,
    downsample,
    fir_filter,
    fir_kernel,
    leaky,
    normalize_second_moment,
)

SMALLEST = 4  # pixels; what cannot be halved further without going below it is the last side


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleGan2DiscriminatorConfig:
    """Sizes of the discriminator; the defaults are those that the released code chooses below 512 pixels."""

    resolution: int = 64  # pixels; 4, or a multiple of 2 as often as it can be halved
    condition_width: int = 0  # of the text embedding, or the number of classes; 0 without a condition
    architecture: Literal["resnet", "orig"] = "resnet"  # with a skip around each block, or without
    channel_base: int = 16384  # at side s there are min(channel_base / s, channel_max) channels
    channel_max: int = 512
    group: int = 4  # pictures that are compared with each other
    group_channels: int = 1  # channels that tell how much they differ
    mapping_layers: int = 8  # of the condition
    clamp: float | None = 256.0  # of activations; None: off

    def __post_init__(self) -> None:
        names = ("condition_width", "group", "group_channels", "channel_max")
        check_ranges(
            self,
            resolution=(-math.inf, 2**12),
            channel_base=(-math.inf, 2**24),
            mapping_layers=(-math.inf, 64),
            clamp=(1e-6, 1e9),
            **dict.fromkeys(names, (-math.inf, 2**16)),
        )
        if self.resolution < SMALLEST or any(side % 2 for side in self.sides[:-1]):
            raise InputError(
                f"resolution is {self.resolution}, expected a number that can be halved down to between 4 and 7: "
                "correct it"
            )
        if self.architecture not in ("resnet", "orig"):
            raise InputError(f"architecture is {self.architecture!r}, expected resnet or orig: correct it")
        for name in ("channel_base", "channel_max", "group", "group_channels", "mapping_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1: correct it")
        if self.condition_width < 0:
            raise InputError(f"condition_width is {self.condition_width}, expected at least 0: correct it")
        if self.channels(self.sides[-1]) % self.group_channels:
            raise InputError(
                f"group_channels is {self.group_channels}, expected a divisor of the {self.channels(self.sides[-1])} "
                "channels at the end: correct it"
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """Of feature maps in pixels: resolution, half of it, ..., the last at least 4."""
        sides = [self.resolution]
        while sides[-1] // 2 >= SMALLEST:
            sides.append(sides[-1] // 2)
        return tuple(sides)

    def channels(self, side: int) -> int:
        return max(min(self.channel_base // side, self.channel_max), 1)

    def build(self) -> "StyleGan2Discriminator":
        """The discriminator with fresh weights."""
        return StyleGan2Discriminator(self)


_AUTO = StyleGan2DiscriminatorConfig()
_CIFAR = StyleGan2DiscriminatorConfig(resolution=32, architecture="orig", channel_base=32768, group=32)
# By the names of styleformer.CONFIGS. "stl10-48" halves to 6 x 6; how the authors did it no source at hand tells.
CONFIGS: dict[str, StyleGan2DiscriminatorConfig] = {
    "cifar10": _CIFAR,
    "cifar10-classes": replace(_CIFAR, condition_width=10),
    "stl10-48": replace(_AUTO, resolution=48),
    "celeba-64": _AUTO,
    "lsun-church-128": replace(_AUTO, resolution=128),
    "emoji-64": replace(_AUTO, condition_width=256, channel_base=1024, channel_max=96, mapping_layers=2),
    "test": StyleGan2DiscriminatorConfig(
        resolution=16, condition_width=32, channel_base=128, channel_max=16, mapping_layers=2
    ),
}


class Halving(nn.Module):
    """A convolution, then one that blurs and halves; with a skip both ways are scaled by sqrt(1/2)."""

    kernel_kk: Tensor

    def __init__(self, inputs: int, outputs: int, *, skip: bool, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.first = EqualConv2d(inputs, inputs, 3, padding=1)
        self.second = EqualConv2d(inputs, outputs, 3, stride=2)
        self.skip = EqualConv2d(inputs, outputs, 1, bias=False) if skip else None
        self.register_buffer("kernel_kk", fir_kernel(), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outputs, H/2, W/2)."""
        share = 1.0 if self.skip is None else math.sqrt(0.5)
        y = activated(self.first, x_BCHW, clamp=self.clamp)
        y = fir_filter(y, self.kernel_kk, pad=(2, 2))
        clamp = None if self.clamp is None else self.clamp * share
        y = activated(self.second, y, gain=SQRT2 * share, clamp=clamp)
        if self.skip is None:
            return y
        skipped = downsample(x_BCHW, self.kernel_kk)
        return y + (self.skip(skipped, share) if forms.fast() else self.skip(skipped) * share)


class StyleGan2Discriminator(nn.Module):
    """See the module. All weights start from N(0, 1), biases from 0, as equalised layers do."""

    def __init__(self, config: StyleGan2DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels(side) for side in config.sides]
        side, width = config.sides[-1], widths[-1]
        self.from_rgb = EqualConv2d(3, widths[0], 1)
        self.blocks = nn.ModuleList(
            Halving(a, b, skip=config.architecture == "resnet", clamp=config.clamp) for a, b in pairwise(widths)
        )
        self.deviation = MinibatchDeviation(config.group, config.group_channels)
        self.last = EqualConv2d(width + config.group_channels, width, 3, padding=1)
        self.hidden = EqualLinear(width * side * side, width)
        self.output = EqualLinear(width, width if config.condition_width else 1)
        self.embedding = EqualLinear(config.condition_width, width) if config.condition_width else None
        layers = config.mapping_layers if config.condition_width else 0
        self.mapping = nn.ModuleList(EqualLinear(width, width, lr_multiplier=0.01) for _ in range(layers))

    def forward(self, raw_B3HW: Tensor, condition_BP: Tensor | None = None) -> Tensor:
        """logits (B, 1), at least float32.

        Raises ValueError for pictures of another size, if a condition is missing, or given to a network without one,
        and unless the batch is a multiple of the group, or smaller.
        """
        side = self.config.resolution
        if raw_B3HW.shape[1:] != (3, side, side):
            raise ValueError(f"pictures have shape {tuple(raw_B3HW.shape[1:])}, expected (3, {side}, {side})")
        if (condition_BP is None) != (self.embedding is None):
            raise ValueError("a conditional discriminator needs a condition, and one without takes none")
        x_BCHW = activated(self.from_rgb, raw_B3HW, clamp=self.config.clamp)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        x_BCHW = activated(self.last, self.deviation(x_BCHW), clamp=self.config.clamp)
        logits_BM = self.output(leaky(self.hidden(x_BCHW.flatten(1))))
        logits_BM = logits_BM.to(torch.promote_types(logits_BM.dtype, torch.float32))
        if condition_BP is None:
            return logits_BM
        return (logits_BM * self.condition(condition_BP)).sum(dim=1, keepdim=True) / math.sqrt(logits_BM.shape[1])

    def condition(self, condition_BP: Tensor) -> Tensor:
        """The condition's vector, (B, M)."""
        assert self.embedding is not None  # seen to by forward
        x_BM = normalize_second_moment(self.embedding(condition_BP))
        for layer in self.mapping:
            x_BM = leaky(layer(x_BM))
        return x_BM
