"""The multi-scale tokenizer: image -> K grids of codes -> image.

B batch, E code width, V codebook, D bits, H W pixels, h w latent grid, l tokens of one scale, K scales, 3 RGB.

    tokenizer = MultiScaleTokenizer.from_directory("star/weights/tokenizer-emoji")
    codes = tokenizer.encode(image_B3HW)          # K tensors (B, l)
    image_B3HW = tokenizer.decode(codes)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.images import image_to_pixels
from star.data.unfilled import unfilled
from star.generators.config import from_dict, to_dict
from star.generators.pretrained import ModelDirectory, digest, load_into, write
from star.tokenizer.autoencoder import AutoencoderConfig, Decoder, DetailConfig, Encoder
from star.tokenizer.bitwise import BitwiseConfig
from star.tokenizer.quantizer import MultiScaleQuantizer, Pyramid, QuantizerConfig
from star.tokenizer.quantizers import make_quantizer
from star.tokenizer.scales import MOST_ASPECT, ScaleSchedule
from star.tokenizer.tokens import TokenKind

FAMILY = "multi-scale-tokenizer"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Autoencoder and quantizer, which must agree on the code width; quant_conv is the 3x3 convolution on either
    side of the quantizer that the released weights have; detail is what the decoder has beyond the autoencoder's."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    quantizer: QuantizerConfig | BitwiseConfig = field(default_factory=QuantizerConfig)  # told apart by their fields
    quant_conv: bool = True
    detail: DetailConfig | None = None

    def __post_init__(self) -> None:
        if self.resolution > 2**14:
            raise ValueError(f"sizes and multipliers give pictures of {self.resolution} pixels; give up to {2**14}")
        if self.autoencoder.code_width != self.quantizer.code_width:
            raise ValueError(
                f"autoencoder.code_width {self.autoencoder.code_width} and quantizer.code_width "
                f"{self.quantizer.code_width} differ; make them equal"
            )
        if self.detail is not None and (self.autoencoder.patch < 2 or self.autoencoder.patch % 2):
            raise ValueError(f"detail needs patches of an even number of pixels, not of {self.autoencoder.patch}")

    @property
    def resolution(self) -> int:
        """Side of the square pictures, in pixels."""
        return self.quantizer.schedule.finest * self.autoencoder.downsampling

    def schedule_of(self, H: int, W: int) -> ScaleSchedule:
        """The scales of a picture of H x W pixels. Raises InputError for a size that cannot be written in codes."""
        return schedule_of(self.quantizer.schedule, self.autoencoder.downsampling, H, W)

    def at(self, sizes: tuple[int, ...]) -> "TokenizerConfig":
        """The same networks on another pyramid, which shared phi convolutions allow: another resolution."""
        return replace(self, quantizer=replace(self.quantizer, sizes=sizes))


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedTo:
    """That a tokenizer's coarse codes keep the meaning of another's (align.py): its digest, and what its codes and
    latents were divided by."""

    digest: str
    scale: float


class MultiScaleTokenizer(nn.Module):
    """Encoder, quantizer and decoder (Tian et al. 2024, §3.2). Inputs and outputs are images in [-1, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.aligned_to: AlignedTo | None = None
        self.decoder_dtype: torch.dtype | None = None  # once `draw_in` was called
        width = config.quantizer.code_width
        self.encoder = Encoder(config.autoencoder)
        self.quant_conv: nn.Module = nn.Conv2d(width, width, 3, padding=1) if config.quant_conv else nn.Identity()
        self.quantizer: MultiScaleQuantizer = make_quantizer(config.quantizer)
        self.post_quant_conv: nn.Module = nn.Conv2d(width, width, 3, padding=1) if config.quant_conv else nn.Identity()
        self.decoder = Decoder(config.autoencoder, config.detail)

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales, coarse to fine."""
        return self.quantizer.schedule

    @property
    def vocabulary(self) -> int:
        """V, the size of the codebook; 2 where a token is a row of bits."""
        return self.config.quantizer.vocabulary

    @property
    def bits(self) -> int:
        """D of a token that is a row of bits, 0 of a code."""
        return self.config.quantizer.bits

    @property
    def tokens(self) -> TokenKind:
        """What a token is."""
        return self.config.quantizer.tokens

    @property
    def code_width(self) -> int:
        """E, the width of a code."""
        return self.config.quantizer.code_width

    @property
    def resolution(self) -> int:
        """Side of the square pictures, in pixels."""
        return self.config.resolution

    def image_to_latent(self, image_B3HW: Tensor) -> Tensor:
        """The latent before quantisation, float32 (B, E, h, w). Raises ValueError on a picture of a size not drawn."""
        if image_B3HW.ndim != 4 or image_B3HW.shape[1] != 3:
            raise ValueError(
                f"image of shape {tuple(image_B3HW.shape)} given, expected (B, 3, {self.resolution}, "
                f"{self.resolution}); resize it first"
            )
        self.config.schedule_of(*image_B3HW.shape[2:])
        return self.quant_conv(self.encoder(image_B3HW)).float()

    def latent_to_image(self, latent_BEhw: Tensor, clamp: bool = True) -> Tensor:
        """Decodes a (partial) sum of scales to an image (B, 3, H, W) float32, clamped to [-1, 1] if asked."""
        hidden_BEhw = self.post_quant_conv(latent_BEhw)
        if self.decoder_dtype is not None:
            hidden_BEhw = hidden_BEhw.to(self.decoder_dtype)
        image_B3HW = self.decoder(hidden_BEhw).float()
        return image_B3HW.clamp(-1, 1) if clamp else image_B3HW

    def draw_in(self, dtype: torch.dtype) -> Self:
        """Prepares the decoder for drawing in a type; below float32 with channels last, where convolutions are faster.

        In float32 that would move single pixels by one level. Encoder and quantizer, which decide what codes mean,
        stay in float32. Returns itself.
        """
        self.decoder_dtype = dtype
        layout = torch.contiguous_format if dtype == torch.float32 else torch.channels_last
        self.decoder.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        return self

    @torch.no_grad()
    def latent_to_pixels(
        self, latent_BEhw: Tensor, recorded: Callable[[Tensor], Tensor | None] | None = None
    ) -> Tensor:
        """pixels_B3HW, uint8, on the CPU; there each picture is decoded alone, so that its bits depend on no other.

        recorded: another way to do the same, asked first; it may give None.
        """
        if recorded is not None and (pixels_B3HW := recorded(latent_BEhw)) is not None:
            return pixels_B3HW
        size = 1 if latent_BEhw.device.type == "cpu" else len(latent_BEhw)
        return torch.cat([image_to_pixels(self.latent_to_image(part)).cpu() for part in latent_BEhw.split(size)])

    @torch.no_grad()
    def encode(self, image_B3HW: Tensor) -> list[Tensor]:
        """Tokens of every scale, row-major: K tensors int64 (B, l) of codes, uint8 (B, l, D) of bits."""
        return self.pyramid(image_B3HW).codes

    @torch.no_grad()
    def pyramid(self, image_B3HW: Tensor) -> Pyramid:
        """Codes, running latents and looked-up vectors of every scale."""
        return self.quantizer.encode(self.image_to_latent(image_B3HW))

    @torch.no_grad()
    def decode(
        self, codes: Sequence[Tensor], scales: int | None = None, schedule: ScaleSchedule | None = None
    ) -> Tensor:
        """The image (B, 3, H, W) that the codes of the first `scales` scales (all by default) describe.

        schedule: of a picture that is no square.
        """
        return self.latent_to_image(self.quantizer.decode(codes, scales, schedule))

    @property
    def digest(self) -> str:
        """sha256 of what the codes mean: config, encoder and quantizer, without the decoder.

        This is what a transformer remembers of the tokenizer it was trained with; a decoder that was tuned further on
        the same codes still belongs to it.
        """
        return codes_digest(self.config, self.state_dict())

    def save(self, path: str | Path, *, card: str, dtype: torch.dtype | None = None) -> ModelDirectory:
        """Writes a model directory; dtype torch.bfloat16 halves it."""
        about = {
            "resolution": [self.resolution, self.resolution],
            "parameters": sum(p.numel() for p in self.parameters()),
        } | ({"anchored": to_dict(self.aligned_to)} if self.aligned_to else {})
        return write(
            path,
            family=FAMILY,
            config=to_dict(self.config),
            tensors=self.state_dict(),
            card=card,
            about=about,
            dtype=dtype,
        )

    @classmethod
    def from_directory(
        cls, path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "MultiScaleTokenizer":
        """Reads a model directory, frozen and in eval mode. Raises InputError if it is damaged or of another family."""
        directory = ModelDirectory.read(path, family=FAMILY)
        config = from_dict(TokenizerConfig, directory.config, f"{path} config")
        directory.check_fits(lambda: cls(config))
        with unfilled():
            tokenizer = cls(config)
        load_into(tokenizer, directory.tensors(), path)
        if "anchored" in directory.about:
            tokenizer.aligned_to = from_dict(AlignedTo, directory.about["anchored"], f"{path} about.anchored")
        return tokenizer.to(device=device, dtype=dtype).eval().requires_grad_(False)


def schedule_of(schedule: ScaleSchedule, downsampling: int, H: int, W: int) -> ScaleSchedule:
    """The grids of a picture of H x W pixels, of which `downsampling` along a side make a cell.

    Raises InputError for a size that is no whole number of cells, or that the schedule does not reach.
    """
    side = schedule.finest * downsampling
    if H % downsampling or W % downsampling:
        raise InputError(
            f"{H} x {W} pixels were given, expected {side} x {side}, or multiples of {downsampling} of about as many "
            "pixels in all: resize the picture, or choose another size"
        )
    try:
        return schedule.at(H // downsampling, W // downsampling)
    except InputError as error:
        raise InputError(
            f"{H} x {W} pixels were given, expected {side} x {side}, or a rectangle up to {MOST_ASPECT}:1 of half to "
            "twice as many: choose another size"
        ) from error


def codes_digest(config: TokenizerConfig, tensors: Mapping[str, Tensor]) -> str:
    """`MultiScaleTokenizer.digest` of a tokenizer that need not be built for it."""
    described = {name: value for name, value in to_dict(config).items() if name != "detail"}
    meaning = {name: tensors[name] for name in tensors if not name.startswith(("decoder.", "post_quant_conv."))}
    return digest(described, meaning)
