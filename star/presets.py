"""Recipes of the next-scale transformer: one table, where a line says what differs from the one before.

star train star --preset emoji-cpu --data SHARDS --out RUN [--lr=3e-4 --run.steps=2000 ...]
"""

from dataclasses import replace

from generators.protocol import SampleOptions
from generators.run import RunConfig
from star.train import TrainConfig

PROMPTS = (
    "a red apple, noto emoji style",
    "a yellow taxi, twemoji emoji style",
    "a black and white drawing of a cat",
    "a slice of pizza, 3D fluent emoji style",
    "a smiling face with sunglasses",
    "the flag of Japan",
    "a green tree, flat emoji style",
    "a blue heart",
)

EMOJI_CPU = TrainConfig(
    run=RunConfig(steps=12000, batch_size=64, precision="bf16", grad_clip=2.0),
    tokenizer="runs/tokenizer/model",
    text_encoder="runs/clip/model",
    width=384,
    depth=8,
    heads=6,
    dropout=0.1,
    attention="eager",  # 2.8 times as fast as the fused kernel at 130 tokens in bfloat16 on a CPU
    head_float32=False,
    lr=6e-4,
    warmup=300,
    ema=0.999,
    code_noise=0.2,
    compile=False,
    sample_prompts=PROMPTS,
    sample_options=SampleOptions(guidance=3.0, top_p=0.9),
)

PRESETS: dict[str, TrainConfig] = {
    "emoji-cpu": EMOJI_CPU,  # 64 px, about 70 minutes on 2 cores
    "emoji": replace(
        EMOJI_CPU,  # 128 px on one GPU
        run=replace(EMOJI_CPU.run, steps=40000, batch_size=256),
        width=768,
        depth=12,
        heads=12,
        lr=3e-4,
        warmup=1000,
        ema=0.9998,
        dropout=0.1,
        attention="sdpa",
        head_float32=True,
        compile=True,
    ),
    "test": replace(
        EMOJI_CPU,
        run=RunConfig(steps=4, batch_size=4, log_every=1, sample_every=2, checkpoint_every=2),
        width=32,
        depth=2,
        heads=2,
        warmup=0,
        validate_every=2,
        held_out=0.2,
        sample_prompts=("a red circle",),
    ),
}
