"""Recipes of StyleNAT (Walton et al. 2022).

    star train stylenat --preset emoji-cpu --data SHARDS --out RUN [--lr=1e-3 --run.steps=2000 ...]

The paper's recipes by name, with the settings that paper and released code give. The recipes for the emoji shards
change only the scale: sizes, batch, half-lives of averages, and one CLIP guidance, the same for all families.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from star.generators.gan.config import Average, GanTrainConfig, Lazy
from star.generators.gan.discriminators.wavelet import CONFIGS as DISCRIMINATORS
from star.generators.gan.discriminators.wavelet import WaveletConfig
from star.generators.gan.recipe_parts import CLIP, EMOJI_CPU_RUN, EMOJI_FAST, EMOJI_RUN, LICENCE, run_config
from star.generators.sample_prompts import PROMPTS
from star.generators.stylenat.model import CONFIGS as NETWORKS
from star.generators.stylenat.model import StyleNatConfig, StyleNatGenerator


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleNatTrainConfig(GanTrainConfig):
    """An adversarial training of this family."""

    family: ClassVar = StyleNatGenerator
    network: StyleNatConfig
    discriminator: WaveletConfig


_STYLENAT = StyleNatTrainConfig(
    run=run_config(1_000_000, 64, 5000, precision="no"),
    network=NETWORKS["ffhq-256"],
    discriminator=DISCRIMINATORS["ffhq-256"],
    r1=Lazy(weight=10.0, every=16),
    consistency=10.0,
    clip_discriminator=5.0,
    lr=5e-5,
    lr_discriminator=2e-4,
    lr_decay_from=775_000,
    average=Average(half_life=20_000, rampup=0.0),
    flips=True,
)
_STYLENAT_EMOJI = replace(
    _STYLENAT,
    run=EMOJI_RUN,
    network=replace(NETWORKS["emoji-64"], widths=(512, 512, 256, 128, 64), heads=(16, 16, 8, 4, 4)),
    discriminator=replace(DISCRIMINATORS["emoji-64"], widths=(128, 512, 512, 512), spectral=True),
    clip=CLIP,
    guidance=1.0,
    lr_decay_from=0,
    flips=False,  # a caption may say left or right
    sample_prompts=PROMPTS,
    dtype="bfloat16",
    licence=LICENCE,
)
_STYLENAT_EMOJI_CPU = replace(
    _STYLENAT_EMOJI,
    run=EMOJI_CPU_RUN,
    network=replace(
        NETWORKS["emoji-64"],
        widths=(128, 128, 64, 32, 16),
        heads=(4, 4, 2, 2, 2),
        kernels=((4,), (7,), (5, 5), (3, 3), (3, 3)),
        mlp_ratio=2.0,
    ),
    discriminator=DISCRIMINATORS["emoji-64"],
    r1=Lazy(weight=1.0, every=16),
    lr=1e-3,
    lr_discriminator=2e-3,
    average=Average(half_life=1_500),
)
PRESETS = {
    "ffhq-256": _STYLENAT,
    "ffhq-1024": replace(
        _STYLENAT, network=NETWORKS["ffhq-1024"], discriminator=DISCRIMINATORS["ffhq-1024"], lr_decay_from=0
    ),
    "emoji": _STYLENAT_EMOJI,
    "emoji-cpu": _STYLENAT_EMOJI_CPU,
    "emoji-cpu-fast": replace(_STYLENAT_EMOJI_CPU, **EMOJI_FAST),
    "test": replace(
        _STYLENAT_EMOJI,
        run=run_config(4, 4, 2, precision="no", log_every=1),
        network=replace(NETWORKS["test"], condition_width=256),
        discriminator=replace(DISCRIMINATORS["test"], condition_width=256),
        r1=Lazy(weight=1.0, every=2),
        dtype="float32",
    ),
}
