"""Recipes of the adversarial trainings, a table for each family.

    star train stylegan-t --preset emoji-cpu --data SHARDS --out RUN [--lr=1e-3 --run.steps=2000 ...]

The papers' recipes are here by name with the settings that papers and released code give; what a recipe for the emoji
shards changes is only its scale: sizes, batch, pace of averages, and one CLIP guidance, the same for all three.
"""

from dataclasses import replace
from typing import Any, Literal

from star.generators.gan.config import Average, Blur, GanTrainConfig, Lazy
from star.generators.gan.discriminators import stylegan2 as stylegan2_discriminator
from star.generators.gan.discriminators import wavelet
from star.generators.gan.discriminators.projected import ProjectedConfig
from star.generators.sample_prompts import PROMPTS
from star.generators.styleformer import model as styleformer
from star.generators.stylegan_t import model as stylegan_t
from star.generators.stylegan_t.model import StyleGanTConfig
from star.generators.stylenat import model as stylenat
from star.generators.training.run import RunConfig

CLIP = "clip-emoji"  # ships
LICENCE = "MIT; pictures learnt from: Apache-2.0, MIT, CC-BY-4.0"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _run(steps: int, batch: int, every: int, *, precision: Literal["no", "bf16"], **settings: Any) -> RunConfig:
    """Gradients are left as they are, as all three papers have it. precision: "no" is TF32 on a GPU (precision.py)."""
    return RunConfig(
        steps=steps,
        batch_size=batch,
        precision=precision,
        grad_clip=0.0,
        sample_every=every,
        checkpoint_every=every,
        **settings,
    )


_EMOJI_CPU = _run(4000, 8, 500, precision="no", log_every=25)
_EMOJI = _run(40000, 64, 2000, precision="no")

# ---- StyleGAN-T (Sauer et al. 2023)

_STYLEGAN_T = GanTrainConfig(
    # 25 million pictures. Guidance weighs against hinge losses of 8 pictures: N processes accumulate 16 / N times.
    run=_run(195_000, 128, 5000, precision="bf16", accumulate=16),
    network=stylegan_t.CONFIGS["full-64"],
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
    run=_EMOJI,
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
STYLEGAN_T = {
    "full-64": _STYLEGAN_T,
    "full-256": replace(_STYLEGAN_T, network=stylegan_t.CONFIGS["full-256"]),
    "full-512": replace(_STYLEGAN_T, network=stylegan_t.CONFIGS["full-512"]),
    # Finer blocks on a trunk of 64 pixels that stays as it is: --init_from names that one.
    "full-256-frozen-trunk": replace(_STYLEGAN_T, network=stylegan_t.CONFIGS["full-256"], phase="freeze64"),
    "full-512-frozen-trunk": replace(_STYLEGAN_T, network=stylegan_t.CONFIGS["full-512"], phase="freeze64"),
    # The text tower alone, behind a generator that --init_from names.
    "full-64-text": replace(_STYLEGAN_T, phase="text_encoder", lr=3e-6, guidance=50.0),
    "lite-64": replace(_STYLEGAN_T, network=stylegan_t.CONFIGS["lite-64"]),
    "emoji": _STYLEGAN_T_EMOJI,
    "emoji-cpu": replace(
        _STYLEGAN_T_EMOJI,
        run=_EMOJI_CPU,
        network=StyleGanTConfig(condition_width=256, channel_base=1024, channel_max=128, residual_blocks=1, groups=8),
        discriminator=ProjectedConfig(features=CLIP, taps=(1, 3), condition_width=256),
        blur=Blur(sigma=2.0, pictures=5_000),
        lr=1e-2,  # stored weights are of unit size: at 2e-3 a few thousand steps hardly move them
        lr_discriminator=1e-3,
        average=Average(half_life=1_500),
    ),
    "test": replace(
        _STYLEGAN_T_EMOJI,
        run=_run(4, 4, 2, precision="no", log_every=1),
        network=StyleGanTConfig(
            resolution=16, condition_width=256, latent_width=16, channel_max=16, residual_blocks=1, groups=4
        ),
        discriminator=ProjectedConfig(features=CLIP, taps=(0,), condition_width=256, projection=8, group=4),
        dtype="float32",
    ),
}

# ---- Styleformer (Park and Kim 2022), trained as StyleGAN2-ADA is (Karras et al. 2020)

_STYLEFORMER = GanTrainConfig(
    run=_run(390_000, 64, 5000, precision="no"),  # 25 million pictures
    network=styleformer.CONFIGS["celeba-64"],
    discriminator=stylegan2_discriminator.CONFIGS["celeba-64"],
    r1=Lazy(weight=0.0128, every=16),  # 2e-4 of the square of the side, over the batch
    path_length=Lazy(weight=2.0, every=4),
    style_mixing=0.9,
    augment=("bgc",),
    augment_limit=0.7,  # as released where keys are projected
    average=Average(half_life=20_000),
)
_CIFAR = replace(
    _STYLEFORMER,
    run=_run(3_125_000, 32, 5000, precision="no"),  # 100 million pictures
    network=styleformer.CONFIGS["cifar10"],
    discriminator=stylegan2_discriminator.CONFIGS["cifar10"],
    r1=Lazy(weight=0.01, every=16),
    path_length=Lazy(),
    style_mixing=0.0,
    augment_limit=1.0,
    average=Average(half_life=500_000),
)
_STYLEFORMER_EMOJI = replace(
    _STYLEFORMER,
    run=_EMOJI,
    network=replace(styleformer.CONFIGS["emoji-64"], widths=(512, 256, 96, 48)),
    discriminator=replace(
        stylegan2_discriminator.CONFIGS["emoji-64"], channel_base=8192, channel_max=512, mapping_layers=8
    ),
    clip=CLIP,
    guidance=1.0,
    augment=("text",),
    sample_prompts=PROMPTS,
    dtype="bfloat16",
    licence=LICENCE,
)
STYLEFORMER = {
    "cifar10": _CIFAR,
    "cifar10-classes": replace(
        _CIFAR,
        network=styleformer.CONFIGS["cifar10-classes"],
        discriminator=stylegan2_discriminator.CONFIGS["cifar10-classes"],
        labels=CIFAR10,
        sample_prompts=tuple(label for label in CIFAR10 for _ in range(8)),
    ),
    # The published example of 32 pixels against a discriminator that a CPU can bear, for a look within minutes.
    "cifar10-cpu": replace(
        _CIFAR,
        run=_run(1000, 32, 250, precision="no", log_every=25),
        network=replace(styleformer.CONFIGS["readme"], conditioning="class", condition_width=10),
        discriminator=replace(
            stylegan2_discriminator.CONFIGS["cifar10-classes"], channel_base=2048, channel_max=128, mapping_layers=2
        ),
        labels=CIFAR10,
        augment=(),
        average=Average(half_life=2_000),
        sample_prompts=tuple(label for label in CIFAR10 for _ in range(8)),
    ),
    "stl10-48": replace(
        _STYLEFORMER,
        network=styleformer.CONFIGS["stl10-48"],
        discriminator=stylegan2_discriminator.CONFIGS["stl10-48"],
        r1=Lazy(weight=0.0072, every=16),
        augment_limit=1.0,
    ),
    "celeba-64": _STYLEFORMER,
    "lsun-church-128": replace(
        _STYLEFORMER,
        network=styleformer.CONFIGS["lsun-church-128"],
        discriminator=stylegan2_discriminator.CONFIGS["lsun-church-128"],
        r1=Lazy(weight=0.0512, every=16),
    ),
    "emoji": _STYLEFORMER_EMOJI,
    # At 3 epochs nothing is memorised: no augmentation; path length, which costs most, less often.
    "emoji-cpu": replace(
        _STYLEFORMER_EMOJI,
        run=_EMOJI_CPU,
        network=styleformer.CONFIGS["emoji-64"],
        discriminator=stylegan2_discriminator.CONFIGS["emoji-64"],
        r1=Lazy(weight=1.0, every=16),
        path_length=Lazy(weight=2.0, every=16),
        lr_discriminator=4e-4,
        lr_projection=0.02,
        augment=(),
        average=Average(half_life=1_500),
    ),
    "test": replace(
        _STYLEFORMER_EMOJI,
        run=_run(4, 4, 2, precision="no", log_every=1),
        network=replace(styleformer.CONFIGS["test"], condition_width=256),
        discriminator=replace(stylegan2_discriminator.CONFIGS["test"], condition_width=256),
        r1=Lazy(weight=0.05, every=2),
        path_length=Lazy(weight=2.0, every=2),
        dtype="float32",
    ),
}

# ---- StyleNAT (Walton et al. 2022)

_STYLENAT = GanTrainConfig(
    run=_run(1_000_000, 64, 5000, precision="no"),
    network=stylenat.CONFIGS["ffhq-256"],
    discriminator=wavelet.CONFIGS["ffhq-256"],
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
    run=_EMOJI,
    network=replace(stylenat.CONFIGS["emoji-64"], widths=(512, 512, 256, 128, 64), heads=(16, 16, 8, 4, 4)),
    discriminator=replace(wavelet.CONFIGS["emoji-64"], widths=(128, 512, 512, 512), spectral=True),
    clip=CLIP,
    guidance=1.0,
    lr_decay_from=0,
    flips=False,  # a caption may say left or right
    sample_prompts=PROMPTS,
    dtype="bfloat16",
    licence=LICENCE,
)
STYLENAT = {
    "ffhq-256": _STYLENAT,
    "ffhq-1024": replace(
        _STYLENAT, network=stylenat.CONFIGS["ffhq-1024"], discriminator=wavelet.CONFIGS["ffhq-1024"], lr_decay_from=0
    ),
    "emoji": _STYLENAT_EMOJI,
    "emoji-cpu": replace(
        _STYLENAT_EMOJI,
        run=_EMOJI_CPU,
        network=replace(
            stylenat.CONFIGS["emoji-64"],
            widths=(128, 128, 64, 32, 16),
            heads=(4, 4, 2, 2, 2),
            kernels=((4,), (7,), (5, 5), (3, 3), (3, 3)),
            mlp_ratio=2.0,
        ),
        discriminator=wavelet.CONFIGS["emoji-64"],
        r1=Lazy(weight=1.0, every=16),
        lr=1e-3,
        lr_discriminator=2e-3,
        average=Average(half_life=1_500),
    ),
    "test": replace(
        _STYLENAT_EMOJI,
        run=_run(4, 4, 2, precision="no", log_every=1),
        network=replace(stylenat.CONFIGS["test"], condition_width=256),
        discriminator=replace(wavelet.CONFIGS["test"], condition_width=256),
        r1=Lazy(weight=1.0, every=2),
        dtype="float32",
    ),
}
