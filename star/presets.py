"""Recipes of the next-scale transformer: one table, where a line says what differs from the one before.

star train star --preset emoji-cpu --data SHARDS --out RUN [--lr=3e-4 --run.steps=2000 ...]
"""

from dataclasses import replace

from generators.protocol import SampleOptions
from generators.run import RunConfig
from star.train import TrainConfig

PROMPTS = (
    "a red apple, noto emoji style",
    "a cat face, twemoji emoji style",
    "a slice of pizza, fluent 3d emoji style",
    "a turtle, fluent high contrast style",
    "a smiling face with sunglasses, noto emoji style",
    "the flag of Japan, twemoji emoji style",
    "a deciduous tree, fluent flat emoji style",
    "a red heart, blob emoji style",
    "a taxi, fluent flat emoji style",
    "a soccer ball, emojitwo style",
    "a rocket, fluent 3d emoji style",
    "a woman with red hair, blob emoji style",
    "a dog, drawn as a black silhouette icon",
    "a hot beverage, fxemoji style",
    "a banana, streamline emoji style",
    "",
)

EMOJI_CPU = TrainConfig(
    run=RunConfig(
        steps=4500, batch_size=32, precision="bf16", grad_clip=2.0, sample_every=500, checkpoint_every=500, log_every=25
    ),
    tokenizer="star/weights/tokenizer-emoji",
    text_encoder="star/weights/clip-emoji",
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
    sample_prompts=PROMPTS,
    sample_options=SampleOptions(guidance=3.0, top_p=0.9),
    dtype="bfloat16",
    bring_along=False,
    licence="MIT; pictures learnt from: Apache-2.0, MIT, CC-BY-4.0",
)

PRESETS: dict[str, TrainConfig] = {
    "emoji-cpu": EMOJI_CPU,  # 64 px, about 70 minutes on 2 cores
    "emoji": replace(
        EMOJI_CPU,  # 128 px on one GPU
        run=replace(EMOJI_CPU.run, steps=40000, batch_size=256, sample_every=2000, checkpoint_every=2000),
        width=768,
        depth=12,
        heads=12,
        lr=3e-4,
        warmup=1000,
        ema=0.9998,
        dropout=0.1,
        attention="sdpa",
        head_float32=True,
    ),
    "test": replace(
        EMOJI_CPU,
        run=RunConfig(steps=4, batch_size=4, log_every=1, sample_every=2, checkpoint_every=2),
        width=32,
        depth=2,
        heads=2,
        warmup=0,
        compile=False,
        dtype="float32",
        bring_along=True,
        validate_every=2,
        held_out=0.2,
        sample_prompts=("a red circle",),
    ),
}
