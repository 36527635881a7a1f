"""The layers of StyleGAN-T's synthesis network: second-order styles, Fourier input, convolutions, residual ones, RGB.

They start as follows; what scales a weight when it is used is in brackets.

    styles              weight N(0, 1) [1 / sqrt(W)], bias 1
    convolution         weight N(0, 1) [demodulated], bias 0, noise strength 0, noise map N(0, 1)
    residual            as above; layer scale 1e-5, group norm 1 and 0
    RGB                 weight 0.1 N(0, 1) [1 / sqrt(C)], bias 0
    Fourier input       weight N(0, 1) [1 / sqrt(C)]; its affine weight 0, bias (1, 0, 0, 0), which is no transformation

B batch, W style width, I input channels, O output channels, C channels, s style slots of one block, S of all, H W
pixels, 3 RGB.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.gan import forms
from star.generators.gan.generator import NoiseMode
from star.generators.gan.layers import (
    SQRT2,
    EqualLinear,
    cut,
    demodulation,
    fir_kernel,
    leaky,
    modulated_conv,
    upsample,
)

FIRST_SIDE = 8  # pixels of the coarsest block


class SecondOrderStyle(nn.Module):
    """Scales of input channels that are a polynomial of second order in w: a * b + c of three affine maps.

    Sauer et al. 2023, §3.1 ("stronger conditioning").
    """

    def __init__(self, style_width: int, channels: int) -> None:
        super().__init__()
        self.affine = EqualLinear(style_width, 3 * channels, bias_start=1.0)

    def forward(self, w_BW: Tensor) -> Tensor:
        """style_BC."""
        factor_BC, other_BC, offset_BC = self.affine(w_BW).chunk(3, dim=1)
        return factor_BC * other_BC + offset_BC


class FourierInput(nn.Module):
    """The coarsest feature map: sines of frequencies that w turns and shifts (Karras et al. 2021, §3.1 and §F.1).

    Frequencies are drawn once, densest within `bandwidth` cycles per picture. `transform` is the user's own, on top.
    """

    frequencies_C2: Tensor
    phases_C: Tensor
    transform_33: Tensor

    def __init__(self, style_width: int, channels: int, side: int = FIRST_SIDE, bandwidth: float = 2.0) -> None:
        super().__init__()
        self.side, self.bandwidth = side, bandwidth
        drawn_C2 = torch.randn(channels, 2)
        radius_C1 = drawn_C2.square().sum(dim=1, keepdim=True).sqrt()
        self.register_buffer("frequencies_C2", drawn_C2 / (radius_C1 * radius_C1.square().exp() ** 0.25) * bandwidth)
        self.register_buffer("phases_C", torch.rand(channels) - 0.5)
        self.register_buffer("transform_33", torch.eye(3))
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = EqualLinear(style_width, 4)
        nn.init.zeros_(self.affine.weight)
        assert self.affine.bias is not None
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, w_BW: Tensor) -> Tensor:
        """x_BCHW, computed in full precision."""
        with torch.autocast(w_BW.device.type, enabled=False):
            return self._waves(w_BW.to(self.weight.dtype))

    def _waves(self, w_BW: Tensor) -> Tensor:
        placement_B33 = self._placement(w_BW) @ self.transform_33
        frequencies_BC2 = self.frequencies_C2 @ placement_B33[:, :2, :2]
        phases_BC = self.phases_C + (self.frequencies_C2 @ placement_B33[:, :2, 2:]).squeeze(2)
        # Frequencies that the user's transform brings near what `side` pixels can hold fade out.
        beyond_BC = (frequencies_BC2.square().sum(dim=2).sqrt() - self.bandwidth) / (self.side / 2 - self.bandwidth)
        amplitudes_BC = (1 - beyond_BC).clamp(0, 1)

        centres = (torch.arange(self.side, device=w_BW.device, dtype=w_BW.dtype) + 0.5) / self.side - 0.5
        grid_HW2 = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)  # (x, y)
        angles_BHWC = torch.einsum("hwx,bcx->bhwc", grid_HW2, frequencies_BC2) + phases_BC[:, None, None]
        waves_BHWC = (2 * math.pi * angles_BHWC).sin() * amplitudes_BC[:, None, None]
        return F.linear(waves_BHWC, self.weight / math.sqrt(self.weight.shape[1])).permute(0, 3, 1, 2).contiguous()

    def _placement(self, w_BW: Tensor) -> Tensor:
        """(B, 3, 3): a rotation after a translation, from four numbers that are scaled so that the rotation is one."""
        t_B4 = self.affine(w_BW)
        cosine, sine, right, down = (t_B4 / t_B4[:, :2].square().sum(dim=1, keepdim=True).sqrt()).unbind(dim=1)
        zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
        turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], dim=1).reshape(-1, 3, 3)
        shift = torch.stack([one, zero, -right, zero, one, -down, zero, zero, one], dim=1).reshape(-1, 3, 3)
        return turn @ shift


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation; `up` makes the picture twice as large."""

    noise_HW: Tensor
    kernel_kk: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        style_width: int,
        *,
        up: bool = False,
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        """side: of the output, in pixels. clamp: the largest activation for a gain of 1. gain: of both."""
        super().__init__()
        self.up, self.gain = up, gain
        self.clamp = None if clamp is None else clamp * gain
        self.style = SecondOrderStyle(style_width, inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_HW", torch.randn(side, side))
        self.register_buffer("kernel_kk", fir_kernel(), persistent=False)

    def forward(self, x_BIHW: Tensor, w_BW: Tensor, noise: NoiseMode = "random") -> Tensor:
        """x_BOHW, or twice as high and wide."""
        if forms.fast():
            return self._fast(x_BIHW, self.style(w_BW), noise)
        x_BOHW = modulated_conv(x_BIHW, self.weight, self.style(w_BW), up=self.up, kernel_kk=self.kernel_kk)
        if noise == "random":
            x_BOHW = x_BOHW + torch.randn_like(x_BOHW[:, :1]) * self.noise_strength
        elif noise == "const":
            x_BOHW = x_BOHW + self.noise_HW * self.noise_strength
        x_BOHW = x_BOHW + self.bias[:, None, None].to(x_BOHW.dtype)
        return leaky(x_BOHW, gain=SQRT2 * self.gain, clamp=self.clamp)

    def _fast(self, x_BIHW: Tensor, style_BI: Tensor, noise: NoiseMode) -> Tensor:
        """The same but for rounding: the gain goes into factors that are small, which spares passes over the map."""
        gain = SQRT2 * self.gain
        x_BOHW = modulated_conv(x_BIHW, self.weight, style_BI, demodulate=False, up=self.up, kernel_kk=self.kernel_kk)
        factor_BO11 = (demodulation(self.weight, style_BI) * gain).to(x_BOHW.dtype)[:, :, None, None]
        bias_O11 = (self.bias * gain).to(x_BOHW.dtype)[:, None, None]
        if noise == "none":
            x_BOHW = torch.addcmul(bias_O11, x_BOHW, factor_BO11)
        else:
            map_HW = torch.randn_like(x_BOHW[:, :1]) if noise == "random" else self.noise_HW.to(x_BOHW.dtype)
            moved = map_HW * (self.noise_strength * gain).to(x_BOHW.dtype)
            x_BOHW = torch.addcmul(moved, x_BOHW, factor_BO11) + bias_O11
        x_BOHW = F.leaky_relu_(x_BOHW, 0.2)
        return x_BOHW if self.clamp is None else cut(x_BOHW, self.clamp)


class ResidualConv(nn.Module):
    """sqrt(2) * (n + layer scale * conv(n)) of the group-normalised input n (Sauer et al. 2023, §3.1).

    As released: what skips is normalised too, and the sum is multiplied by sqrt(2), not divided.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        style_width: int,
        *,
        groups: int,
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.conv = StyledConv(channels, channels, side, style_width, gain=gain, clamp=clamp)
        self.layer_scale_1C11 = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))

    def forward(self, x_BCHW: Tensor, w_BW: Tensor, noise: NoiseMode = "random") -> Tensor:
        normed_BCHW = self.norm(x_BCHW)
        added_BCHW = self.conv(normed_BCHW, w_BW, noise)
        if forms.fast():  # one pass, and in the type of the map
            scale_1C11 = (SQRT2 * self.layer_scale_1C11).to(added_BCHW.dtype)
            return torch.addcmul(SQRT2 * normed_BCHW, added_BCHW, scale_1C11)
        return SQRT2 * (normed_BCHW + self.layer_scale_1C11 * added_BCHW)


class ToRgb(nn.Module):
    """Features to a contribution to the picture: a modulated 1x1 convolution without demodulation or noise, cut at
    +-`clamp`."""

    def __init__(self, channels: int, style_width: int, *, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.style = SecondOrderStyle(style_width, channels)
        self.weight = nn.Parameter(0.1 * torch.randn(3, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.scale = 1 / math.sqrt(channels)

    def forward(self, x_BCHW: Tensor, w_BW: Tensor) -> Tensor:
        """rgb_B3HW."""
        rgb_B3HW = modulated_conv(x_BCHW, self.weight, self.style(w_BW) * self.scale, demodulate=False)
        rgb_B3HW = rgb_B3HW + self.bias[:, None, None].to(rgb_B3HW.dtype)
        return rgb_B3HW if self.clamp is None else cut(rgb_B3HW, self.clamp)


class Block(nn.Module):
    """All layers of one resolution: Fourier input or upsampling convolution, pairs of plain and residual ones, RGB."""

    kernel_kk: Tensor

    def __init__(
        self,
        inputs: int | None,
        outputs: int,
        side: int,
        style_width: int,
        *,
        pairs: int,
        groups: int,
        to_rgb: bool,
        clamp: float | None = None,
    ) -> None:
        """inputs: channels of the block before; None in the coarsest one. pairs: residual convolutions. clamp: of
        every convolution and of the RGB layer; the Fourier input has none."""
        super().__init__()
        self.first: FourierInput | StyledConv
        if inputs is None:
            self.first = FourierInput(style_width, outputs, side)
        else:
            self.first = StyledConv(inputs, outputs, side, style_width, up=True, clamp=clamp)
        self.layers = nn.ModuleList()
        for _ in range(pairs):
            self.layers.append(StyledConv(outputs, outputs, side, style_width, gain=1 / SQRT2, clamp=clamp))
            self.layers.append(ResidualConv(outputs, side, style_width, groups=groups, gain=1 / SQRT2, clamp=clamp))
        self.to_rgb = ToRgb(outputs, style_width, clamp=clamp) if to_rgb else None
        self.register_buffer("kernel_kk", fir_kernel(), persistent=False)

    @property
    def convolutions(self) -> int:
        """Slots that this block takes for itself; its RGB layer reads the one after, which the next block reads too."""
        return 1 + len(self.layers)

    def forward(
        self, x_BIHW: Tensor | None, raw_B3HW: Tensor | None, w_BsW: Tensor, noise: NoiseMode = "random"
    ) -> tuple[Tensor, Tensor | None]:
        """x_BOHW and the picture so far. w_BsW: s = convolutions, and one more if there is an RGB layer."""
        styles = iter(w_BsW.unbind(dim=1))
        if isinstance(self.first, FourierInput):
            x_BOHW = self.first(next(styles))
        else:
            x_BOHW = self.first(x_BIHW, next(styles), noise)
        for layer in self.layers:
            x_BOHW = layer(x_BOHW, next(styles), noise)
        if raw_B3HW is not None:
            with torch.autocast(raw_B3HW.device.type, enabled=False):
                raw_B3HW = upsample(raw_B3HW, self.kernel_kk)
        if self.to_rgb is not None:
            rgb_B3HW = self.to_rgb(x_BOHW, next(styles))
            rgb_B3HW = rgb_B3HW.to(torch.promote_types(rgb_B3HW.dtype, torch.float32))  # the sum is never rounded
            raw_B3HW = rgb_B3HW if raw_B3HW is None else raw_B3HW + rgb_B3HW
        return x_BOHW, raw_B3HW
