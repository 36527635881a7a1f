"""StyleGAN-T's discriminator: small heads on the features of a frozen vision transformer (Sauer et al. 2023, §3.2).

    discriminator = ProjectedDiscriminator(config, FrozenFeatures.from_pretrained(config.features))
    logits_BN = discriminator(raw_B3HW, condition_BP)

Each head gives logits for every patch at one depth of the backbone; the text projects those of a patch to one number.
Only heads learn. In the released code the backbone is DINO's ViT-S/16.

A head starts as follows: convolutions as torch's own do, norms at 1 and 0, the text's projection at N(0, 1) (divided by
sqrt(P) when it is used) and 0.

B batch, P condition width, C channels of the backbone, N patches or the logits of all heads, O I k of a convolution,
D projection width, H W pixels, 3 RGB.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, Dinov2Model, Dinov2WithRegistersModel, ViTModel

from star.data.errors import InputError
from star.data.pretrained import check_folder
from star.generators.config import check_ranges
from star.generators.gan import forms
from star.generators.gan.augment.diffaugment import augment, operations
from star.generators.gan.backbones import Preprocessing, as_stored, find, load, random_crop
from star.generators.gan.layers import SQRT2, EqualLinear, SpectralWeight, leaky

# What a source may be, by the model type of its config; the pooler of a ViT is not read, and DINO has none.
BACKBONES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "clip": (CLIPVisionModel, {}),
    "clip_vision_model": (CLIPVisionModel, {}),
    "vit": (ViTModel, {"add_pooling_layer": False}),
    "dinov2": (Dinov2Model, {}),
    "dinov2_with_registers": (Dinov2WithRegistersModel, {}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectedConfig:
    """The discriminator; the defaults are the paper's."""

    features: str = "facebook/dino-vits16"  # directory or hub id of the backbone
    taps: tuple[int, ...] = (2, 5, 8, 11)  # blocks of the backbone whose output a head reads, from 0
    patches: bool = True  # one more head reads the first block's input
    condition_width: int = 768  # 0 without a condition
    projection: int = 64  # D: numbers per patch that the text projects to one
    kernel: int = 9  # patches in a row that a head's second convolution reads
    group: int = 8  # pictures that are normalised together
    augment: str = "color,translation,cutout"
    crop: float = 0.5  # probability of a crop of the backbone's size instead of a resize, where pictures are larger

    def __post_init__(self) -> None:
        names = ("condition_width", "projection", "kernel", "group")
        check_ranges(
            self, taps=(-math.inf, 512), crop=(-math.inf, math.inf), **dict.fromkeys(names, (-math.inf, 2**16))
        )
        operations(self.augment)
        for name, good, expected in (
            ("taps", len(set(self.taps)) == len(self.taps) and all(tap >= 0 for tap in self.taps), "different blocks"),
            ("taps", bool(self.taps) or self.patches, "at least one, or patches"),
            ("condition_width", self.condition_width >= 0, "at least 0"),
            ("projection", self.projection >= 1, "at least 1"),
            ("kernel", self.kernel >= 1 and self.kernel % 2 == 1, "an odd number"),
            ("group", self.group >= 1, "at least 1"),
            ("crop", 0 <= self.crop <= 1, "a share from 0 to 1"),
        ):
            if not good:
                raise InputError(f"{name} is {getattr(self, name)}, expected {expected}: correct it")

    def build(self) -> "ProjectedDiscriminator":
        """The discriminator with fresh heads on the named features. Raises InputError if those are not there."""
        return ProjectedDiscriminator(self, FrozenFeatures.from_pretrained(self.features))


class FrozenFeatures(nn.Module):
    """A vision transformer that stays as it is; the gradient goes through it to the picture.

    Its position embedding is resized by the backbone itself where `preprocessing.side` is not the size it learnt at.
    """

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        """backbone: a transformer of `BACKBONES`; it is taken over: frozen, and cut by `keep`."""
        super().__init__()
        # The attribute keeps the name that stored states of trainings have for it.
        self.tower, self.preprocessing = backbone.eval().requires_grad_(False), preprocessing
        config: Any = backbone.config
        self.width: int = config.hidden_size
        self.others = 1 + getattr(config, "num_register_tokens", 0)  # tokens before the patches
        parameters = inspect.signature(backbone.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """A directory or a hub id: DINO, DINOv2, or the image side of a CLIP.

        Raises InputError where it is none of these, or something of it is missing.
        """
        folder = find(source)
        model, options = BACKBONES[check_folder(folder, BACKBONES)]
        backbone = load(model, folder, **options)
        return cls(backbone, Preprocessing.read(folder, backbone.config.image_size))  # type: ignore[arg-type, union-attr]

    @property
    def blocks(self) -> nn.ModuleList:
        """The backbone's transformer blocks, in order."""
        return next(module for module in self.tower.modules() if isinstance(module, nn.ModuleList))

    def keep(self, count: int) -> None:
        """Drops the blocks after the first `count`. Raises InputError if there are fewer."""
        if len(self.blocks) < count:
            raise InputError(
                f"block {count - 1} was asked of a backbone of {len(self.blocks)} blocks, numbered from 0: choose taps "
                "that it has"
            )
        del self.blocks[max(count, 1) :]  # the first is kept: its input is seen by its side

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever the network around it does."""
        return super().train(False)

    def forward(self, image_B3HW: Tensor, taps: Sequence[int], patches: bool) -> list[Tensor]:
        """features_BCN after each block of `taps`, then, if asked for, those before the first.

        Blocks' outputs as they are, without the backbone's last norm; the class token is added to each patch. image: in
        [-1, 1].
        """
        pixels_B3HW = self.preprocessing(image_B3HW)
        with as_stored(self.tower, pixels_B3HW.device) as dtype:
            tokens = self.tower(
                pixel_values=pixels_B3HW if dtype is None else pixels_B3HW.to(dtype),
                output_hidden_states=True,
                **self._options,
            ).hidden_states
        chosen = [tokens[tap + 1] for tap in taps] + ([tokens[0]] if patches else [])
        return [(states[:, self.others :] + states[:, :1]).transpose(1, 2) for states in chosen]


class SpectralConv1d(SpectralWeight):
    """A convolution over patches, the row's ends joined, with a weight of spectral norm 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        drawn = nn.Conv1d(inputs, outputs, kernel)
        super().__init__(drawn.weight, drawn.bias)
        self.padding = kernel // 2

    def forward(self, x_BIN: Tensor) -> Tensor:
        """x_BON."""
        if self.padding:
            x_BIN = F.pad(x_BIN, (self.padding, self.padding), mode="circular")
        return F.conv1d(x_BIN, self.weight / self.norm(), self.bias)


class VirtualBatchNorm(nn.Module):
    """Normalises each channel over the patches of up to `group` pictures that are neighbours in the batch.

    No running statistics: the same in evaluation, so what a picture gets always depends on its neighbours.
    """

    def __init__(self, channels: int, group: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.group, self.eps = group, eps

    def forward(self, x_BCN: Tensor) -> Tensor:
        """(B, C, N). Raises ValueError unless the batch splits evenly into groups."""
        batch, groups = len(x_BCN), math.ceil(len(x_BCN) / self.group)
        if batch % groups:
            raise ValueError(
                f"a batch of {batch} pictures was given, expected one that splits into {groups} equal groups of up to "
                f"{self.group}: change the batch size"
            )
        parts = x_BCN.unflatten(0, (groups, -1))
        if forms.fast():  # two plain sums: a variance in one pass uses no vectors on a CPU
            centred = parts - parts.mean(dim=(1, 3), keepdim=True)
            normed_BCN = (centred * (centred.square().mean(dim=(1, 3), keepdim=True) + self.eps).rsqrt()).flatten(0, 1)
        else:
            variance, mean = torch.var_mean(parts, dim=(1, 3), correction=0, keepdim=True)
            normed_BCN = ((parts - mean) * (variance + self.eps).rsqrt()).flatten(0, 1)
        return normed_BCN * self.weight[:, None] + self.bias[:, None]


class HeadLayer(nn.Module):
    """Convolution, norm, leaky ReLU."""

    def __init__(self, channels: int, kernel: int, group: int) -> None:
        super().__init__()
        self.conv = SpectralConv1d(channels, channels, kernel)
        self.norm = VirtualBatchNorm(channels, group)

    def forward(self, x_BCN: Tensor) -> Tensor:
        return leaky(self.norm(self.conv(x_BCN)), gain=1.0)


class Head(nn.Module):
    """One judgement per patch of one depth."""

    def __init__(self, channels: int, config: ProjectedConfig) -> None:
        super().__init__()
        self.first = HeadLayer(channels, 1, config.group)
        self.second = HeadLayer(channels, config.kernel, config.group)
        self.classify = SpectralConv1d(channels, config.projection if config.condition_width else 1)
        self.projection = EqualLinear(config.condition_width, config.projection) if config.condition_width else None

    def forward(self, features_BCN: Tensor, condition_BP: Tensor | None = None) -> Tensor:
        """logits_BN."""
        x_BCN = self.first(features_BCN)
        x_BCN = (self.second(x_BCN) + x_BCN) / SQRT2
        scores_BDN = self.classify(x_BCN)
        if self.projection is None:
            return scores_BDN.squeeze(1)
        direction_BD = self.projection(condition_BP)
        return (scores_BDN * direction_BD[:, :, None]).sum(dim=1) / math.sqrt(direction_BD.shape[1])


class ProjectedDiscriminator(nn.Module):
    """Augmentation, frozen features, and a head for each of them: raw pictures in [-1, 1] to logits."""

    def __init__(self, config: ProjectedConfig, features: FrozenFeatures) -> None:
        """Takes `features` over: blocks after the last tap are dropped. Raises InputError if there are fewer."""
        super().__init__()
        features.keep(max(config.taps, default=-1) + 1)
        self.config, self.features = config, features
        self.heads = nn.ModuleList(Head(features.width, config) for _ in range(len(config.taps) + config.patches))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Of the heads; features stay frozen."""
        self.heads.requires_grad_(requires_grad)
        return self

    def forward(self, raw_B3HW: Tensor, condition_BP: Tensor | None = None) -> Tensor:
        """logits_BN float32: all patches of the first head, of the second, ...

        Augmentations and the crop are drawn from torch's global generator. Raises ValueError if a condition is missing,
        or given where none is read, and if the batch does not split into groups (see VirtualBatchNorm).
        """
        if (condition_BP is None) != (self.config.condition_width == 0):
            raise ValueError("a conditional discriminator needs a condition, and one without takes none")
        image_B3HW = augment(raw_B3HW, self.config.augment)
        side = self.features.preprocessing.side
        if min(image_B3HW.shape[2:]) > side and float(torch.rand(())) < self.config.crop:
            image_B3HW = random_crop(image_B3HW, side)
        features = self.features(image_B3HW, self.config.taps, self.config.patches)
        logits = [head(features_BCN, condition_BP) for head, features_BCN in zip(self.heads, features, strict=True)]
        logits_BN = torch.cat(logits, dim=1)
        return logits_BN.to(torch.promote_types(logits_BN.dtype, torch.float32))
