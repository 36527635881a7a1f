"""Recipes of the next-scale transformer: one table, where a line says what differs from the one before.

star train star --preset emoji-cpu --data SHARDS --out RUN [--lr=3e-4 --run.steps=2000 ...]

The curriculum (Ma et al. 2024) goes from 256 to 512 to 1024 pixels. Each of its presets starts from what the one before
left in runs/, and uses the released tokenizer on its own scales:

    star convert var-tokenizer vae_ch160v4096z32.pth models/tokenizer-512 --preset star-d30-512
    star train star --preset star-d30-512 --data SHARDS --out runs/star-d30-512
"""

from dataclasses import replace
from typing import Literal

from star.convert.published import SIZES_256, SIZES_512, SIZES_1024, TEXT_ENCODER
from star.generators.protocol import SampleOptions
from star.generators.sample_prompts import PROMPTS
from star.generators.training.run import RunConfig
from star.training.config import TrainConfig
from star.training.refiner_config import RefinerTraining

EMOJI_CPU = TrainConfig(
    run=RunConfig(
        steps=4500, batch_size=32, precision="bf16", grad_clip=2.0, sample_every=500, checkpoint_every=500, log_every=25
    ),
    tokenizer="tokenizer-emoji",
    text_encoder="guide-emoji",
    width=384,
    depth=6,
    heads=6,
    dropout=0.0,
    scale_power=0.75,
    attention="eager",  # 2.8 times as fast as the fused kernel at 130 tokens in bfloat16 on a CPU
    head_float32=False,
    lr=1e-3,
    warmup=200,
    ema=0.998,
    code_noise=0.1,
    noise_neighbours=32,
    compile=True,
    sample_prompts=(*PROMPTS[:-1], ""),
    sample_options=SampleOptions(
        guidance_scale=2.0, guidance_ramp=0.0, temperature=0.5, top_p=0.7, temperature_decay=0.2
    ),
    dtype="bfloat16",
    licence="MIT; pictures learnt from: Apache-2.0, MIT, CC-BY-4.0",
)

_EMOJI_OPTIONS = SampleOptions(guidance_scale=2.0, guidance_ramp=0.0, temperature=0.7, top_p=0.8, temperature_decay=0.2)


def _stage(config: TrainConfig, *, pictures: int, batch: int, precision: Literal["no", "bf16"]) -> TrainConfig:
    """One stage of the curriculum: its steps, a fiftieth of which is warm-up. precision: "no" is TF32 on a GPU."""
    steps = pictures // batch
    return replace(
        config, run=replace(config.run, steps=steps, batch_size=batch, precision=precision), warmup=steps // 50
    )


# The released settings, with bfloat16 for their float16. Their warm-up starts at 0.005 of lr, ours at its first step.
_CURRICULUM = TrainConfig(
    run=RunConfig(steps=1, batch_size=512, sharding="fsdp2", grad_clip=2.0, sample_every=5000, checkpoint_every=5000),
    tokenizer="models/tokenizer-256",
    text_encoder=TEXT_ENCODER,
    width=1920,
    depth=30,
    heads=30,
    drop_path=0.1 * 30 / 24,
    attention="flex",  # on a CPU: scalewise
    lr=1e-4,
    schedule="linear",
    lr_floor=0.01,
    lr_hold=0.05,
    weight_decay=0.05,
    betas=(0.9, 0.95),
    ema=0.0,
    caption_dropout=0.1,
    caption_dropout_above=20,
    crop="squash",
    precompute=False,
    workers=8,
    validate_every=5000,
    sample_options=SampleOptions(guidance_scale=5.0, top_k=4096, top_p=0.8),
)
# The curated set has a size that was never told; here it counts as ten million, seen as often as was released.
_CURATED = 10_000_000
_D30_256 = _stage(_CURRICULUM, pictures=40_000_000, batch=480, precision="bf16")
_D30_256_FINISH = _stage(
    replace(_CURRICULUM, init_from="runs/star-d30-256/model", lr=5e-5),
    pictures=4 * _CURATED,
    batch=480,
    precision="bf16",
)
_D30_512 = _stage(
    replace(
        _CURRICULUM,
        tokenizer="models/tokenizer-512",
        init_from="runs/star-d30-256-finish/model",
        lr=5e-5,
        checkpointing=True,
    ),
    pictures=5 * _CURATED,
    batch=192,
    precision="no",  # as released: float32 whose products are TF32
)
_D30_1024 = _stage(
    replace(
        _CURRICULUM,
        tokenizer="models/tokenizer-1024",
        init_from="runs/star-d30-512/model",
        lr=2e-5,
        checkpointing=True,
        keep_last_scale=3445 / 4096,  # 8800 of 9451 tokens
    ),
    pictures=2 * _CURATED,
    batch=64,
    precision="bf16",
)

# Scales of the curriculum's tokenizers, for plans on a machine that does not hold them.
CURRICULUM_SIZES = {
    "models/tokenizer-256": SIZES_256,
    "models/tokenizer-512": SIZES_512,
    "models/tokenizer-1024": SIZES_1024,
}

_TEST = replace(
    EMOJI_CPU,
    run=RunConfig(steps=4, batch_size=4, log_every=1, sample_every=2, checkpoint_every=2),
    width=32,
    depth=2,
    heads=2,
    warmup=0,
    compile=False,
    dtype="float32",
    validate_every=2,
    held_out=0.2,
    sample_prompts=("a red circle",),
)

PRESETS: dict[str, TrainConfig] = {
    "emoji-cpu": EMOJI_CPU,  # 64 px, about 70 minutes on 2 cores
    # 64 px on 2 CPU cores without bf16 units, with --init-from=MODEL: on to the tokenizer "emoji-cpu-fine"
    "emoji-cpu-fine": replace(
        EMOJI_CPU,
        run=replace(EMOJI_CPU.run, steps=1200, batch_size=16, precision="no"),
        lr=5e-4,
        warmup=60,
        ema=0.995,
        keep_last_scale=0.125,  # the finest scale is not learnt so, but the coarser ones are, at half the cost
    ),
    # and then, from the model of that, the whole picture
    "emoji-cpu-fine-finish": replace(
        EMOJI_CPU,
        run=replace(EMOJI_CPU.run, steps=570, batch_size=16, precision="no"),
        lr=4e-4,
        warmup=20,
        ema=0.99,
    ),
    # and on from there, mostly by coarse scales: shape costs a seventh of edges; again to be followed by "-finish"
    "emoji-cpu-coarse": replace(
        EMOJI_CPU,
        run=replace(EMOJI_CPU.run, steps=900, batch_size=48, precision="no"),
        optimizer="muon",
        lr=1e-3,
        matrix_lr=2.5,
        warmup=20,
        lr_hold=0.2,
        lr_floor=0.05,
        ema=0.99,
        coarse_scales=5,
        coarse_steps=6 / 7,
        keep_last_scale=0.25,
    ),
    # star-emoji as it ships, 64 px on one GPU, to be ended by --run.minutes (9 on an H200, where a loop of the same
    # arithmetic saw 2,040 pictures a second); 22 GiB
    "emoji": replace(
        EMOJI_CPU,
        run=replace(
            EMOJI_CPU.run, steps=100_000, batch_size=256, sample_every=1000, checkpoint_every=1000, log_every=200
        ),
        width=448,
        depth=7,
        heads=7,
        optimizer="muon",
        lr=1e-3,
        matrix_lr=2.5,
        warmup=150,
        lr_hold=0.25,
        lr_floor=0.02,
        dropout=0.1,
        ema=0.998,
        ema_warmup=True,
        code_noise=0.15,
        attention="sdpa",
        validate_every=1000,
        sample_options=_EMOJI_OPTIONS,
    ),
    # on the tokenizer "emoji-bits": a token is 16 bits, any of which may be flipped (Han et al. 2024: up to 0.3)
    "emoji-bits": replace(
        EMOJI_CPU,
        tokenizer="runs/tokenizer/model",
        code_noise=0.2,
        noise_neighbours=0,
        sample_options=SampleOptions(guidance_scale=2.0, guidance_ramp=0.0, temperature=0.5, temperature_decay=0.2),
    ),
    "emoji-128": replace(
        EMOJI_CPU,  # 128 px on one GPU, to be ended by --run.minutes; at most 0.32 TFLOP a picture and 36 GB in all
        run=replace(EMOJI_CPU.run, steps=12000, batch_size=64, sample_every=2000, checkpoint_every=2000),
        width=512,
        depth=10,
        heads=8,
        optimizer="muon",
        lr=8e-4,
        matrix_lr=2.5,
        dropout=0.1,  # each picture is seen a dozen times or more
        ema=0.999,
        attention="sdpa",
        coarse_scales=6,  # 130 of 1,554 tokens
        coarse_steps=0.6,
        whole_last=0.3,
    ),
    "star-d16-256": _stage(
        replace(_CURRICULUM, width=1024, depth=16, heads=16, drop_path=0.1 * 16 / 24),
        pictures=10 * _CURATED,
        batch=512,
        precision="bf16",
    ),
    "star-d30-256": _D30_256,  # on pairs from the web, once
    "star-d30-256-finish": _D30_256_FINISH,  # on curated ones
    "star-d30-512": _D30_512,
    "star-d30-1024": _D30_1024,
    # star-emoji with a refiner of its five finest scales: on one CPU core with bf16 units, to be ended by --run.minutes
    "emoji-refiner": replace(
        EMOJI_CPU,
        run=replace(EMOJI_CPU.run, steps=2000, batch_size=8, sample_every=0, checkpoint_every=50, log_every=10),
        init_from="star-emoji",
        # mirrored and moved by a pixel, pictures cost star-emoji at fine scales what held-out ones do, otherwise half
        refiner=RefinerTraining(depth=2, scales=5, masks=2, flip=0.5, shift=1),
        width=448,
        depth=7,
        heads=7,
        optimizer="muon",
        lr=1e-3,
        matrix_lr=2.5,
        warmup=20,
        ema=0.99,
        ema_warmup=True,
        attention="scalewise",  # the transformer goes forward 1.4 times as fast with it
        compile=False,
        validate_every=100,
        precompute=False,
        validation_pictures=128,
        sample_options=replace(_EMOJI_OPTIONS, expand_prompt=True),
    ),
    "test": _TEST,
    # behind such a model
    "refiner-test": replace(
        _TEST, init_from="runs/star/model", refiner=RefinerTraining(depth=1, scales=2, steps=(3, 4), shuffled=(1,))
    ),
    "bits-test": replace(_TEST, tokenizer="runs/tokenizer/model", noise_neighbours=0),
}

# Pictures of several shapes, each batch of one, from the weights of squares; the tokenizer is convolutions, which take
# any shape as they are. Widths and heights as Infinity (Han et al. 2024) has them, up to 2:1.
ASPECTS = ("1:1", "5:4", "4:5", "4:3", "3:4", "3:2", "2:3", "7:4", "4:7", "2:1", "1:2")
PRESETS |= {
    "emoji-aspect": replace(
        PRESETS["emoji"], init_from="star-emoji", aspects=ASPECTS, lr=5e-4, lr_hold=0.0, precompute=False
    ),
    "test-aspect": replace(PRESETS["test"], aspects=("1:1", "3:2", "1:2"), precompute=False, code_noise=0.0),
}
