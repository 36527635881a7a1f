"""Adversarial training of the style-based GANs: one program, in which a preset says which terms are on.

    star train styleformer --preset emoji-cpu --data SHARDS --out RUN

One step: the discriminator learns on a batch of real and drawn pictures, every `r1.every` steps from the R1 penalty as
well; then the generator learns on the same captions with fresh latents, every `path_length.every` steps from the path
length too; then the averaged weights follow. The two steps are in `trainer.py`, each family has its `presets.py`.

Gradients are averaged by hand, not by DDP: R1 and path length differentiate twice, which DDP does not support.

B batch, 3 RGB, H W pixels.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from star.data.images import grid
from star.data.loader.batch import to_device
from star.data.loader.pipeline import Batch
from star.data.shards.splits import training_sources
from star.generators import registry
from star.generators.config import to_dict
from star.generators.gan.config import GanTrainConfig
from star.generators.gan.forms import faster_forms
from star.generators.gan.trainer import AdversarialTrainer, TrainingBatch
from star.generators.pretrained import IMAGES_SEEN, reference
from star.generators.training.data_feed import Feed
from star.generators.training.run import Run
from star.generators.training.sample_rng import SampleRng


def train(config: GanTrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on the training shards among `data` and returns the model directory written at the end, `out/model`.

    Raises InputError for anything wrong with data, config or folder, and DivergenceError when a loss or a gradient is
    no longer finite, or the discriminator has made no mistake for too long: nothing is repaired in silence.
    """
    out = Path(out)
    feed = Feed(
        config, training_sources(data, config.weights), out, resume=resume, resolution=config.network.resolution
    )
    config = feed.config
    run = Run(out, config.run, to_dict(config) | feed.names, resume)
    trainer = AdversarialTrainer(config, run)
    run.track(**trainer.state())
    run.restore()
    pipeline = feed.pipeline(run)
    batches = feed.batches(run, pipeline)
    for step in run.steps():
        rng = SampleRng(config.run.seed, step, run.rank, run.world)
        micro_batches = [_training_batch(trainer, next(batches), rng, micro) for micro in range(config.run.accumulate)]
        with faster_forms(config.forms == "fast"):
            trainer.d_step(step, micro_batches, rng)
            trainer.g_step(step, micro_batches, rng)
        trainer.finish_step()
        if run.sample_due(step) and run.is_main and config.sample_prompts:
            prompts = config.sample_prompts
            pixels_B3HW = trainer.trained().generate(prompts, seeds=range(len(prompts)), options=config.sample_options)
            run.picture("samples", grid(pixels_B3HW, columns=8), step)
    if run.is_main:
        save(config, trainer, out / "model", card(trainer))
        run.say(pipeline.report.text())
    return out / "model"


def _training_batch(trainer: AdversarialTrainer, batch: Batch, rng: SampleRng, micro: int) -> TrainingBatch:
    """A batch as the networks see it: some captions left out, some pictures mirrored where the config asks for it."""
    config = trainer.config
    dropped = rng.flags(f"caption {micro}", len(batch), config.caption_dropout).tolist()
    prompts = ["" if drop else prompt for prompt, drop in zip(batch.prompts, dropped, strict=True)]
    device = trainer.run.device
    image_B3HW = to_device(batch.image_B3HW, device)
    if config.flips:
        mirrored = rng.flags(f"flip {micro}", len(batch), 0.5)[:, None, None, None].to(device, non_blocking=True)
        image_B3HW = torch.where(mirrored, image_B3HW.flip(3), image_B3HW)
    raw_B3HW = trainer.generator.network.normalise(image_B3HW)
    return TrainingBatch(raw_B3HW, prompts, trainer.conditions.of(prompts, batch.info))


def save(config: GanTrainConfig, trainer: AdversarialTrainer, path: Path, text: str) -> None:
    """Writes the averaged generator as the config asks for it, with the options of drawing that it was shown with."""
    shared = config.clip and not config.bring_along and config.phase != "text_encoder"
    trainer.trained().save_pretrained(
        path,
        card=text,
        about={
            "options": to_dict(config.sample_options),
            "licence": config.licence,
            IMAGES_SEEN: registry.images_seen_after(trainer.run.images, config.init_from),
        },
        references={"text_encoder": reference(path, config.clip)} if shared else None,
        dtype=getattr(torch, config.dtype),
    )


def card(trainer: AdversarialTrainer) -> str:
    """The model card that a run writes: what learnt, from how much, and the whole recipe."""
    config, run = trainer.config, trainer.run
    side = " x ".join(str(size) for size in trainer.generator.network.resolution)
    name = type(config.network).__name__.removesuffix("Config")
    recipe = json.dumps(to_dict(replace(config, sample_prompts=())), indent=1)
    return (
        f"# A {name} generator\n\n{side} px, conditioning {config.network.conditioning}. Trained for {run.step} steps "
        f"on {run.images} pictures (seed {config.run.seed}).\n\nRecipe:\n\n```json\n{recipe}\n```\n"
    )
