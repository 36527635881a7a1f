"""The parts of a StyleNAT: modulated blocks of neighbourhood attention, the step to twice the size, the way to RGB.

Maps are kept with channels last, as linear layers and attention want them. Walton et al. 2022, after StyleSwin (Zhang
et al. 2022).

B batch, C channels, N heads, E head width, W style width, H W map, b side of a bias table, 3 RGB.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.gan.layers import EqualLinear, fir_kernel, upsample
from star.generators.stylenat.neighborhood import partitioned_attention, split_heads


class Modulation(nn.Module):
    """Each channel of a picture normalised over its places, then scaled and shifted by the style (Huang & Belongie
    2017). The style's own start is 0 for both, as released."""

    def __init__(self, channels: int, style_width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.style = EqualLinear(style_width, 2 * channels)
        self.eps = eps

    def forward(self, x_BHWC: Tensor, w_BW: Tensor) -> Tensor:
        gamma_BC, beta_BC = self.style(w_BW).to(x_BHWC.dtype).chunk(2, dim=1)
        variance, mean = torch.var_mean(x_BHWC, dim=(1, 2), correction=0, keepdim=True)
        gain = gamma_BC[:, None, None] * (variance + self.eps).rsqrt()
        return torch.addcmul(beta_BC[:, None, None], x_BHWC - mean, gain)


class PartitionedAttention(nn.Module):
    """Neighbourhood attention whose heads fall into groups, each with its kernel, dilation and, perhaps, bias table."""

    def __init__(
        self,
        channels: int,
        heads: int,
        kernels: Sequence[int],
        dilations: Sequence[int],
        *,
        bias: bool = True,
        position_bias: bool = True,
    ) -> None:
        """bias: of queries, keys and values. position_bias: a table for each group, of the offsets in its windows."""
        super().__init__()
        self.heads, self.kernels, self.dilations = heads, tuple(kernels), tuple(dilations)
        self.qkv, self.projection = nn.Linear(channels, 3 * channels, bias=bias), nn.Linear(channels, channels)
        groups = split_heads(heads, len(kernels))
        self.tables = nn.ParameterList(
            torch.empty(count, 2 * kernel - 1, 2 * kernel - 1)
            for count, kernel in zip(groups, kernels, strict=True)
            if position_bias
        )

    def forward(self, x_BHWC: Tensor) -> Tensor:
        qkv_BHW3NE = self.qkv(x_BHWC).unflatten(3, (3, self.heads, -1))
        query, key, value = qkv_BHW3NE.permute(3, 0, 4, 1, 2, 5).unbind(0)
        tables = list(self.tables) or None
        attended_BNHWE = partitioned_attention(
            query, key, value, kernels=self.kernels, dilations=self.dilations, tables=tables
        )
        return self.projection(attended_BNHWE.permute(0, 2, 3, 1, 4).flatten(3))


class Block(nn.Module):
    """Attention and a feed-forward network, both around a skip, both behind a modulation by the same style."""

    def __init__(self, attention: PartitionedAttention, style_width: int, hidden: int) -> None:
        super().__init__()
        channels = attention.projection.out_features
        self.before_attention = Modulation(channels, style_width)
        self.attention = attention
        self.before_mlp = Modulation(channels, style_width)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x_BHWC: Tensor, w_BW: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self.attention(self.before_attention(x_BHWC, w_BW))
        return x_BHWC + self.mlp(self.before_mlp(x_BHWC, w_BW))


class Upsampling(nn.Module):
    """Twice the size by bilinear interpolation, then other channels, then waves that tell each place where it is."""

    waves_HWC: Tensor

    def __init__(self, channels: int, after: int, side: int) -> None:
        """side: pixels after the step."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduction = nn.Linear(channels, after, bias=False)
        self.alpha = nn.Parameter(torch.empty(1))  # strength of the waves
        self.register_buffer("waves_HWC", waves(side, side, after), persistent=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = F.interpolate(x_BHWC.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=False)
        x_BHWC = self.reduction(self.norm(x_BCHW.permute(0, 2, 3, 1)))
        return x_BHWC + self.alpha * self.waves_HWC


class ToRgb(nn.Module):
    """A map's part of the picture, on top of the picture so far. It has two biases, as released."""

    kernel_kk: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight_3C11 = nn.Parameter(torch.empty(3, channels, 1, 1))
        self.conv_bias, self.bias_1311 = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(1, 3, 1, 1))
        self.register_buffer("kernel_kk", fir_kernel(), persistent=False)

    def forward(self, x_BHWC: Tensor, raw_B3HW: Tensor | None, grow: bool) -> Tensor:
        """raw_B3HW of the map's size. grow: the picture so far is of half that size."""
        bias = self.conv_bias + self.bias_1311.flatten()
        own_B3HW = F.linear(x_BHWC, self.weight_3C11.flatten(1), bias).permute(0, 3, 1, 2)
        if raw_B3HW is None:
            return own_B3HW
        return own_B3HW + (upsample(raw_B3HW, self.kernel_kk) if grow else raw_B3HW)


def waves(height: int, width: int, channels: int) -> Tensor:
    """(H, W, C): sines and cosines of the column in the first half of the channels, of the row in the second.

    Of C / 4 frequencies from 1 down to 1 / 10000 (Vaswani et al. 2017, §3.5); places count from 1.
    """
    count = channels // 4
    frequency = torch.exp(torch.arange(count) * (-math.log(10000) / (count - 1)))

    def axis(length: int) -> Tensor:
        angle = torch.arange(1, length + 1)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    column_WC = axis(width).expand(height, -1, -1)
    row_HC = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat([column_WC, row_HC], dim=2)
