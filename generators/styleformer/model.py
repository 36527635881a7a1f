"""Styleformer: a style-based generator of attention alone (Park and Kim 2022, "Styleformer: Transformer based
Generative Adversarial Networks with Style Vector").

    network = Styleformer(CONFIGS["readme"])
    raw_B3HW, w_BSW = network(latent_BZ, condition_BP)

A learned square of tokens goes through attention layers, is doubled in size by a fixed filter, and so on; each
resolution adds to the picture. A condition, class or text, is embedded in the mapping network, as the released code
does with classes; nothing else is changed for text.

B batch, Z latent width, P condition width, S style slots, W style width, C channels, n tokens, H W pixels, 3 RGB.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generators.config import check_ranges
from star.generators.gan.generator import GanGenerator, MappedNetwork, NoiseMode
from star.generators.gan.layers import MappingNetwork
from star.generators.protocol import Conditioning
from star.generators.styleformer.layers import Block, StyleAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleformerConfig:
    """Sizes of the generator; the defaults are the example of the released code's page, 32 pixels."""

    conditioning: Conditioning = "none"
    condition_width: int = 0  # of the text embedding, or the number of classes; 0 without a condition
    start: int = 8  # pixels, side of the coarsest tokens; each further resolution doubles it
    widths: tuple[int, ...] = (256, 64, 16)  # channels of each resolution
    layers: tuple[int, ...] = (1, 2, 2)  # attention layers of each resolution
    depth: int = 32  # channels of a head: the "increased" heads, many where channels are many
    minimum_head: int = 1  # heads at least
    linformer_from: int = 0  # side of tokens from which keys and values are projected; 0: never
    projection: int = 256  # tokens that they are projected to
    latent_width: int = 512
    style_width: int = 512
    mapping_layers: int = 2
    clamp: float = 256.0  # of activations

    def __post_init__(self) -> None:
        names = ("depth", "minimum_head", "projection", "latent_width", "style_width", "widths")
        check_ranges(
            self,
            **dict.fromkeys(names, (-math.inf, 2**14)),
            condition_width=(-math.inf, 2**16),
            linformer_from=(0, 2**14),
            start=(-math.inf, 2**9),
            layers=(-math.inf, 64),
            mapping_layers=(-math.inf, 64),
            clamp=(1e-6, 1e9),
        )
        if len(self.widths) > 11 or self.start << len(self.widths) > 2**14:
            raise InputError(f"{len(self.widths)} widths from {self.start} pixels on are given: give fewer")
        if not self.widths or len(self.widths) != len(self.layers):
            raise InputError(
                f"{len(self.widths)} widths are given for {len(self.layers)} resolutions of layers, expected as many: "
                "give both for each resolution"
            )
        numbers = ("start", "depth", "minimum_head", "projection", "latent_width", "style_width", "mapping_layers")
        for name, value in (*((n, getattr(self, n)) for n in numbers), *(("layers", n) for n in self.layers)):
            if value < 1:
                raise InputError(f"{name} is {value}, expected at least 1: correct it")
        if self.condition_width < 0 or (self.condition_width == 0) != (self.conditioning == "none"):
            raise InputError(
                f"condition_width is {self.condition_width} with conditioning {self.conditioning}, expected 0 with "
                "none and more otherwise: correct one of them"
            )
        for width in self.widths:
            if width < 1 or width % self.heads(width):
                raise InputError(
                    f"widths has {width}, expected a multiple of its {self.heads(width)} heads: change it, depth or "
                    "minimum_head"
                )

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the squares of tokens: start, twice that, ..., resolution."""
        return tuple(self.start << i for i in range(len(self.widths)))

    @property
    def resolution(self) -> int:
        """Side of a picture in pixels."""
        return self.sides[-1]

    def heads(self, width: int) -> int:
        """Of a layer of so many channels."""
        return max(self.minimum_head, width // self.depth)

    def projected(self, side: int) -> int:
        """Tokens that keys and values are projected to at this side; 0: they are not."""
        return self.projection if 0 < self.linformer_from <= side else 0


_README = StyleformerConfig()
_LINFORMER = replace(_README, linformer_from=32)
# Only "readme" and "default" are published sizes. Of the others the sources at hand tell resolution, start and whether
# there is a projection, and that the network of CIFAR-10 is far wider than the example; widths and layers here are our
# guess. A released file is built from its own shapes, whatever stands here (released_styleformer.py).
CONFIGS: dict[str, StyleformerConfig] = {
    "readme": _README,
    "default": replace(_README, layers=(1, 3, 3)),
    "cifar10": replace(_README, widths=(1024, 512, 512), layers=(1, 3, 3)),
    "cifar10-classes": replace(
        _README, widths=(1024, 512, 512), layers=(1, 3, 3), conditioning="class", condition_width=10
    ),
    "stl10-48": replace(_README, start=12, widths=(512, 256, 64)),
    "celeba-64": replace(_LINFORMER, widths=(256, 64, 64, 64), layers=(1, 2, 1, 1)),
    "lsun-church-128": replace(_LINFORMER, widths=(256, 64, 64, 64, 64), layers=(1, 2, 1, 1, 1)),
    "emoji-64": StyleformerConfig(
        conditioning="text",
        condition_width=256,
        widths=(192, 96, 32, 16),
        layers=(1, 2, 1, 1),
        linformer_from=32,
        projection=64,
        latent_width=128,
        style_width=256,
    ),
    "test": StyleformerConfig(
        conditioning="text",
        condition_width=32,
        widths=(32, 16),
        layers=(1, 2),
        depth=8,
        linformer_from=16,
        projection=32,
        latent_width=16,
        style_width=32,
    ),
}


class Styleformer(MappedNetwork):
    """The generator network; raw pictures are in [-1, 1], as they were trained."""

    def __init__(self, config: StyleformerConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioning = config.conditioning
        self.resolution = (config.resolution, config.resolution)
        self.latent_width, self.condition_width = config.latent_width, config.condition_width
        self.mapping = MappingNetwork(
            config.latent_width, config.style_width, config.mapping_layers, condition=config.condition_width
        )
        self.constant_nC = nn.Parameter(torch.empty(config.start**2, config.widths[0]))
        self.blocks = nn.ModuleList()
        following = (*config.widths[1:], config.widths[-1])
        for side, width, after, layers in zip(config.sides, config.widths, following, config.layers, strict=True):
            for j in range(layers):
                last = j == layers - 1
                outputs = after if last else width
                attention = StyleAttention(
                    width,
                    outputs,
                    config.style_width,
                    tokens=side * side,
                    heads=config.heads(width),
                    projection=config.projected(side),
                    clamp=config.clamp,
                )
                self.blocks.append(
                    Block(
                        attention,
                        (width, outputs, config.style_width),
                        side,
                        first=j == 0,
                        last=last,
                        grow=last and side != config.resolution,
                    )
                )
        # As released, one slot for each layer and each resolution. Layer i reads slot i, and a layer to RGB the slot
        # behind its own layer, which the next resolution's first layer reads too: slots beyond `len(blocks)` are never
        # read, but count in path length, style mixing and cutoffs.
        self.slots = len(self.blocks) + len(config.widths)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Where training starts.

        constant                    N(0, 1)
        noise (buffer)              N(0, 1), of strength 0
        positions, biases           0
        attention, RGB weights      U(-1 / sqrt(C), 1 / sqrt(C)), C channels read
        Linformer's projection      N(0, 1 / n), n tokens read: ours, no source tells it
        mapping, affine             by EqualLinear, the affine biases from 1
        """
        nn.init.normal_(self.constant_nC)
        for module in self.modules():
            if isinstance(module, Block):
                if module.position_1nC is not None:
                    nn.init.zeros_(module.position_1nC)
                attention, weights = module.attention, []
                weights += [attention.query, attention.key, attention.value, attention.output, attention.skip]
                zeros = [attention.bias, attention.noise_strength]
                nn.init.normal_(attention.noise_n1)
                if attention.projection is not None:
                    nn.init.normal_(attention.projection, std=attention.projection.shape[1] ** -0.5)
                if module.to_rgb is not None:
                    weights.append(module.to_rgb.weight)
                    zeros.append(module.to_rgb.bias)
                for weight_OC in weights:
                    limit = 1 / math.sqrt(weight_OC.shape[1])
                    nn.init.uniform_(weight_OC, -limit, limit)
                for parameter in zeros:
                    nn.init.zeros_(parameter)

    def synthesis(self, w_BSW: Tensor, noise: NoiseMode = "random") -> Tensor:
        """raw_B3HW. "const" draws with the stored noise; the released code draws afresh even where asked for that."""
        x_BnC = self.constant_nC.expand(len(w_BSW), -1, -1)
        raw_B3HW: Tensor | None = None
        for i, block in enumerate(self.blocks):
            x_BnC, raw_B3HW = block(x_BnC, raw_B3HW, w_BSW[:, i], w_BSW[:, i + 1], noise)
        assert raw_B3HW is not None  # every resolution has a layer to RGB
        return raw_B3HW


class StyleformerGenerator(GanGenerator):
    """A trained Styleformer, see GanGenerator."""

    family, network_class, config_class = "styleformer", Styleformer, StyleformerConfig

    @classmethod
    def for_test(cls) -> Self:
        """16 pixels, text of 32 numbers, a projection at the finer resolution."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cls(Styleformer(CONFIGS["test"]), tiny_text_encoder())
