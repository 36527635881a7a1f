"""The layers of Styleformer: attention with weights that a style modulates, its way to RGB, and the block of both.

A style scales channels before the normalisation, not after it, and every weight is demodulated as a convolution of
StyleGAN2 is. A block has neither an MLP nor a residual around it: what passes by the attention is the values
themselves, through a weight of their own. Park and Kim 2022, §3.

B batch, W style width, C channels, O output channels, n tokens (pixels, row by row), k projected tokens, N heads,
d channels of a head, H W pixels, 3 RGB.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.gan.generator import NoiseMode
from star.generators.gan.layers import EqualLinear, demodulation, fir_kernel, leaky, upsample


def demodulated(x_BnC: Tensor, weight_OC: Tensor, style_BC: Tensor) -> Tensor:
    """(B, n, O): a linear layer on tokens that `style_BC` has scaled before, each output back at unit variance."""
    return F.linear(x_BnC, weight_OC) * demodulation(weight_OC, style_BC)[:, None]


class StyleAttention(nn.Module):
    """Self-attention over all pixels, modulated twice: what queries, keys and values read, and what is written.

    The start of weights is in `Styleformer.init_weights`.
    """

    noise_n1: Tensor

    def __init__(
        self, width: int, outputs: int, style: int, *, tokens: int, heads: int, projection: int = 0, clamp: float
    ) -> None:
        """projection: number of tokens that keys and values are projected to (Linformer, Wang et al. 2020); 0: off."""
        super().__init__()
        self.heads, self.clamp = heads, clamp
        self.affine = EqualLinear(style, 2 * width, bias_start=1.0)
        self.query = nn.Parameter(torch.empty(width, width))
        self.key = nn.Parameter(torch.empty(width, width))
        self.value = nn.Parameter(torch.empty(width, width))
        self.output = nn.Parameter(torch.empty(outputs, width))
        self.skip = nn.Parameter(torch.empty(outputs, width))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.projection = nn.Parameter(torch.empty(projection, tokens)) if projection else None  # one for all heads
        self.noise_strength = nn.Parameter(torch.empty(()))
        self.register_buffer("noise_n1", torch.empty(tokens, 1))

    def forward(self, x_BnC: Tensor, w_BW: Tensor, noise: NoiseMode = "random") -> Tensor:
        """(B, n, O). Random noise comes from torch's global generator."""
        read_BC, write_BC = self.affine(w_BW).chunk(2, dim=1)
        x_BnC = F.layer_norm(x_BnC * read_BC[:, None], x_BnC.shape[2:])
        query_BnC, key_BnC, value_BnC = (
            demodulated(x_BnC, weight, read_BC) for weight in (self.query, self.key, self.value)
        )
        value_BnC = value_BnC * write_BC[:, None]
        mixed_BnC = self.attend(query_BnC, key_BnC, value_BnC)
        y_BnO = demodulated(mixed_BnC, self.output, write_BC) + demodulated(value_BnC, self.skip, write_BC)
        if noise == "random":
            y_BnO = y_BnO + torch.randn_like(y_BnO[:, :, :1]) * self.noise_strength
        elif noise == "const":
            y_BnO = y_BnO + self.noise_n1 * self.noise_strength
        return leaky(y_BnO + self.bias, gain=1.0, clamp=self.clamp)

    def attend(self, query_BnC: Tensor, key_BnC: Tensor, value_BnC: Tensor) -> Tensor:
        """(B, n, C). Written out, since torch's fused attention has no second derivative, which path length takes."""
        if self.projection is not None:
            key_BnC, value_BnC = self.projection @ key_BnC, self.projection @ value_BnC  # (B, k, C)
        query_BNnd, key_BNkd, value_BNkd = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query_BnC, key_BnC, value_BnC)
        )
        weight_BNnk = (query_BNnd * query_BNnd.shape[3] ** -0.5 @ key_BNkd.transpose(2, 3)).softmax(dim=3)
        return (weight_BNnk @ value_BNkd).transpose(1, 2).flatten(2)


class ToRgb(nn.Module):
    """Tokens to colours, demodulated too, unlike in StyleGAN2."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__()
        self.affine = EqualLinear(style, width, bias_start=1.0)
        self.weight = nn.Parameter(torch.empty(3, width))
        self.bias = nn.Parameter(torch.empty(3))

    def forward(self, x_BnC: Tensor, w_BW: Tensor) -> Tensor:
        """(B, n, 3)."""
        style_BC = self.affine(w_BW)
        return demodulated(x_BnC * style_BC[:, None], self.weight, style_BC) + self.bias


class Block(nn.Module):
    """One attention layer; the first of a resolution adds positions, the last adds to the picture and may grow."""

    kernel_kk: Tensor

    def __init__(
        self, attention: StyleAttention, widths: tuple[int, int, int], side: int, *, first: bool, last: bool, grow: bool
    ) -> None:
        """widths: of tokens before and after, and of styles. side: of the square of tokens."""
        super().__init__()
        before, after, style = widths
        self.side, self.grow = side, grow
        self.position_1nC = nn.Parameter(torch.empty(1, side * side, before)) if first else None
        self.attention = attention
        self.to_rgb = ToRgb(after, style) if last else None
        self.register_buffer("kernel_kk", fir_kernel(), persistent=False)

    def forward(
        self, x_BnC: Tensor, raw_B3HW: Tensor | None, w_BW: Tensor, rgb_BW: Tensor, noise: NoiseMode = "random"
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens, four times as many where it grows, and the picture so far (None before the first).

        rgb_BW: the style of the layer to RGB.
        """
        if self.position_1nC is not None:
            x_BnC = x_BnC + self.position_1nC
        x_BnC = self.attention(x_BnC, w_BW, noise)
        if self.to_rgb is not None:
            own_B3HW = self._as_picture(self.to_rgb(x_BnC, rgb_BW))
            raw_B3HW = own_B3HW if raw_B3HW is None else upsample(raw_B3HW, self.kernel_kk) + own_B3HW
        if self.grow:
            x_BnC = upsample(self._as_picture(x_BnC), self.kernel_kk).flatten(2).transpose(1, 2)
        return x_BnC, raw_B3HW

    def _as_picture(self, x_BnC: Tensor) -> Tensor:
        return x_BnC.transpose(1, 2).unflatten(2, (self.side, self.side))
