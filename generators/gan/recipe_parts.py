"""What the recipes of several families share: the CLIP that ships, sizes of a run, the licence of what is learnt."""

from typing import Any, Literal

from star.generators.training.run import RunConfig

CLIP = "guide-emoji"  # ships, apart from clip-emoji, which scores: who guides should not judge
LICENCE = "MIT; pictures learnt from: Apache-2.0, MIT, CC-BY-4.0"


def run_config(steps: int, batch: int, every: int, *, precision: Literal["no", "bf16"], **settings: Any) -> RunConfig:
    """A run that leaves gradients as they are, as all three papers do.

    every: steps between two checkpoints, and between two grids of samples. precision: "no" is TF32 on a GPU
    (precision.py). settings: other fields of RunConfig.
    """
    return RunConfig(
        steps=steps,
        batch_size=batch,
        precision=precision,
        grad_clip=0.0,
        sample_every=every,
        checkpoint_every=every,
        **settings,
    )


EMOJI_CPU_RUN = run_config(4000, 8, 500, precision="no", log_every=25)
# The same on a CPU that multiplies in bfloat16: about twice as many pictures an hour. At first, and then beside the
# adversarial loss, pictures are held against those that the captions belong to.
EMOJI_FAST_RUN = run_config(3200, 32, 400, precision="bf16", log_every=25)
EMOJI_FAST: dict[str, Any] = {
    "run": EMOJI_FAST_RUN,
    "forms": "fast",
    "towers": "bfloat16",
    "one_draw": True,
    "paired": 10.0,
    "paired_alone": 600,
    "lr_decay_from": 1,
}
EMOJI_RUN = run_config(40000, 64, 2000, precision="no")
