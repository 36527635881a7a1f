"""Layers that the style-based GANs share, each written once: equalised learning rate, mapping, modulation, resampling.

B batch, Z latent width, W style width, P condition width, I input channels, O output channels, C channels, H W pixels,
k kernel side.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.gan import forms

SQRT2 = math.sqrt(2.0)
FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


def normalize_second_moment(x_BZ: Tensor, eps: float = 1e-8) -> Tensor:
    """Each row divided by its root mean square; "pixel norm" of the mapping networks (Karras et al. 2018, §4.2)."""
    return x_BZ * (x_BZ.square().mean(dim=1, keepdim=True) + eps).rsqrt()


def leaky(x: Tensor, *, gain: float = SQRT2, slope: float = 0.2, clamp: float | None = None) -> Tensor:
    """Leaky ReLU, times `gain`, cut at +-`clamp`: the activation of the StyleGAN line."""
    x = F.leaky_relu(x, slope)
    if gain != 1.0:
        x = x * gain
    return x if clamp is None else cut(x, clamp)


def cut(x: Tensor, clamp: float) -> Tensor:
    """x cut at +-`clamp`. The fast form looks whether anything is to be cut, which is hardly ever so, and leaves out
    three passes of the gradient where nothing is."""
    if forms.fast() and max(abs(float(end)) for end in x.detach().aminmax()) <= clamp:
        return x
    return x.clamp(-clamp, clamp)


class EqualLinear(nn.Module):
    """A linear layer whose weights are stored with unit variance and scaled when used (Karras et al. 2018, §4.1).

    y = x (m W / sqrt(I))^T + m b with m = `lr_multiplier`; W is stored from N(0, 1) / m, b from `bias_start` / m.
    """

    def __init__(
        self, inputs: int, outputs: int, *, lr_multiplier: float = 1.0, bias: bool = True, bias_start: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias_start / lr_multiplier)) if bias else None
        self.lr_multiplier = lr_multiplier
        self.scale = lr_multiplier / math.sqrt(inputs)

    def forward(self, x_BI: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.lr_multiplier
        return F.linear(x_BI, self.weight * self.scale, bias)


class EqualConv2d(nn.Module):
    """A convolution with weights scaled by 1 / sqrt(fan in) when used; stored ones start at N(0, 1), biases at 0."""

    def __init__(
        self, inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * side**2)
        self.stride, self.padding = stride, padding

    def forward(self, x_BIHW: Tensor, gain: float = 1.0) -> Tensor:
        """gain: of weight and bias."""
        bias: Tensor | None = self.bias
        if bias is not None and gain != 1.0:
            bias = bias * gain
        weight_OIkk = self.weight * (self.scale * gain)
        return F.conv2d(x_BIHW, weight_OIkk, bias, stride=self.stride, padding=self.padding)


def activated(
    layer: Callable[..., Tensor], x_BIHW: Tensor, *, gain: float = SQRT2, clamp: float | None = None
) -> Tensor:
    """A convolution, then `leaky`. The fast form has the gain in the weights of an equalised one: a pass less."""
    if forms.fast() and isinstance(layer, EqualConv2d):
        x_BOHW = F.leaky_relu_(layer(x_BIHW, gain), 0.2)
        return x_BOHW if clamp is None else cut(x_BOHW, clamp)
    return leaky(layer(x_BIHW), gain=gain, clamp=clamp)


class SpectralWeight(nn.Module):
    """A weight that is divided by its largest singular value when it is used (Miyato et al. 2018, §2.1).

    Its singular vectors are followed by one step of power iteration in each forward pass in training.
    """

    left_O: Tensor
    right_I: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Both parameters. weight: (O, I, ...), whose further axes count as inputs."""
        super().__init__()
        self.weight, self.bias = weight, bias
        outputs = weight.shape[0]
        self.register_buffer("left_O", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("right_I", F.normalize(torch.randn(weight.numel() // outputs), dim=0))

    def norm(self) -> Tensor:
        """The largest singular value as far as it is known, with a gradient; in training moves the vectors."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix_OI = self.weight.flatten(1)
            if self.training:
                with torch.no_grad():
                    self.right_I.copy_(F.normalize(matrix_OI.T @ self.left_O, dim=0, eps=1e-12))
                    self.left_O.copy_(F.normalize(matrix_OI @ self.right_I, dim=0, eps=1e-12))
            # Copies: a second forward pass before the first one's backward moves the vectors.
            return self.left_O.clone() @ matrix_OI @ self.right_I.clone()


def fir_kernel(taps: tuple[float, ...] = FIR_TAPS) -> Tensor:
    """The separable low-pass filter as a (k, k) kernel that sums to 1."""
    row = torch.tensor(taps)
    kernel = torch.outer(row, row)
    return kernel / kernel.sum()


def fir_filter(
    x_BCHW: Tensor,
    kernel_kk: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    pad: tuple[int, int] = (0, 0),
    gain: float = 1.0,
) -> Tensor:
    """Inserts zeros (`up`), pads with zeros (before, after) on both axes, convolves, and thins out (`down`).

    A true convolution, i.e. with the kernel turned round; every channel by itself. Karras et al. 2019, §B.
    """
    batch, channels, height, width = x_BCHW.shape
    if forms.fast():
        taps = tuple(kernel_kk.sum(dim=1).tolist())  # separable, of sum 1
        return forms.filter_by_products(x_BCHW, taps, up=up, down=down, pad=pad, gain=gain)
    if up > 1:
        wide = x_BCHW.new_zeros(batch, channels, height * up, width * up)
        wide[:, :, ::up, ::up] = x_BCHW
        x_BCHW = wide
    if pad != (0, 0):
        x_BCHW = F.pad(x_BCHW, (pad[0], pad[1], pad[0], pad[1]))
    weight = (kernel_kk * gain).flip(0, 1).to(x_BCHW.dtype).expand(channels, 1, *kernel_kk.shape)
    return F.conv2d(x_BCHW, weight, groups=channels, stride=down)


def upsample(x_BCHW: Tensor, kernel_kk: Tensor) -> Tensor:
    """Twice the size by zero insertion and FIR: (B, C, 2H, 2W)."""
    side = kernel_kk.shape[0]
    return fir_filter(x_BCHW, kernel_kk, up=2, pad=((side + 1) // 2, (side - 2) // 2), gain=4.0)


def downsample(x_BCHW: Tensor, kernel_kk: Tensor) -> Tensor:
    """Half the size by FIR: (B, C, H/2, W/2)."""
    side = kernel_kk.shape[0]
    return fir_filter(x_BCHW, kernel_kk, down=2, pad=((side - 1) // 2, (side - 2) // 2))


def demodulation(weight_OIkk: Tensor, style_BI: Tensor, eps: float = 1e-8) -> Tensor:
    """(B, O): what brings each output channel of a modulated weight back to unit length (Karras et al. 2020, Eq. 3).

    weight: (O, I) or (O, I, k, k).
    """
    power_OI = weight_OIkk.square().flatten(2).sum(dim=2) if weight_OIkk.ndim > 2 else weight_OIkk.square()
    return (style_BI.square() @ power_OI.T + eps).rsqrt()


def modulated_conv(
    x_BIHW: Tensor,
    weight_OIkk: Tensor,
    style_BI: Tensor,
    *,
    demodulate: bool = True,
    up: bool = False,
    kernel_kk: Tensor | None = None,
) -> Tensor:
    """A convolution whose weight is scaled per sample and input channel (Karras et al. 2020, §2.2), "same" padding.

    up: a transposed convolution of stride 2 with the weight as it is stored, then the low-pass filter `kernel_kk`, so
    the picture is twice as large. The style scales the input and the demodulation the output, which equals scaling the
    weight, and costs no copy of the weight per sample.
    """
    side = weight_OIkk.shape[-1]
    x_BIHW = x_BIHW * style_BI[:, :, None, None]
    if up:
        if kernel_kk is None:
            raise ValueError("an upsampling convolution needs its low-pass kernel")
        y_BOHW = F.conv_transpose2d(x_BIHW, weight_OIkk.transpose(0, 1), stride=2)  # (2H - 2 + k, ...)
        missing = kernel_kk.shape[0] + 1 - side  # pixels of padding that give twice the size
        y_BOHW = fir_filter(y_BOHW, kernel_kk, pad=((missing + 1) // 2, missing // 2), gain=4.0)
    else:
        y_BOHW = F.conv2d(x_BIHW, weight_OIkk, padding=side // 2)
    if demodulate:
        y_BOHW = y_BOHW * demodulation(weight_OIkk, style_BI)[:, :, None, None]
    return y_BOHW


class MappingNetwork(nn.Module):
    """Latents, and where there is one a condition, to styles (Karras et al. 2019, §2).

    z and the condition's embedding are each brought to unit second moment and concatenated; then `layers` equalised
    layers with leaky ReLU (the last without it where `activate_last` is False). `average_W` follows the mean of the
    outputs where `track` is called, for truncation.
    """

    average_W: Tensor

    def __init__(
        self,
        latent: int,
        width: int,
        layers: int,
        *,
        condition: int = 0,
        activate_last: bool = True,
        lr_multiplier: float = 0.01,
        average_decay: float = 0.995,
    ) -> None:
        super().__init__()
        self.latent, self.activate_last, self.average_decay = latent, activate_last, average_decay
        self.embedding = EqualLinear(condition, width) if condition else None
        widths = [latent + (width if condition else 0), *[width] * layers]
        self.layers = nn.ModuleList(EqualLinear(a, b, lr_multiplier=lr_multiplier) for a, b in pairwise(widths))
        self.register_buffer("average_W", torch.zeros(width))

    def forward(self, latent_BZ: Tensor, condition_BP: Tensor | None = None) -> Tensor:
        """w_BW. Raises ValueError if a condition is missing, or given to a network without one."""
        if (condition_BP is None) != (self.embedding is None):
            raise ValueError("a conditional mapping network needs a condition, and one without takes none")
        x = normalize_second_moment(latent_BZ)
        if self.embedding is not None:
            x = torch.cat([x, normalize_second_moment(self.embedding(condition_BP))], dim=1)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.activate_last or i + 1 < len(self.layers):
                x = leaky(x)
        return x

    @torch.no_grad()
    def track(self, w_BW: Tensor) -> None:
        """Moves the running mean towards a batch; trainers call it, a forward pass alone changes nothing."""
        self.average_W.lerp_(w_BW.detach().to(self.average_W.dtype).mean(dim=0), 1 - self.average_decay)

    @torch.no_grad()
    def mean_given(self, condition_BP: Tensor, latents: int = 256) -> Tensor:
        """mean_BW: of the styles under each condition, over latents that are always the same.

        What text is truncated towards: the running mean over all prompts would drop what a prompt says.
        """
        latent_NZ = torch.randn(latents, self.latent, generator=torch.Generator().manual_seed(0)).to(condition_BP)
        means = [self(latent_NZ, row_P.expand(latents, -1)).mean(dim=0) for row_P in condition_BP]
        return torch.stack(means)

    def truncate(self, w_BW: Tensor, truncation: float, towards_BW: Tensor | None = None) -> Tensor:
        """mean + truncation (w - mean), about the running mean or another one (Karras et al. 2019, §B)."""
        mean = self.average_W if towards_BW is None else towards_BW
        return mean + truncation * (w_BW - mean)


class MinibatchDeviation(nn.Module):
    """Appends channels that tell how much the pictures of a group differ (Karras et al. 2018, §3).

    Groups of `group` pictures (or the whole batch if it is smaller) interleave: picture i goes with i + B/group, ...
    """

    def __init__(self, group: int = 4, channels: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.group, self.channels, self.eps = group, channels, eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C + channels, H, W). Raises ValueError unless the batch is a multiple of the group."""
        batch, channels, height, width = x_BCHW.shape
        group = min(self.group, batch)
        if batch % group:
            raise ValueError(f"a batch of {batch} pictures is no multiple of the group of {group}: change either")
        parts = x_BCHW.reshape(group, batch // group, self.channels, channels // self.channels, height, width)
        deviation = (parts.var(dim=0, unbiased=False) + self.eps).sqrt()
        deviation = deviation.mean(dim=(2, 3, 4))[:, :, None, None]  # (B / group, channels, 1, 1)
        return torch.cat([x_BCHW, deviation.repeat(group, 1, height, width)], dim=1)
