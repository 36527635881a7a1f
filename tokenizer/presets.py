"""Training presets of the tokenizer, one table; variants by `replace`, so a diff shows what differs."""

from dataclasses import replace

from star.generators.training.run import RunConfig
from star.tokenizer.autoencoder import AutoencoderConfig, DetailConfig
from star.tokenizer.bitwise import BitsConfig, BitwiseConfig
from star.tokenizer.codebook import CodebookConfig
from star.tokenizer.config import TokenizerTrainConfig
from star.tokenizer.quantizer import QuantizerConfig
from star.tokenizer.tokenizer import TokenizerConfig

_CPU_NETWORK = TokenizerConfig(
    autoencoder=AutoencoderConfig(
        channels=64,
        multipliers=(1, 2, 4),
        encoder_blocks=1,
        decoder_blocks=2,
        code_width=16,
        patch=2,
        norm="layer",
        level_attention=False,
    ),
    quantizer=QuantizerConfig(vocabulary=1024, code_width=16, sizes=(1, 2, 3, 4, 5, 6, 8)),
)

_EMOJI_CPU = TokenizerTrainConfig(
    run=RunConfig(steps=2560, batch_size=32, precision="bf16", log_every=50, sample_every=500, checkpoint_every=500),
    network=_CPU_NETWORK,
    ema=0.998,
    cut=0.1,
    lr_steps=5500,
)

_EMOJI_FINE = TokenizerConfig(
    autoencoder=replace(
        _CPU_NETWORK.autoencoder, channels=96, multipliers=(1,), encoder_blocks=1, decoder_blocks=3, patch=4
    ),
    quantizer=replace(_CPU_NETWORK.quantizer, sizes=(1, 2, 3, 4, 5, 6, 8, 16)),
)
_TEST = TokenizerTrainConfig(
    run=RunConfig(steps=8, batch_size=8, log_every=1, sample_every=4, checkpoint_every=4),
    network=TokenizerConfig(
        autoencoder=AutoencoderConfig(
            channels=16, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1, code_width=8, patch=4, norm="layer"
        ),
        quantizer=QuantizerConfig(vocabulary=32, code_width=8, sizes=(1, 2, 4)),
    ),
    warmup=2,
)
_EMOJI_FINE_DETAIL = replace(_EMOJI_FINE, detail=DetailConfig(trunk_blocks=5))

PRESETS: dict[str, TokenizerTrainConfig] = {
    # 64 px on 2 CPU cores with bf16 matrix units
    "emoji-cpu": _EMOJI_CPU,
    # its second half, with --init-from the first half's model
    "emoji-cpu-finish": replace(
        _EMOJI_CPU,
        run=replace(_EMOJI_CPU.run, steps=2600, seed=1),
        codebook=CodebookConfig(scale_floor=0.25, floor_moves=2),
        lr=8e-4,
        lr_steps=0,
        cut=0.05,
    ),
    # the decoder alone, on codes that stay as they are
    "emoji-cpu-decoder": replace(
        _EMOJI_CPU,
        run=replace(_EMOJI_CPU.run, steps=2000, seed=2),
        freeze_codes=True,
        lr=6e-4,
        lr_steps=0,
        cut=0.05,
    ),
    # 64 px on 2 CPU cores without bf16 units: a leaner network on a finer grid; with --align-to=MODEL of "emoji-cpu"
    # its coarse codes keep their meaning
    "emoji-cpu-fine": replace(
        _EMOJI_CPU,
        run=replace(_EMOJI_CPU.run, steps=3000, seed=3, precision="no"),
        network=_EMOJI_FINE,
        codebook=CodebookConfig(decay=0.998, scale_floor=0.15, hold=1200),
        lr_steps=0,
        cut=0.1,
    ),
    # the decoder of that, finer: corrections on the pixel grid, on codes that stay as they are; with
    # --init-from=tokenizer-emoji
    "emoji-cpu-detail": replace(
        _EMOJI_CPU,
        run=replace(_EMOJI_CPU.run, steps=8000, seed=4, batch_size=16, checkpoint_every=250),
        network=_EMOJI_FINE_DETAIL,
        freeze_codes=True,
        jitter=True,
        reconstruction=0.1,
        log_error=True,
        l1=0.0,
        lr=1e-3,
        lr_steps=0,
        cut=0.05,
    ),
    # "emoji-cpu" with tokens of 16 bits instead of a codebook, to be ended by --run.minutes
    "emoji-bits": replace(
        _EMOJI_CPU,
        network=replace(_CPU_NETWORK, quantizer=BitwiseConfig(bits=16, sizes=_CPU_NETWORK.quantizer.sizes)),
        codebook=BitsConfig(),
        lr_steps=0,
    ),
    # 128 px on one GPU, to be ended by --run.minutes: 32x32 latents, since fidelity takes 4x4 pixels a token
    "emoji": replace(
        _EMOJI_CPU,
        run=replace(_EMOJI_CPU.run, steps=6000, batch_size=128, log_every=50, sample_every=1000, checkpoint_every=1000),
        network=TokenizerConfig(
            autoencoder=replace(
                _CPU_NETWORK.autoencoder, channels=96, multipliers=(1, 2), decoder_blocks=3, level_attention=True
            ),
            quantizer=QuantizerConfig(vocabulary=2048, code_width=16, sizes=(1, 2, 3, 4, 6, 8, 12, 16, 32)),
        ),
        lr=5e-4,
        lr_steps=0,
        warmup=150,
    ),
    # The released tokenizer's shape, for photographs at 256 px. Its training was never released; the paper (Tian et al.
    # 2024, Eq. 5) tells the terms: squared error of pictures, that of latents, LPIPS, and a discriminator "like
    # StyleGAN's". So the same here: LPIPS with VGG16, made by `star convert lpips VGG16_FILE models/lpips`, and
    # StyleGAN2's discriminator behind DiffAug. Ours, since nothing tells them: the weights of the terms (1 and, times
    # the adaptive weight of Esser et al. 2021, 0.5), hinge losses without R1, DiffAug itself, the start after 20,000
    # steps, rates, steps and the average; and pictures are whatever is given, where OpenImages was used.
    "var-256": TokenizerTrainConfig(
        run=RunConfig(steps=500_000, batch_size=256, precision="bf16"),
        codebook=CodebookConfig(rule="gradient"),
        commit_to="all",
        relative=False,
        reconstruction=1.0,
        l1=0.0,
        perceptual="lpips:models/lpips",
        perceptual_weight=1.0,
        lr=1e-4,
        adversary="stylegan2",
        augment="color,translation,cutout",
        adversary_weight=0.5,
        adversary_start=20_000,
        ema=0.9999,
    ),
    # a few seconds, for tests
    "test": _TEST,
    "bits-test": replace(
        _TEST,
        network=replace(_TEST.network, quantizer=BitwiseConfig(bits=8, sizes=(1, 2, 4))),
        codebook=BitsConfig(),
    ),
}
