"""The discriminator that StyleNAT is trained against: convolutions on features of the picture's wavelets (Zhang et al.
2022, StyleSwin, after Gal et al. 2021, SWAGAN).

    discriminator = WaveletDiscriminator(CONFIGS["ffhq-256"])
    logits = discriminator(raw_B3HW)

At each side, from half the picture's down to 4, the Haar wavelets of the picture, blurred and thinned out to twice that
side, are added to the features. A condition, class or text, adds the product of its embedding with the last features to
the logit (the "projection" of Miyato & Koyama 2018); nothing else is changed for it.

B batch, C channels, I O channels in and out, k kernel side, P condition width, H W pixels, 3 RGB.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.config import check_ranges
from star.generators.gan.layers import (
    EqualConv2d,
    EqualLinear,
    MinibatchDeviation,
    SpectralWeight,
    activated,
    downsample,
    fir_filter,
    fir_kernel,
    leaky,
)

SMALLEST = 4  # pixels, the last side


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveletConfig:
    """Sizes of the discriminator; the defaults are the released 256 pixels."""

    condition_width: int = 0  # of the text embedding, or the number of classes; 0 without a condition
    widths: tuple[int, ...] = (128, 512, 512, 512, 512, 512)  # channels at half the picture's side, a quarter, ..., 4
    spectral: bool = True  # weights of spectral norm 1; False: of equalised learning rate
    group: int = 4  # pictures that are compared with each other

    def __post_init__(self) -> None:
        check_ranges(self, condition_width=(-math.inf, 2**16), widths=(-math.inf, 2**14), group=(-math.inf, 2**16))
        if len(self.widths) > 11:
            raise InputError(f"{len(self.widths)} widths are given, expected at most 11: correct them")
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths are {self.widths}, expected at least one, all positive: correct them")
        if self.condition_width < 0 or self.group < 1:
            raise InputError(
                f"condition_width is {self.condition_width} and group {self.group}, expected at least 0 and 1: correct "
                "them"
            )

    @property
    def resolution(self) -> int:
        """Side of a picture in pixels."""
        return SMALLEST << len(self.widths)

    def build(self) -> "WaveletDiscriminator":
        """The discriminator with fresh weights."""
        return WaveletDiscriminator(self)


_FFHQ_256 = WaveletConfig()
CONFIGS: dict[str, WaveletConfig] = {
    "ffhq-256": _FFHQ_256,
    "ffhq-1024": replace(_FFHQ_256, widths=(32, 128, 256, *(512,) * 5)),
    "emoji-64": WaveletConfig(condition_width=256, widths=(48, 96, 96, 96), spectral=False),
    "test": WaveletConfig(condition_width=32, widths=(8, 16)),
}


def haar(image_BCHW: Tensor) -> Tensor:
    """(B, 4C, H/2, W/2): of each 2 x 2 pixels half their sum, top minus bottom, left minus right, and both.

    All channels of one kind, then of the next. The transformation is orthogonal. Gal et al. 2021, §3.
    """
    top, bottom = image_BCHW[:, :, ::2], image_BCHW[:, :, 1::2]
    low, high = top + bottom, top - bottom
    kinds = [rows[..., ::2] + sign * rows[..., 1::2] for sign in (1, -1) for rows in (low, high)]
    return torch.cat(kinds, dim=1) / 2


class SpectralConv2d(SpectralWeight):
    """A convolution with a weight of spectral norm 1; its bias starts at 0, the weight as torch's own does."""

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int = 0) -> None:
        drawn = nn.Conv2d(inputs, outputs, side)
        super().__init__(drawn.weight, nn.Parameter(torch.zeros(outputs)))
        self.stride, self.padding = stride, padding

    def forward(self, x_BIHW: Tensor) -> Tensor:
        weight_OIkk = self.weight / self.norm()
        return F.conv2d(x_BIHW, weight_OIkk, self.bias, stride=self.stride, padding=self.padding)


class SpectralLinear(SpectralWeight):
    """The same without space."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs).weight, nn.Parameter(torch.zeros(outputs)))

    def forward(self, x_BI: Tensor) -> Tensor:
        return F.linear(x_BI, self.weight / self.norm(), self.bias)


class Stage(nn.Module):
    """The wavelets' part of the features at one side, then two convolutions, the second to half the side."""

    kernel_kk: Tensor

    def __init__(self, inputs: int, outputs: int, spectral: bool) -> None:
        super().__init__()
        convolution = SpectralConv2d if spectral else EqualConv2d
        self.from_rgb = convolution(12, inputs, 1)
        self.first = convolution(inputs, inputs, 3, padding=1)
        self.second = convolution(inputs, outputs, 3, stride=2)
        self.register_buffer("kernel_kk", fir_kernel(), persistent=False)

    def forward(self, x_BCHW: Tensor | None, image_B3HW: Tensor) -> Tensor:
        """image: of twice the features' side. x: None before the first stage."""
        own_BCHW = activated(self.from_rgb, haar(image_B3HW))
        x_BCHW = activated(self.first, own_BCHW if x_BCHW is None else x_BCHW + own_BCHW)
        return activated(self.second, fir_filter(x_BCHW, self.kernel_kk, pad=(2, 2)))


class WaveletDiscriminator(nn.Module):
    """Raw pictures to one logit each."""

    kernel_kk: Tensor

    def __init__(self, config: WaveletConfig) -> None:
        super().__init__()
        self.config = config
        widths, spectral = config.widths, config.spectral
        convolution, linear = (SpectralConv2d, SpectralLinear) if spectral else (EqualConv2d, EqualLinear)
        self.stages = nn.ModuleList(Stage(a, b, spectral) for a, b in pairwise(widths))
        self.from_rgb = convolution(12, widths[-1], 1)
        self.deviation = MinibatchDeviation(config.group)
        self.last = convolution(widths[-1] + 1, widths[-1], 3, padding=1)
        self.hidden = linear(widths[-1] * SMALLEST**2, widths[-1])
        self.output = linear(widths[-1], 1)
        self.embedding = EqualLinear(config.condition_width, widths[-1]) if config.condition_width else None
        self.register_buffer("kernel_kk", fir_kernel(), persistent=False)

    def forward(self, raw_B3HW: Tensor, condition_BP: Tensor | None = None) -> Tensor:
        """logits (B, 1), at least float32.

        The released code carries the wavelets from stage to stage and turns them back into a picture to thin it out;
        since they are orthogonal, the picture itself does as well. Raises ValueError for pictures of another size, if
        a condition is missing, or given to a network without one, and unless the batch is a multiple of the group, or
        smaller.
        """
        side = self.config.resolution
        if raw_B3HW.shape[1:] != (3, side, side):
            raise ValueError(f"pictures have shape {tuple(raw_B3HW.shape[1:])}, expected (3, {side}, {side})")
        if (condition_BP is None) != (self.embedding is None):
            raise ValueError("a conditional discriminator needs a condition, and one without takes none")
        x_BCHW: Tensor | None = None
        for stage in self.stages:
            x_BCHW = stage(x_BCHW, raw_B3HW)
            raw_B3HW = downsample(raw_B3HW, self.kernel_kk)
        own_BCHW = activated(self.from_rgb, haar(raw_B3HW))
        x_BCHW = self.deviation(own_BCHW if x_BCHW is None else x_BCHW + own_BCHW)
        hidden_BC = leaky(self.hidden(leaky(self.last(x_BCHW)).flatten(1)))
        logits = self.output(hidden_BC)
        if self.embedding is not None:
            products_BC = hidden_BC * self.embedding(condition_BP)
            logits = logits + products_BC.sum(dim=1, keepdim=True) / math.sqrt(products_BC.shape[1])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
