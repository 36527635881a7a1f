"""Fine-tuning of a STAR model on some captioned pictures: all its weights, or a small adapter beside them (LoRA).

B batch, L tokens of all scales, K number of scales, 3 RGB, H W pixels.

    star finetune star-emoji --data FOLDER --out RUN --lora 8

The pictures are encoded once and kept in memory, so that minutes are enough. Before and after, the same prompts are
drawn with the same seeds and the same losses are measured: RUN/before-after.png and RUN/losses.json.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star.clip.wordings import Expansion
from star.completion import Completion
from star.data.disk import write_text
from star.data.errors import InputError
from star.data.images import grid, image_to_pixels, save_png
from star.data.loader.batch import Batch
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.packing.cache import as_shards
from star.data.shards.listing import list_shards
from star.generator import StarGenerator
from star.generators import registry
from star.generators.config import UNLESS_DEFAULT, to_dict
from star.generators.pretrained import IMAGES_SEEN, ModelDirectory
from star.generators.protocol import SampleOptions
from star.generators.staging import staged
from star.generators.training.run import Run, RunConfig
from star.generators.training.schedule import lr_at, set_lr
from star.model.transformer import NextScaleTransformer
from star.tokenizer.portions import loaded_at_once
from star.training.completing import completed_by, factors_of, heard_prompts, start_from
from star.training.inputs import EncodedSet, Encoder
from star.training.lora import PREFIX, mark, write_base
from star.training.optimizers import parameter_groups
from star.training.token_dropping import Part, TokenWeights, check_curriculum, curriculum_of
from star.training.train import drop_captions
from star.training.validation import Measured

# Everything a block multiplies by; attention.py lets a wrapped layer compute by itself.
ADAPTED = r"blocks\.\d+\.((attention|cross_attention)\.(query_key_value|query|key_value|output)|mlp\.(up|down))"
PICTURED = 8  # pictures of the sheet
MEASURED = 256  # pictures whose losses are measured, evenly spread: of thousands it would take longer than to train


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """What decides what is learnt; the defaults suit some dozens to some thousands of pictures."""

    run: RunConfig
    lora: int = 0  # rank of the adapter; 0: all weights are trained
    lr: float = 0.0  # 0: 1e-3 for an adapter, 1e-4 for all weights
    warmup: int = 20  # steps
    weight_decay: float = 0.01
    caption_dropout: float = 0.1
    code_noise: float = 0.1  # see targets.make_targets
    noise_neighbours: int = 32
    scale_power: float = 0.75  # see targets.scale_weights
    # What a step computes, see TrainConfig: so many times as many pictures are seen in the same time.
    keep_last_scale: float = field(default=1.0, metadata=UNLESS_DEFAULT)
    coarse_scales: int = field(default=0, metadata=UNLESS_DEFAULT)
    coarse_steps: float = field(default=0.0, metadata=UNLESS_DEFAULT)
    # The adapter stays in the model, heard for the pictures' subjects and styles alone (star.completion).
    completion: bool = field(default=False, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        if self.lora < 0 or self.lr < 0:
            raise InputError(f"lora is {self.lora} and lr {self.lr}, expected neither below 0: correct them")
        if self.completion and not self.lora:
            raise InputError("a completion was asked for and no adapter, expected both: give the adapter's rank, lora")
        check_curriculum(self)

    @property
    def peak(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr or (1e-3 if self.lora else 1e-4)


def finetune(
    model: str,
    config: FinetuneConfig,
    *,
    data: Sequence[str],
    out: str | Path,
    validation: Sequence[str] = (),
    resume: bool = False,
) -> Path:
    """Trains and returns the folder of the result: `out/adapter`, or the model directory `out/model` for all weights
    or a completion.

    model: name, folder or hub id. data: shards, or folders, tables and data sets of pictures, which are packed into
    `out/shards`. validation: the same, of pictures that are measured only. How long it will take is said before the
    first step. Raises InputError for anything wrong with them.
    """
    out, base = Path(out), registry.locate(model)
    directory = ModelDirectory.read(base, family="star")
    generator = StarGenerator.from_directory(base)
    run = Run(out, config.run, to_dict(config) | {"model": mark(directory), "data": list(data)}, resume)
    side = generator.resolution[0]
    shards, held_out = (
        tuple(list_shards(as_shards(places, out / "shards", say=run.say, shorter_side=side))) if places else ()
        for places in (data, validation)
    )
    settings = DataConfig(shards=shards, resolution=side, seed=config.run.seed, cache=True)
    pipeline = Pipeline(settings, batch_size=run.micro_batch_size, rank=run.rank, world=run.world)
    networks = (generator.tokenizer.to(run.device), generator.text_encoder.to(run.device))
    loaded = loaded_at_once(side)
    everything = list(Pipeline(settings, batch_size=loaded).one_pass())
    encoder = EncodedSet(*networks, run.device, everything)
    completed = completed_by(generator, everything) if config.completion else None
    measured = {"trained": Measured(encoder, spread(everything))}
    if held_out:
        held = DataConfig(shards=held_out, resolution=side, shuffle=False)
        unseen = list(Pipeline(held, batch_size=loaded).one_pass())
        measured["held out"] = Measured(encoder.unprepared(), spread(unseen))
    options = registry.recommended(model)

    counted = sum(map(len, measured.values()))
    run.say(f"measuring the losses of {counted} pictures and drawing some, as it is before training")
    transformer, began = generator.transformer.to(run.device), time.monotonic()
    continued = generator.completion if config.completion else None
    start = transformer if continued is None else continued.complete(transformer)
    before = {name: measure.losses(start, run, alone=True).cpu() for name, measure in measured.items()}
    drawn_before = draw(generator, everything[0], options)
    aside = time.monotonic() - began  # what comes again at the end
    lora_config = add_lora(transformer, config.lora) if config.lora else None
    if continued is not None:
        start_from(transformer, continued, config.lora)
        generator.completion = None  # it is in the adapters now, or what is drawn would hear it twice
    optimizer = torch.optim.AdamW(
        parameter_groups(transformer, config.weight_decay), lr=config.peak, betas=(0.9, 0.95), fused=True
    )
    run.track(learnt=Learnt(transformer), optimizer=optimizer)
    run.restore()
    run.say(forecast(config, run, transformer, next(pipeline.batches(start=0)), encoder, aside))
    learn(config, run, transformer, pipeline, encoder, optimizer, completed)

    result = out / ("adapter" if lora_config and completed is None else "model")
    if run.is_main:
        after = {name: measure.losses(transformer, run, alone=True).cpu() for name, measure in measured.items()}
        table = {
            name: {"before": before[name].tolist(), "after": after[name].tolist(), "pictures": len(measured[name])}
            for name in measured
        }
        write_text(out / "losses.json", json.dumps(table, indent=1) + "\n")
        for name in measured:
            run.say(f"{name}: {before[name].mean():.3f} -> {after[name].mean():.3f} nats per token")
        generator.expansion = completed or generator.expansion  # drawn as the result draws them
        _sheet(run, everything[0], drawn_before, draw(generator, everything[0], options))
        text = card(model, config, table)
        if lora_config is None or completed is not None:
            if completed is not None:
                generator = StarGenerator.from_directory(base)  # without what peft put around its layers
                generator.expansion, generator.completion = completed, Completion(factors_of(transformer))
            about = {"options": to_dict(options), IMAGES_SEEN: registry.images_seen_after(run.images, base)}
            generator.save_pretrained(result, card=text, about=about)
        else:
            write_lora(transformer, lora_config, result, model=model, directory=directory, card=text)
    return result


def spread(batches: Sequence[Batch], count: int = MEASURED) -> Iterator[Batch]:
    """So many of the pictures of some batches, evenly spread; all where there are fewer."""
    total, start = sum(map(len, batches)), 0
    chosen = {place * total // min(count, total) for place in range(min(count, total))}
    for batch in batches:
        places = [place for place in range(len(batch)) if start + place in chosen]
        start += len(batch)
        if places:
            yield batch.pick(places)


def learn(
    config: FinetuneConfig,
    run: Run,
    transformer: NextScaleTransformer,
    pipeline: Pipeline,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    completed: Expansion | None = None,
) -> None:
    """The loop, with the transformer back in evaluation at its end. completed: see completing.heard_prompts."""
    weights, curriculum = TokenWeights(config.scale_power, run.device), curriculum_of(config, transformer.schedule)
    batches = pipeline.batches(start=run.first_batch)
    network = run.prepare(transformer.train())
    for step in run.steps():
        warmup = min(config.warmup, run.total_steps // 5)  # where the clock leaves few steps
        lr = lr_at(step, peak=config.peak, steps=run.total_steps, warmup=warmup, floor=0.05)
        set_lr(optimizer, lr)
        for _ in run.micro_steps(network):
            batch = next(batches)
            batch = replace(batch, prompts=heard_prompts(batch, completed))
            loss = _loss(config, run, network, batch, encoder, curriculum.at(step, run.total_steps), weights)
            run.backward(loss)
            run.log({"loss": loss.detach()}, images=len(batch))
        run.log({"grad_norm": run.clip(network.parameters()), "lr": lr})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    transformer.eval()


def forecast(
    config: FinetuneConfig, run: Run, transformer: NextScaleTransformer, batch: Batch, encoder: Encoder, aside: float
) -> str:
    """How long training will take on this machine, from two steps that change nothing; `aside`: seconds beside it."""
    weights, seconds = TokenWeights(config.scale_power, run.device), 0.0
    for part, share in curriculum_of(config, transformer.schedule).shares().items():
        for _ in range(2):  # the first one allocates and fills caches
            began = time.monotonic()
            _loss(config, run, transformer.train(), batch, encoder, part, weights).backward()
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            took = time.monotonic() - began
        seconds += share * config.run.accumulate * took
    transformer.eval().zero_grad(set_to_none=True)
    beside = f"besides {span(2 * aside)} to measure and to draw before and after"
    if config.run.minutes:
        most = max(1, min(config.run.steps, round(60 * config.run.minutes / seconds)))
        return (
            f"training ends after {span(60 * config.run.minutes)}, in about {most} steps of {span(seconds)}, {beside}"
        )
    steps = config.run.steps - run.step
    return (
        f"{steps} steps of {span(seconds)} take about {span(steps * seconds)} here, {beside}; "
        "--minutes ends after a time of your choice"
    )


def span(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _loss(
    config: FinetuneConfig,
    run: Run,
    network: nn.Module,
    batch: Batch,
    encoder: Encoder,
    part: Part,
    weights: Mapping[Part, Tensor],
) -> Tensor:
    """Of one micro-batch: the mean over pictures, tokens that take part weighted by their scale."""
    targets = encoder.targets(batch, noise=config.code_noise, neighbours=config.noise_neighbours, scales=part.scales)
    text = encoder.batch_text(batch, drop_captions(batch.prompts, config.caption_dropout))
    kept_L, codes_BL = part.take(targets.codes_BL)
    with run.autocast():
        loss_BL = network(targets.teacher_input_BlE, text, kept_L=kept_L, codes_BL=codes_BL)
    loss: Tensor = (loss_BL.mean(dim=0) * weights[part]).sum()
    return loss


class Learnt:
    """What of a network is trained, as the state that a run keeps."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Any]:
        """The trained weights themselves, by name."""
        return {name: weight.detach() for name, weight in self.network.named_parameters() if weight.requires_grad}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Raises RuntimeError if the names are others."""
        own = self.state_dict()
        if own.keys() != state_dict.keys():
            raise RuntimeError(f"{len(state_dict)} trained tensors are stored, {len(own)} expected")
        for name, weight in own.items():
            weight.copy_(state_dict[name])


def add_lora(transformer: NextScaleTransformer, rank: int) -> Any:
    """Puts adapters of a rank around a network's layers, freezes the rest, and returns peft's config of them."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            "--lora needs peft, which is not installed: run `pip install peft`, or leave --lora out"
        ) from error
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED)
    inject_adapter_in_model(config, transformer)
    return config


def write_lora(
    transformer: NextScaleTransformer, config: Any, path: Path, *, model: str, directory: ModelDirectory, card: str
) -> None:
    """Writes the adapter directory, see adapter.py."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(transformer)
    config.base_model_name_or_path = model
    with staged(path) as staging:
        save_file(
            {f"{PREFIX}{name}": tensor.cpu().contiguous() for name, tensor in tensors.items()},
            staging / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config.save_pretrained(str(staging))
        write_base(staging, model=model, directory=directory, card=card)


def draw(generator: StarGenerator, batch: Batch, options: SampleOptions) -> Tensor:
    """pixels_B3HW of the first pictures' captions, each with its place as seed."""
    prompts = [several[0] for several in batch.captions[:PICTURED]]
    return generator.generate(prompts, seeds=range(len(prompts)), options=options)


def card(model: str, config: FinetuneConfig, table: dict[str, dict[str, Any]]) -> str:
    """What it was made of, and what it costs before and after."""
    rows = "".join(
        f"| {name} | {row['pictures']} | {_mean(row['before']):.3f} | {_mean(row['after']):.3f} |\n"
        for name, row in table.items()
    )
    return (
        f"# {model}, fine-tuned\n\n{config.run.steps} steps of {config.run.batch_size} pictures, "
        f"{f'an adapter of rank {config.lora}' if config.lora else 'all weights'}.\n\n"
        f"Nats per token, mean over scales:\n\n| pictures | number | before | after |\n|---|---|---|---|\n{rows}"
    )


def _sheet(run: Run, batch: Batch, before_B3HW: Tensor, after_B3HW: Tensor) -> None:
    """Rows: the pictures themselves, their captions drawn before, and after."""
    pixels_B3HW = image_to_pixels(batch.image_B3HW[: len(before_B3HW)])
    save_png(grid(torch.cat((pixels_B3HW, before_B3HW, after_B3HW)), len(before_B3HW)), run.out / "before-after.png")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
