"""StyleNAT: a style-based generator whose heads look at neighbourhoods of several sizes (Walton et al. 2022,
"StyleNAT: Giving Each Head a New Perspective").

    network = StyleNatNetwork(CONFIGS["ffhq-256"])
    raw_B3HW, w_BSW = network(latent_BZ, condition_BP)

A learned 4 x 4 map goes through two blocks of modulated neighbourhood attention at each resolution, and is doubled in
size by interpolation; each resolution adds to the picture. There is no noise. A condition, class or text, is embedded
in the mapping network beside the latent, and nothing else is changed for it: without one the network is the paper's.

B batch, Z latent width, P condition width, S style slots, W style width, C channels, H W map, 3 RGB.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generators.config import UNLESS_DEFAULT, check_ranges
from star.generators.gan.generator import GanGenerator, MappedNetwork, NoiseMode
from star.generators.gan.layers import MappingNetwork
from star.generators.protocol import Conditioning
from star.generators.stylenat.layers import Block, PartitionedAttention, ToRgb, Upsampling
from star.generators.stylenat.neighborhood import choose

START = 4  # pixels, side of the learned map
BLOCKS = 2  # at each resolution, each with a style slot of its own
# Of ImageNet, on pictures in [0, 1]: what the released pictures are normalised by.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleNatConfig:
    """Sizes of the generator, each for 4, 8, 16, ... pixels; the defaults are the released 256 pixels.

    The heads of a resolution fall into groups, as many as there are dilations: each has a kernel, a dilation and, with
    position_bias, a bias table of its own. At 4 pixels a kernel of 4 is attention between all places.
    """

    conditioning: Conditioning = "none"
    condition_width: int = 0  # of the text embedding, or the number of classes; 0 without a condition
    widths: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128)  # channels
    heads: tuple[int, ...] = (16, 16, 16, 16, 16, 8, 4)
    kernels: Groups = ((4,), (7,), (7, 7), (7, 7), (7, 7), (7, 7), (7, 7))
    dilations: Groups = ((1,), (1,), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32))
    qkv_bias: bool = True
    position_bias: bool = field(default=True, metadata=UNLESS_DEFAULT)  # False: no tables, which natten does not know
    mlp_ratio: float = 4.0
    latent_width: int = 512
    style_width: int = 512
    mapping_layers: int = 8

    def __post_init__(self) -> None:
        check_ranges(
            self,
            condition_width=(-math.inf, 2**16),
            widths=(-math.inf, 2**14),
            heads=(-math.inf, 2**10),
            mlp_ratio=(1e-3, 64),
            latent_width=(-math.inf, 2**14),
            style_width=(-math.inf, 2**14),
            mapping_layers=(-math.inf, 64),
        )
        if len(self.widths) > 11:
            raise InputError(f"{len(self.widths)} widths are given, expected at most 11: correct them")
        if not self.widths or len({len(self.widths), len(self.heads), len(self.kernels), len(self.dilations)}) > 1:
            raise InputError(
                f"{len(self.widths)} widths, {len(self.heads)} heads, {len(self.kernels)} kernels and "
                f"{len(self.dilations)} dilations are given, expected as many of each: give all for each resolution"
            )
        if self.condition_width < 0 or (self.condition_width == 0) != (self.conditioning == "none"):
            raise InputError(
                f"condition_width is {self.condition_width} with conditioning {self.conditioning}, expected 0 with "
                "none and more otherwise: correct one of them"
            )
        for name in ("latent_width", "style_width", "mapping_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1: correct it")
        levels = zip(self.sides, self.widths, self.heads, self.kernels, self.dilations, strict=True)
        for side, width, heads, kernels, dilations in levels:
            if heads < 1 or width < 1 or width % heads:
                raise InputError(f"the width at {side} pixels is {width}, expected a multiple of its {heads} heads")
            if not 1 <= len(kernels) == len(dilations) <= heads:
                raise InputError(
                    f"{len(kernels)} kernels and {len(dilations)} dilations are given at {side} pixels, expected one "
                    f"of each for up to {heads} groups of heads: correct them"
                )
            for kernel, dilation in zip(kernels, dilations, strict=True):
                if min(kernel, dilation) < 1 or kernel * dilation > side:
                    raise InputError(
                        f"a kernel of {kernel} with dilation {dilation} is given at {side} pixels, expected a product "
                        f"from 1 to {side}: choose smaller ones"
                    )
        if any(width % 4 or width < 8 for width in self.widths[1:]):
            raise InputError(
                f"widths are {self.widths}, expected multiples of 4 from 8 on, for the sine waves: correct"
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the maps in pixels: 4, 8, ..., resolution."""
        return tuple(START << i for i in range(len(self.widths)))

    @property
    def resolution(self) -> int:
        """Side of a picture in pixels."""
        return self.sides[-1]


_FFHQ_256 = StyleNatConfig()
CONFIGS: dict[str, StyleNatConfig] = {
    "ffhq-256": _FFHQ_256,
    "ffhq-1024": replace(
        _FFHQ_256,
        widths=(*_FFHQ_256.widths, 64, 32),
        heads=(*_FFHQ_256.heads, 4, 4),
        kernels=(*_FFHQ_256.kernels, (7, 7), (7, 7)),
        dilations=(*_FFHQ_256.dilations, (1, 64), (1, 128)),
    ),
    "emoji-64": StyleNatConfig(
        conditioning="text",
        condition_width=256,
        widths=(192, 192, 128, 64, 32),
        heads=(6, 6, 4, 4, 2),
        kernels=((4,), (7,), (7, 7), (7, 7), (7, 7)),
        dilations=((1,), (1,), (1, 2), (1, 4), (1, 8)),
        position_bias=False,
        latent_width=128,
        style_width=256,
        mapping_layers=4,
    ),
    "test": StyleNatConfig(
        conditioning="text",
        condition_width=32,
        widths=(32, 16, 24),
        heads=(2, 2, 3),
        kernels=((4,), (3,), (3, 5)),
        dilations=((1,), (1,), (1, 2)),
        latent_width=16,
        style_width=32,
        mapping_layers=2,
    ),
}


class Level(nn.Module):
    """Two blocks at one resolution, and the way to the next one, if there is one."""

    def __init__(self, config: StyleNatConfig, i: int) -> None:
        super().__init__()
        width, last = config.widths[i], i + 1 == len(config.widths)
        self.blocks = nn.ModuleList(
            Block(
                PartitionedAttention(
                    width,
                    config.heads[i],
                    config.kernels[i],
                    config.dilations[i],
                    bias=config.qkv_bias,
                    position_bias=config.position_bias,
                ),
                config.style_width,
                int(width * config.mlp_ratio),
            )
            for _ in range(BLOCKS)
        )
        after = width if last else config.widths[i + 1]
        self.upsampling = None if last else Upsampling(width, after, 2 * config.sides[i])
        self.to_rgb = ToRgb(after)

    def forward(self, x_BHWC: Tensor, raw_B3HW: Tensor | None, w_BSW: Tensor) -> tuple[Tensor, Tensor]:
        """The map and the picture, both at the next resolution, or at this one if it is the last.

        raw: the picture so far at this resolution; None before the first. w: the slots of this level.
        """
        for j, block in enumerate(self.blocks):
            x_BHWC = block(x_BHWC, w_BSW[:, j])
        grows = self.upsampling is not None
        if self.upsampling is not None:
            x_BHWC = self.upsampling(x_BHWC)
        return x_BHWC, self.to_rgb(x_BHWC, raw_B3HW, grows)


class StyleNatNetwork(MappedNetwork):
    """The generator network; raw pictures are normalised by ImageNet's mean and deviation, as they were trained."""

    def __init__(self, config: StyleNatConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioning = config.conditioning
        self.resolution = (config.resolution, config.resolution)
        self.latent_width, self.condition_width = config.latent_width, config.condition_width
        self.mapping = MappingNetwork(
            config.latent_width, config.style_width, config.mapping_layers, condition=config.condition_width
        )
        self.constant_1CHW = nn.Parameter(torch.empty(1, config.widths[0], START, START))
        self.levels = nn.ModuleList(Level(config, i) for i in range(len(config.widths)))
        self.slots = BLOCKS * len(config.widths)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Where training starts.

        constant                    N(0, 1)
        linear layers               N(0, 0.02), cut at +-2
        tables of bias              N(0, 0.02), cut at +-2
        to RGB                      Xavier's normal, gain 0.02
        layer norms                 1
        mapping, styles of blocks   by EqualLinear
        biases, waves' strength     0
        """
        nn.init.normal_(self.constant_1CHW)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, PartitionedAttention):
                for table in module.tables:
                    nn.init.trunc_normal_(table, std=0.02)
            elif isinstance(module, ToRgb):
                nn.init.xavier_normal_(module.weight_3C11, gain=0.02)
                nn.init.zeros_(module.conv_bias)
                nn.init.zeros_(module.bias_1311)
            elif isinstance(module, Upsampling):
                nn.init.zeros_(module.alpha)

    def synthesis(self, w_BSW: Tensor, noise: NoiseMode = "random") -> Tensor:
        """raw_B3HW, the same for every `noise`: there is none."""
        x_BHWC = self.constant_1CHW.permute(0, 2, 3, 1).expand(len(w_BSW), -1, -1, -1)
        raw_B3HW: Tensor | None = None
        for i, level in enumerate(self.levels):
            x_BHWC, raw_B3HW = level(x_BHWC, raw_B3HW, w_BSW[:, BLOCKS * i : BLOCKS * (i + 1)])
        assert raw_B3HW is not None  # every level adds to it
        return raw_B3HW

    def normalise(self, image_B3HW: Tensor) -> Tensor:
        mean, deviation = (image_B3HW.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return ((image_B3HW + 1) / 2 - mean) / deviation

    def denormalise(self, raw_B3HW: Tensor) -> Tensor:
        mean, deviation = (raw_B3HW.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return (raw_B3HW * deviation + mean) * 2 - 1


class StyleNatGenerator(GanGenerator):
    """A trained StyleNAT, see GanGenerator."""

    family, network_class, config_class = "stylenat", StyleNatNetwork, StyleNatConfig

    def kernels(self) -> tuple[str, ...]:
        """What attention runs on while drawing, and why: one line for each kind of window and head."""
        config: StyleNatConfig = self.network.config
        dtype, found = next(self.network.parameters()).dtype, dict[str, None]()
        for width, heads, kernels in zip(config.widths, config.heads, config.kernels, strict=True):
            for kernel in kernels:
                found[str(choose(self.device, dtype, width // heads, kernel, config.position_bias))] = None
        return tuple(found)

    @classmethod
    def for_test(cls) -> Self:
        """16 pixels, text of 32 numbers, two groups of heads at the finest resolution."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cls(StyleNatNetwork(CONFIGS["test"]), tiny_text_encoder())
