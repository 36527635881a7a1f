"""Recipes of Styleformer (Park and Kim 2022), trained as StyleGAN2-ADA is (Karras et al. 2020).

    star train styleformer --preset emoji-cpu --data SHARDS --out RUN [--lr=1e-3 --run.steps=2000 ...]

The paper's recipes by name, with the settings that paper and released code give. The recipes for the emoji shards
change only the scale: sizes, batch, half-lives of averages, and one CLIP guidance, the same for all families.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from star.generators.gan.config import Average, GanTrainConfig, Lazy
from star.generators.gan.discriminators.stylegan2 import CONFIGS as DISCRIMINATORS
from star.generators.gan.discriminators.stylegan2 import StyleGan2DiscriminatorConfig
from star.generators.gan.recipe_parts import CLIP, EMOJI_CPU_RUN, EMOJI_FAST, EMOJI_RUN, LICENCE, run_config
from star.generators.sample_prompts import PROMPTS
from star.generators.styleformer.model import CONFIGS as NETWORKS
from star.generators.styleformer.model import StyleformerConfig, StyleformerGenerator

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleformerTrainConfig(GanTrainConfig):
    """An adversarial training of this family."""

    family: ClassVar = StyleformerGenerator
    network: StyleformerConfig
    discriminator: StyleGan2DiscriminatorConfig


_STYLEFORMER = StyleformerTrainConfig(
    run=run_config(390_000, 64, 5000, precision="no"),  # 25 million pictures
    network=NETWORKS["celeba-64"],
    discriminator=DISCRIMINATORS["celeba-64"],
    r1=Lazy(weight=0.0128, every=16),  # 2e-4 of the square of the side, over the batch
    path_length=Lazy(weight=2.0, every=4),
    style_mixing=0.9,
    augment=("bgc",),
    augment_limit=0.7,  # as released where keys are projected
    average=Average(half_life=20_000),
)
_CIFAR = replace(
    _STYLEFORMER,
    run=run_config(3_125_000, 32, 5000, precision="no"),  # 100 million pictures
    network=NETWORKS["cifar10"],
    discriminator=DISCRIMINATORS["cifar10"],
    r1=Lazy(weight=0.01, every=16),
    path_length=Lazy(),
    style_mixing=0.0,
    augment_limit=1.0,
    average=Average(half_life=500_000),
)
_STYLEFORMER_EMOJI = replace(
    _STYLEFORMER,
    run=EMOJI_RUN,
    network=replace(NETWORKS["emoji-64"], widths=(512, 256, 96, 48)),
    discriminator=replace(DISCRIMINATORS["emoji-64"], channel_base=8192, channel_max=512, mapping_layers=8),
    clip=CLIP,
    guidance=1.0,
    augment=("text",),
    sample_prompts=PROMPTS,
    dtype="bfloat16",
    licence=LICENCE,
)
_STYLEFORMER_EMOJI_CPU = replace(
    _STYLEFORMER_EMOJI,
    run=EMOJI_CPU_RUN,
    network=NETWORKS["emoji-64"],
    discriminator=DISCRIMINATORS["emoji-64"],
    r1=Lazy(weight=1.0, every=16),
    path_length=Lazy(weight=2.0, every=16),
    lr_discriminator=4e-4,
    lr_projection=0.02,
    augment=(),
    average=Average(half_life=1_500),
)
PRESETS = {
    "cifar10": _CIFAR,
    "cifar10-classes": replace(
        _CIFAR,
        network=NETWORKS["cifar10-classes"],
        discriminator=DISCRIMINATORS["cifar10-classes"],
        labels=CIFAR10,
        sample_prompts=tuple(label for label in CIFAR10 for _ in range(8)),
    ),
    # The published example of 32 pixels against a discriminator that a CPU can bear, to see something within minutes.
    "cifar10-cpu": replace(
        _CIFAR,
        run=run_config(1000, 32, 250, precision="no", log_every=25),
        network=replace(NETWORKS["readme"], conditioning="class", condition_width=10),
        discriminator=replace(DISCRIMINATORS["cifar10-classes"], channel_base=2048, channel_max=128, mapping_layers=2),
        labels=CIFAR10,
        augment=(),
        average=Average(half_life=2_000),
        sample_prompts=tuple(label for label in CIFAR10 for _ in range(8)),
    ),
    "stl10-48": replace(
        _STYLEFORMER,
        network=NETWORKS["stl10-48"],
        discriminator=DISCRIMINATORS["stl10-48"],
        r1=Lazy(weight=0.0072, every=16),
        augment_limit=1.0,
    ),
    "celeba-64": _STYLEFORMER,
    "lsun-church-128": replace(
        _STYLEFORMER,
        network=NETWORKS["lsun-church-128"],
        discriminator=DISCRIMINATORS["lsun-church-128"],
        r1=Lazy(weight=0.0512, every=16),
    ),
    "emoji": _STYLEFORMER_EMOJI,
    # At 3 epochs nothing is memorised: no augmentation; path length, which costs most, less often.
    "emoji-cpu": _STYLEFORMER_EMOJI_CPU,
    "emoji-cpu-fast": replace(_STYLEFORMER_EMOJI_CPU, **EMOJI_FAST),
    "test": replace(
        _STYLEFORMER_EMOJI,
        run=run_config(4, 4, 2, precision="no", log_every=1),
        network=replace(NETWORKS["test"], condition_width=256),
        discriminator=replace(DISCRIMINATORS["test"], condition_width=256),
        r1=Lazy(weight=0.05, every=2),
        path_length=Lazy(weight=2.0, every=2),
        dtype="float32",
    ),
}
