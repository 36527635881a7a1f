"""The convolutional encoder and decoder around the quantizer.

B batch, C channels, H W pixels, h w latent grid, E code width, 3 RGB.
The shape is that of VQGAN (Esser et al. 2021, §3; Tian et al. 2024, released configuration): residual blocks on every
level, attention on the coarsest, stride-2 convolutions between. `patch` is ours: with patch 2 the network works on
2x2 pixel blocks, which is what makes training on a CPU bearable; released weights have patch 1.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.config import check_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Widths and depths of encoder and decoder; the defaults are the released VAR tokenizer's."""

    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    code_width: int = 32
    patch: int = 1
    norm: str = "group"
    norm_groups: int = 32
    level_attention: bool = True

    def __post_init__(self) -> None:
        check_ranges(
            self,
            channels=(1, 2**12),
            multipliers=(1, 64),
            encoder_blocks=(0, 64),
            decoder_blocks=(0, 64),
            code_width=(1, 2**12),
            patch=(1, 64),
            norm_groups=(1, 2**12),
        )
        if not 1 <= len(self.multipliers) <= 10:
            raise ValueError(f"{len(self.multipliers)} multipliers given, expected 1 to 10; give one for each level")
        if self.norm not in ("group", "layer"):
            raise ValueError(f"norm {self.norm!r} given, expected 'group' or 'layer'")
        if self.norm == "group" and self.channels % self.norm_groups:
            raise ValueError(
                f"channels {self.channels} must be a multiple of norm_groups {self.norm_groups}; change either"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell along one side."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetailConfig:
    """Widths and blocks of `Detail`, from half the picture's grid to the whole."""

    channels: tuple[int, int] = (64, 32)
    blocks: tuple[int, int] = (3, 2)
    trunk_blocks: int = 2

    def __post_init__(self) -> None:
        for name in ("channels", "blocks"):
            if not all(1 <= value <= 4096 for value in getattr(self, name)):
                raise ValueError(f"detail.{name} is {getattr(self, name)}, expected two numbers from 1 to 4096")
        if not 0 <= self.trunk_blocks <= 64:
            raise ValueError(f"detail.trunk_blocks is {self.trunk_blocks}, expected 0 to 64")


class CellNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell: (B, C, h, w) -> the same; free of copies on channels-last tensors."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_norm(config: AutoencoderConfig, channels: int) -> nn.Module:
    """The configured norm over `channels`."""
    if config.norm == "layer":
        return CellNorm(channels, eps=1e-6)
    return nn.GroupNorm(config.norm_groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, twice, plus shortcut: (B, C_in, h, w) -> (B, C_out, h, w)."""

    def __init__(self, config: AutoencoderConfig, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = make_norm(config, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x_BChw: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x_BChw)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(x_BChw) + hidden


class AttentionBlock(nn.Module):
    """Single-head attention over the grid with residual: (B, C, h, w) -> the same."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.norm = make_norm(config, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        B, C, h, w = x_BChw.shape
        qkv = self.qkv(self.norm(x_BChw)).reshape(B, 3, C, h * w).transpose(2, 3)  # (B, 3, hw, C)
        q, k, v = qkv[:, None].unbind(2)  # one head each: (B, 1, hw, C)
        mixed = F.scaled_dot_product_attention(q, k, v)  # scale C**-0.5
        return x_BChw + self.proj(mixed[:, 0].transpose(1, 2).reshape(B, C, h, w))


class Downsample(nn.Module):
    """Halves the grid; pads one zero on the right and bottom only, as the released code does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(F.pad(x_BChw, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the grid by nearest neighbour, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BChw, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention if asked, then an optional change of resolution."""

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        channels_in: int,
        channels: int,
        blocks: int,
        attention: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(config, channels_in if i == 0 else channels, channels) for i in range(blocks)
        )
        self.attentions = nn.ModuleList(AttentionBlock(config, channels) for _ in range(blocks if attention else 0))
        self.resample = resample

    def forward(self, x_BChw: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x_BChw = block(x_BChw)
            if len(self.attentions):
                x_BChw = self.attentions[i](x_BChw)
        return x_BChw if self.resample is None else self.resample(x_BChw)


class Middle(nn.Sequential):
    """Residual block, attention, residual block on the coarsest grid."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__(
            ResidualBlock(config, channels, channels),
            AttentionBlock(config, channels),
            ResidualBlock(config, channels, channels),
        )


class Encoder(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> latent (B, E, H/f, W/f), f = config.downsampling."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        last = len(widths) - 1
        self.patch = config.patch
        self.stem = nn.Conv2d(3 * config.patch**2, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                config,
                channels_in=widths[max(i - 1, 0)] if i else config.channels,
                channels=width,
                blocks=config.encoder_blocks,
                attention=config.level_attention and i == last,
                resample=Downsample(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.middle = Middle(config, widths[-1])
        self.norm = make_norm(config, widths[-1])
        self.head = nn.Conv2d(widths[-1], config.code_width, 3, padding=1)
        init_weights(self)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        hidden = self.stem(F.pixel_unshuffle(image_B3HW, self.patch) if self.patch > 1 else image_B3HW)
        for level in self.levels:
            hidden = level(hidden)
        return self.head(F.silu(self.norm(self.middle(hidden))))


class Decoder(nn.Module):
    """latent (B, E, h, w) -> image (B, 3, h*f, w*f), not clamped."""

    def __init__(self, config: AutoencoderConfig, detail: DetailConfig | None = None) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        last = len(widths) - 1
        self.patch = config.patch
        self.stem = nn.Conv2d(config.code_width, widths[-1], 3, padding=1)
        self.middle = Middle(config, widths[-1])
        # levels[i] has the width of encoder level i; they run from the last to the first
        self.levels = nn.ModuleList(
            Level(
                config,
                channels_in=widths[min(i + 1, last)],
                channels=width,
                blocks=config.decoder_blocks,
                attention=config.level_attention and i == last,
                resample=Upsample(width) if i > 0 else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm = make_norm(config, widths[0])
        self.head = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)
        init_weights(self)
        self.detail = Detail(detail, config) if detail is not None else None

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight that the adaptive adversarial weight is measured at (Esser et al. 2021, Eq. 7)."""
        weight = self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, latent_BEhw: Tensor) -> Tensor:
        hidden = self.middle(self.stem(latent_BEhw))
        for level in reversed(self.levels):
            hidden = level(hidden)
        if self.detail is not None:
            hidden = self.detail.trunk(hidden)
        hidden = F.silu(self.norm(hidden))
        image_B3HW = F.pixel_shuffle(self.head(hidden), self.patch) if self.patch > 1 else self.head(hidden)
        return image_B3HW if self.detail is None else image_B3HW + self.detail(hidden, image_B3HW)


class Detail(nn.Module):
    """What a decoder that writes patches gets wrong at their borders, as a correction on the pixel grid.

    features (B, C, h, w) before the decoder's head, and its image (B, 3, H, W) -> correction (B, 3, H, W), 0 at the
    start. Residual blocks at H/2 and at H, reached by sub-pixel convolution (Shi et al. 2016, §3.2); since every
    convolution there looks across the borders, no grid of patches is left in flat areas. `trunk` are more blocks on the
    latent grid, the identity at the start.
    """

    def __init__(self, config: DetailConfig, autoencoder: AutoencoderConfig) -> None:
        super().__init__()
        width, (half, full) = autoencoder.channels, config.channels
        self.steps = (autoencoder.patch // 2, 2)
        self.trunk = nn.Sequential(*(ResidualBlock(autoencoder, width, width) for _ in range(config.trunk_blocks)))
        self.from_features = nn.Conv2d(width, half * self.steps[0] ** 2, 3, padding=1)
        self.from_halves = nn.Conv2d(12, half, 3, padding=1)
        self.halves = nn.Sequential(*(ResidualBlock(autoencoder, half, half) for _ in range(config.blocks[0])))
        self.up = nn.Conv2d(half, full * 4, 3, padding=1)
        self.from_image = nn.Conv2d(3, full, 3, padding=1)
        self.pixels = nn.Sequential(*(ResidualBlock(autoencoder, full, full) for _ in range(config.blocks[1])))
        self.norm = make_norm(autoencoder, full)
        self.head = nn.Conv2d(full, 3, 3, padding=1)
        init_weights(self)
        nn.init.zeros_(self.head.weight)
        for block in self.trunk:
            assert isinstance(block, ResidualBlock)
            nn.init.zeros_(block.conv2.weight)

    def forward(self, features_BChw: Tensor, image_B3HW: Tensor) -> Tensor:
        hidden = F.pixel_shuffle(self.from_features(features_BChw), self.steps[0])
        hidden = self.halves(hidden + self.from_halves(F.pixel_unshuffle(image_B3HW, 2)))
        hidden = self.pixels(F.pixel_shuffle(self.up(hidden), 2) + self.from_image(image_B3HW))
        return self.head(F.silu(self.norm(hidden)))


def init_weights(module: nn.Module) -> None:
    """Convolutions: LeCun uniform (torch's default), biases 0; the last convolution of a residual branch starts at
    1/10 of that, so that a fresh block is near the identity; norms: weight 1, bias 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        with torch.no_grad():
            if isinstance(part, ResidualBlock):
                part.conv2.weight.mul_(0.1)
            elif isinstance(part, AttentionBlock):
                part.proj.weight.mul_(0.1)
