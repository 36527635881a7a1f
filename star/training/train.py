"""Training of the next-scale transformer: shards to latents and text, teacher forcing, a run.

B batch, L tokens of all scales, K number of scales, k scale index, V codebook, E code width, h w finest latent grid.

    star train star --preset emoji-cpu --data SHARDS --out RUN

Read from `train` downwards; the presets are in `presets.py`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from star.data.errors import InputError
from star.data.images import grid
from star.data.loader.pipeline import Batch, Pipeline
from star.data.shards.listing import list_shards
from star.data.shards.splits import held_out_shards, training_sources
from star.generator import StarGenerator
from star.generators import registry
from star.generators.config import to_dict
from star.generators.pretrained import IMAGES_SEEN, reference
from star.generators.training.data_feed import Feed, Sources
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run
from star.generators.training.schedule import lr_at, set_lr
from star.model.attention_backends import refuse_untrainable
from star.model.refiner import Refiner
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.planning.flops import mean, work
from star.precomputed.dataset import EncodedReader, EncodedShards
from star.precomputed.format import Encoding, encoding_of
from star.tokenizer.portions import loaded_at_once
from star.training.config import TrainConfig
from star.training.frozen_networks import FrozenNetworks
from star.training.init_from import start_from
from star.training.inputs import EncodedSet, Encoder, TrainingInputs, encoded_bytes
from star.training.optimizers import make_optimizers
from star.training.targets import per_scale
from star.training.token_dropping import Part, TokenWeights
from star.training.validation import Validation, is_held_out, shared_out


def train(config: TrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on shards and returns the model directory written at the end, `out/model`.

    Raises InputError for anything wrong with data, config or folder; see star.generators.training.run for what a run
    leaves behind.
    """
    if config.refiner is not None:
        raise ValueError("a config with a refiner trains that alone: give it to star.training.stages.train")
    config, sources, encoding = settle(config, data)
    out = Path(out)
    refuse_untrainable(config.attention, Accelerator().device)
    frozen = FrozenNetworks(config.tokenizer, config.text_encoder, encoding)
    network = config.network(frozen)
    curriculum = config.curriculum(network.schedule)
    feed = make_feed(config, sources, out, frozen, resume)
    config = feed.config
    names = feed.names | {"network": to_dict(network), "digests": frozen.digests}
    run = Run(out, config.run, to_dict(config) | names, resume)
    model, ema, optimizers = make_networks(config, run, network, frozen)
    smooth: NextScaleTransformer = ema.module  # type: ignore[assignment]

    pipeline, encoder, validation = prepare_data(config, feed, frozen, run)
    done = mean(
        (work(network, part.lengths, frozen.text_encoder.max_tokens), share)
        for part, share in curriculum.shares().items()
    )
    run.throughput.flops_per_image = done.forward + done.backward  # what is computed a second time is no use
    if network.bits:
        run.say(f"a token is {network.bits} bits: all losses are nats per bit")
    batches = feed.batches(run, pipeline)
    weights = TokenWeights(config.scale_power, run.device)
    if config.compile:
        compile_blocks(run.unwrap(model), run.device)
    model.train()
    for step in run.steps():
        lr = set_rates(config, run, optimizers, step)
        part = curriculum.at(step, run.total_steps)
        for _ in run.micro_steps(model):
            learn(config, run, model, encoder, validation.without_held_out(next(batches)), part, weights)
        run.log({"grad_norm": run.clip(model.parameters()), "lr": lr})
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update_parameters(run.unwrap(model))
        if validation.pictures and run.due(step, config.validate_every):
            measure(run, smooth, validation, step)
        if run.sample_due(step) and config.sample_prompts:
            whole = run.whole(smooth, lambda: NextScaleTransformer(network))
            if run.is_main:
                show(config, run, frozen.generator(whole, config.aspects), step)
    whole = run.whole(smooth, lambda: NextScaleTransformer(network))
    if run.is_main:
        seen = registry.images_seen_after(run.images, config.init_from)
        save(config, frozen.generator(whole, config.aspects), out / "model", card(config, run, validation), seen)
        run.say(pipeline.report.text())
    return out / "model"


def settle(config: TrainConfig, data: Sequence[str]) -> tuple[TrainConfig, Sources, Encoding | None]:
    """The config with what the data decide, the shards that are learnt from, and how these were encoded, if they were.

    Raises InputError for encoded shards that do not serve the config.
    """
    sources = training_sources(data, config.weights)
    config = replace(config, validation=config.validation or held_out_shards(data))
    shards = [shard for source, _ in sources for shard in source]
    encoding = encoding_of((*shards, *(list_shards(config.validation) if config.validation else ())))
    if encoding is not None:
        encoding.check_use(config.crop, config.code_noise, config.aspects)
    if encoding is not None or config.aspects:
        config = replace(config, precompute=False)
    return config, sources, encoding


def make_feed(
    config: TrainConfig,
    sources: Sources,
    out: Path,
    frozen: FrozenNetworks,
    resume: bool,
) -> Feed[TrainConfig]:
    """The stream of training pictures, or of what was encoded of them."""
    first, cell = sources[0][0][0], frozen.tokenizer.resolution // frozen.tokenizer.schedule.finest
    grids = [schedule.grid for schedule in config.schedules(frozen.tokenizer.schedule)]
    return Feed(
        config,
        sources,
        out,
        resume=resume,
        resolution=frozen.tokenizer.resolution,
        keep="precompute",
        more_bytes=partial(encoded_bytes, frozen, first),
        reader=None if frozen.encoding is None else EncodedReader(frozen.encoding.config),
        buckets=tuple((h * cell, w * cell) for h, w in grids) if config.aspects else (),
    )


def make_networks(
    config: TrainConfig, run: Run, network: TransformerConfig, frozen: FrozenNetworks
) -> tuple[NextScaleTransformer, MovingAverage, dict[str, torch.optim.Optimizer]]:
    """The transformer, its moving average and its optimizers, distributed, and as the run's checkpoint has them."""
    model = NextScaleTransformer(network)
    if config.init_from:
        run.say(start_from(model, config.init_from, frozen.tokenizer))
    ema = MovingAverage(model, lambda: ema_decay(run.step, config.ema, config.ema_warmup))
    smooth: NextScaleTransformer = ema.module  # type: ignore[assignment]
    run.distribute(smooth, smooth.blocks, learns=False)
    model = run.distribute(model, model.blocks)
    optimizers = make_optimizers(config, run.unwrap(model))
    run.track(model=model, ema=ema, **optimizers)
    run.restore()
    return model, ema, optimizers


def set_rates(config: TrainConfig, run: Run, optimizers: Mapping[str, torch.optim.Optimizer], step: int) -> float:
    """Gives the optimizers the rate of this step, and returns it."""
    lr = lr_at(
        step,
        peak=config.lr,
        steps=run.total_steps,
        warmup=config.warmup,
        shape=config.schedule,
        floor=config.lr_floor,
        hold=config.lr_hold,
    )
    for optimizer in optimizers.values():
        set_lr(optimizer, lr)
    return lr


def learn(
    config: TrainConfig,
    run: Run,
    model: NextScaleTransformer,
    encoder: TrainingInputs,
    batch: Batch,
    part: Part,
    weights: Mapping[Part, Tensor],
) -> None:
    """Gradients of one batch: teacher forcing on the scales and tokens that take part, each with its weight."""
    targets = encoder.targets(batch, noise=config.code_noise, neighbours=config.noise_neighbours, scales=part.scales)
    prompts = drop_captions(batch.prompts, config.caption_dropout, above=config.caption_dropout_above)
    text = encoder.batch_text(batch, prompts)
    part = part.of(targets.schedule)
    kept_L, codes_BL = part.take(targets.codes_BL)
    with run.autocast():
        loss_BL = model(
            targets.teacher_input_BlE,
            text,
            kept_L=kept_L,
            codes_BL=codes_BL,
            label_smoothing=config.label_smoothing,
            schedule=targets.schedule,
        )
    loss = (loss_BL.mean(dim=0) * weights[part]).sum()
    run.backward(loss)
    losses = {f"loss_scale/{k}": value for k, value in enumerate(per_scale(loss_BL, part.lengths))}
    run.log({"loss": loss.detach()} | losses, images=len(batch))


def measure(run: Run, smooth: NextScaleTransformer, validation: Validation, step: int) -> None:
    """Losses of the held-out pictures; every process must ask for it."""
    losses_K = validation.losses(smooth)
    shapes = {f"validation_loss/{shape}": found_K.mean() for shape, found_K in validation.of_shapes.items()}
    run.note({"validation_loss": losses_K.mean(), "validation_loss_scale": losses_K} | shapes)
    if run.is_main:
        validation.write(run.out / "validation.json", losses_K, step)


def show(config: TrainConfig, run: Run, generator: StarGenerator, step: int) -> None:
    """Sample pictures, a grid for each aspect."""
    prompts = config.sample_prompts
    for aspect in config.aspects or ("",):
        options = replace(config.sample_options, size=aspect) if aspect else config.sample_options
        pixels_B3HW = generator.generate(prompts, seeds=range(len(prompts)), options=options)
        name = f"samples-{aspect.replace(':', 'to')}" if aspect else "samples"
        run.picture(name, grid(pixels_B3HW, columns=8), step)


def save(config: TrainConfig, generator: StarGenerator, path: Path, text: str, images_seen: int) -> None:
    """Writes the model directory as the config asks for it, with the sampling options that it was shown with."""
    places = {"tokenizer": config.tokenizer, "text_encoder": config.text_encoder}
    generator.save_pretrained(
        path,
        card=text,
        about={"options": to_dict(config.sample_options), "licence": config.licence, IMAGES_SEEN: images_seen},
        references=None if config.bring_along else {name: reference(path, place) for name, place in places.items()},
        dtype=getattr(torch, config.dtype),
    )


def ema_decay(step: int, decay: float, warmup: bool) -> float:
    """The decay of the averaged weights in a step, 0 being the first."""
    return min(decay, (step + 1) / (step + 10)) if warmup else decay


def compile_blocks(model: NextScaleTransformer | Refiner, device: torch.device) -> None:
    """Compiles the blocks one by one: being alike they are compiled once, in seconds. Raises InputError without g++."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise InputError("compile=true needs a C++ compiler on the CPU, found none: install g++, or set compile=false")
    for block in model.blocks:
        block.compile()


def drop_captions(prompts: Sequence[str], share: float, *, above: int = 0) -> list[str]:
    """Some prompts of more than `above` characters emptied at random (torch's global generator, which the run seeds
    for each step)."""
    kept = (torch.rand(len(prompts)) >= share).tolist()
    return [prompt if keep or len(prompt) <= above else "" for prompt, keep in zip(prompts, kept, strict=True)]


def prepare_data(
    config: TrainConfig, feed: Feed[TrainConfig], frozen: FrozenNetworks, run: Run
) -> tuple[Pipeline, TrainingInputs, Validation]:
    """The stream of training batches, what makes training_inputs of them, and what is held out."""
    pipeline = feed.pipeline(run)
    half = config.run.precision == "bf16"
    # Every process needs what is in memory; of what is streamed each decodes its turn, see validation.shared_out.
    loaded = loaded_at_once(frozen.tokenizer.resolution)
    every, schedules = pipeline.alone(loaded), config.schedules(frozen.tokenizer.schedule)
    encoder: TrainingInputs
    if frozen.encoding is not None:
        captions = frozen.encoding.config.text == "captions"
        encoder = EncodedShards(frozen.encoding, run.device, frozen.text(run.device) if captions else None)
    elif config.precompute:
        encoder = EncodedSet(*frozen.networks(run.device), run.device, every.one_pass(), half=half)
    else:
        encoder = Encoder(*frozen.networks(run.device), run.device, half=half)
    if config.validation:
        held = replace(feed.settings, sources=((config.validation, 1.0),), workers=0, cache=False)
        source = Pipeline(held, batch_size=loaded, reader=feed.reader)
        batches = shared_out(source, run, lambda _key: True, config.validation_pictures)
        validation = Validation(encoder, batches, run, schedules=schedules)
    else:
        batches = shared_out(every, run, lambda key: is_held_out(key, config.held_out), config.validation_pictures)
        validation = Validation(encoder, batches, run, share=config.held_out, schedules=schedules)
    if config.refiner is None:
        validation.count_codes(encoder, every)
    return pipeline, encoder, validation


def card(config: TrainConfig, run: Run, validation: Validation) -> str:
    """The model card: how it was made, and its validation losses."""
    table = "".join(
        f"| {row['size']} | {row['loss']} | {row['unigram']} |\n" for row in getattr(validation, "table", [])
    )
    return (
        "# A STAR generator\n\n"
        f"Trained for {run.step} steps of {run.config.batch_size} pictures.\n\n"
        f"Nats per {validation.tokens.unit} on {validation.pictures} held-out pictures, and what "
        "code frequencies alone would cost:\n\n"
        f"| side | network | frequencies |\n|---|---|---|\n{table}\n"
        f"```json\n{json.dumps(to_dict(config), indent=1)}\n```\n"
    )
