"""Recipes of StyleGAN-T (Sauer et al. 2023).

    star train stylegan-t --preset emoji-cpu --data SHARDS --out RUN [--lr=1e-3 --run.steps=2000 ...]

The paper's recipes by name, with the settings that paper and released code give. The recipes for the emoji shards
change only the scale: sizes, batch, half-lives of averages, and one CLIP guidance, the same for all families.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from star.generators.gan.config import Average, Blur, GanTrainConfig
from star.generators.gan.discriminators.projected import ProjectedConfig
from star.generators.gan.recipe_parts import CLIP, EMOJI_CPU_RUN, EMOJI_FAST, EMOJI_RUN, LICENCE, run_config
from star.generators.sample_prompts import PROMPTS
from star.generators.stylegan_t.model import CONFIGS as NETWORKS
from star.generators.stylegan_t.model import StyleGanTConfig, StyleGanTGenerator


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleGanTTrainConfig(GanTrainConfig):
    """An adversarial training of this family."""

    family: ClassVar = StyleGanTGenerator
    network: StyleGanTConfig
    discriminator: ProjectedConfig


_STYLEGAN_T = StyleGanTTrainConfig(
    # 25 million pictures. Guidance weighs against hinge losses of 8 pictures: N processes accumulate 16 / N times.
    run=run_config(195_000, 128, 5000, precision="bf16", accumulate=16),
    network=NETWORKS["full-64"],
    discriminator=ProjectedConfig(),
    clip="openai/clip-vit-large-patch14",
    loss="hinge",
    loss_per_picture=True,
    guidance=0.2,
    blur=Blur(sigma=32.0, pictures=1_000_000),
    lr=2e-3,
    lr_discriminator=2e-3,
    average=Average(half_life=40_000),
    sample_prompts=PROMPTS,
)
_STYLEGAN_T_EMOJI = replace(
    _STYLEGAN_T,
    run=EMOJI_RUN,
    network=StyleGanTConfig(condition_width=256, channel_base=16384, channel_max=512, residual_blocks=2),
    discriminator=ProjectedConfig(features=CLIP, taps=(1, 3, 5), condition_width=256),
    clip=CLIP,
    loss_per_picture=False,
    guidance=1.0,
    blur=Blur(sigma=4.0, pictures=200_000),
    average=Average(half_life=20_000),
    dtype="bfloat16",
    licence=LICENCE,
)
_STYLEGAN_T_EMOJI_CPU = replace(
    _STYLEGAN_T_EMOJI,
    run=EMOJI_CPU_RUN,
    network=StyleGanTConfig(condition_width=256, channel_base=1024, channel_max=128, residual_blocks=1, groups=8),
    discriminator=ProjectedConfig(features=CLIP, taps=(1, 3), condition_width=256),
    blur=Blur(sigma=2.0, pictures=5_000),
    lr=1e-2,  # stored weights are of unit size: at 2e-3 a few thousand steps hardly move them
    lr_discriminator=1e-3,
    average=Average(half_life=1_500),
)
PRESETS = {
    "full-64": _STYLEGAN_T,
    "full-256": replace(_STYLEGAN_T, network=NETWORKS["full-256"]),
    "full-512": replace(_STYLEGAN_T, network=NETWORKS["full-512"]),
    # Finer blocks on a trunk of 64 pixels that stays as it is: --init_from names that one.
    "full-256-frozen-trunk": replace(_STYLEGAN_T, network=NETWORKS["full-256"], phase="freeze64"),
    "full-512-frozen-trunk": replace(_STYLEGAN_T, network=NETWORKS["full-512"], phase="freeze64"),
    # The text encoder alone, behind a generator that --init_from names.
    "full-64-text": replace(_STYLEGAN_T, phase="text_encoder", lr=3e-6, guidance=50.0),
    "lite-64": replace(_STYLEGAN_T, network=NETWORKS["lite-64"]),
    "emoji": _STYLEGAN_T_EMOJI,
    "emoji-cpu": _STYLEGAN_T_EMOJI_CPU,
    "emoji-cpu-fast": replace(
        _STYLEGAN_T_EMOJI_CPU,
        **EMOJI_FAST,
        discriminator=ProjectedConfig(features=CLIP, taps=(1, 3), condition_width=256, kernel=5),
        blur=Blur(),
        guidance=0.5,
    ),
    "test": replace(
        _STYLEGAN_T_EMOJI,
        run=run_config(4, 4, 2, precision="no", log_every=1),
        network=StyleGanTConfig(
            resolution=16, condition_width=256, latent_width=16, channel_max=16, residual_blocks=1, groups=4
        ),
        discriminator=ProjectedConfig(features=CLIP, taps=(0,), condition_width=256, projection=8, group=4),
        dtype="float32",
    ),
}
