"""Training of the next-scale transformer: shards to latents and text, teacher forcing, a run.

B batch, L tokens of all scales, K number of scales, k scale index, V codebook, E code width, h w finest latent grid.

    star train star --preset emoji-cpu --data SHARDS --out RUN

Read from `train` downwards; the presets are in `presets.py`.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from star.data.errors import InputError
from star.data.images import grid
from star.data.loader.pipeline import Pipeline
from star.data.shards.listing import list_shards
from star.data.shards.splits import held_out_shards, training_sources
from star.generator import StarGenerator
from star.generators.config import to_dict
from star.generators.pretrained import reference
from star.generators.protocol import SampleOptions
from star.generators.training.data_feed import Feed, FeedConfig, Keep
from star.generators.training.ema import MovingAverage
from star.generators.training.muon import Muon, matrix_groups
from star.generators.training.run import Run
from star.generators.training.schedule import lr_at, set_lr
from star.model.attention_backends import refuse_untrainable
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.planning.flops import mean, work
from star.precomputed.dataset import EncodedReader, EncodedShards
from star.precomputed.format import encoding_of
from star.tokenizer.portions import loaded_at_once
from star.tokenizer.scales import ScaleSchedule
from star.training.frozen_networks import FrozenNetworks
from star.training.init_from import continued, start_from
from star.training.inputs import EncodedSet, Encoder, TrainingInputs, encoded_bytes
from star.training.targets import per_scale, scale_weights
from star.training.token_dropping import ScaleCurriculum
from star.training.validation import Validation, is_held_out, shared_out

# Weight decay pulls towards zero what should be: matrices. Not biases, nor what is added or multiplied as it stands.
UNDECAYED = ("bias", "log_scale", "start_position", "position_embedding", "level_embedding.weight", "modulation_offset")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(FeedConfig):
    """Everything that decides what a run learns. Scales, codebook and text width come with the frozen networks."""

    tokenizer: str  # model directory
    text_encoder: str  # directory or hub id
    init_from: str = ""  # a STAR model directory to start from; width, depth and heads are then its own
    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    attention: Literal["sdpa", "eager", "scalewise", "flex"] = "sdpa"  # see backends.py
    checkpointing: bool = False  # blocks are computed twice, and only their inputs kept in between
    drop_path: float = 0.0
    head_float32: bool = True
    optimizer: Literal["adamw", "muon"] = (
        "adamw"  # muon: for the matrices of the blocks, see generators/training/muon.py
    )
    lr: float = 1e-4
    matrix_lr: float = 1.0  # of lr: the rate of what muon moves
    warmup: int = 100  # steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    lr_floor: float = 0.01  # of lr, at the end
    lr_hold: float = 0.0  # share of the steps after the warm-up that stay at lr
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    ema: float = 0.999
    ema_warmup: bool = False  # step n averages with at most (n + 1) / (n + 10), so that the first steps are forgotten
    caption_dropout: float = 0.1  # share of captions replaced by the empty prompt, which guidance needs
    caption_dropout_above: int = 0  # characters: shorter captions are never replaced
    code_noise: float = 0.0  # see teaching.make_targets
    noise_neighbours: int = 0
    label_smoothing: float = 0.0
    scale_power: float = 1.0  # see teaching.scale_weights
    keep_last_scale: float = 1.0  # share of the finest scale's tokens that a step computes, see teaching.draw_kept
    whole_last: float = 0.0  # share of the steps, at the end, that compute all of them
    coarse_scales: int = 0  # so many of the scales are all that most steps before those compute
    coarse_steps: float = 0.0  # the share of the steps that do
    compile: bool = (
        False  # the blocks, by torch.compile: 1.3 times as fast on a CPU, after ten seconds; needs g++ there
    )
    precompute: Keep = "auto"  # latents and text features once, in memory, or batch by batch; auto: by an estimate
    held_out: float = 0.02  # share of the pictures never trained on, where no validation shards are given
    validation: tuple[str, ...] = ()  # shards; empty: those of the data that are named as held out
    validation_pictures: int = 1024  # at most
    validate_every: int = 500  # steps
    sample_prompts: tuple[str, ...] = ()
    sample_options: SampleOptions = field(default_factory=SampleOptions)  # recommended by the model directory
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the stored weights
    bring_along: bool = True  # False: the model directory refers to tokenizer and text encoder where they lie
    licence: str = ""

    def __post_init__(self) -> None:
        shares = ("dropout", "drop_path", "caption_dropout", "code_noise", "label_smoothing", "held_out", "ema")
        for name in (*shares, "lr_hold"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected a share from 0 to below 1: correct it")
        if not 0 < self.keep_last_scale <= 1:
            raise InputError(
                f"keep_last_scale is {self.keep_last_scale}, expected a share above 0 and up to 1: correct it"
            )
        for name in ("whole_last", "coarse_steps"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1: correct it")
        if self.coarse_scales < 0 or (self.coarse_steps > 0) != (self.coarse_scales > 0):
            raise InputError(
                f"coarse_scales is {self.coarse_scales} and coarse_steps {self.coarse_steps}, expected both positive, "
                "or both 0: correct one of them"
            )
        if self.optimizer == "muon" and self.run.sharding != "none":
            raise InputError(
                "optimizer is muon, which needs whole matrices, expected adamw where run.sharding is "
                f"{self.run.sharding}: change one of them"
            )
        if self.matrix_lr <= 0:
            raise InputError(f"matrix_lr is {self.matrix_lr}, expected a positive share of lr: correct it")
        if self.lr <= 0 or self.validate_every < 1:
            raise InputError(
                f"lr is {self.lr} and validate_every {self.validate_every}, expected both positive: correct them"
            )

    def curriculum(self, schedule: ScaleSchedule) -> ScaleCurriculum:
        """What each step computes. Raises InputError if there are too few scales for it."""
        if self.coarse_scales >= schedule.count:
            raise InputError(
                f"coarse_scales is {self.coarse_scales}, but the tokenizer has {schedule.count} scales: give fewer"
            )
        return ScaleCurriculum(schedule, self.keep_last_scale, self.whole_last, self.coarse_scales, self.coarse_steps)

    def network(self, frozen: FrozenNetworks) -> TransformerConfig:
        """The transformer that fits the frozen networks."""
        tokenizer = frozen.tokenizer
        fresh = self.fresh_network(
            sizes=tokenizer.schedule.sizes,
            vocabulary=tokenizer.vocabulary,
            code_width=tokenizer.code_width,
            text_width=frozen.text_encoder.width,
        )
        return continued(self.init_from, fresh) if self.init_from else fresh

    def fresh_network(
        self, *, sizes: tuple[int, ...], vocabulary: int, code_width: int, text_width: int
    ) -> TransformerConfig:
        """The transformer for networks of these shapes, wherever its weights start."""
        return TransformerConfig(
            sizes=sizes,
            vocabulary=vocabulary,
            code_width=code_width,
            text_width=text_width,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            drop_path=self.drop_path,
            attention=self.attention,
            checkpointing=self.checkpointing,
            head_float32=self.head_float32,
        )


def train(config: TrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on shards and returns the model directory written at the end, `out/model`.

    Raises InputError for anything wrong with data, config or folder; see star.generators.training.run for what a run
    leaves behind.
    """
    out, sources = Path(out), training_sources(data, config.weights)
    config = replace(config, validation=config.validation or held_out_shards(data))
    shards = [shard for source, _ in sources for shard in source]
    encoding = encoding_of((*shards, *(list_shards(config.validation) if config.validation else ())))
    if encoding is not None:
        encoding.check_use(config.crop, config.code_noise)
        config = replace(config, precompute=False)
    refuse_untrainable(config.attention, Accelerator().device)
    frozen = FrozenNetworks(config.tokenizer, config.text_encoder, encoding)
    network = config.network(frozen)
    curriculum = config.curriculum(network.schedule)
    feed = Feed(
        config,
        sources,
        out,
        resume=resume,
        resolution=frozen.tokenizer.resolution,
        keep="precompute",
        more_bytes=partial(encoded_bytes, frozen, shards[0]),
        reader=None if encoding is None else EncodedReader(encoding.config),
    )
    config = feed.config
    names = feed.names | {"network": to_dict(network), "digests": frozen.digests}
    run = Run(out, config.run, to_dict(config) | names, resume)

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

    pipeline, encoder, validation = prepare_data(config, feed, frozen, run)
    words = frozen.text_encoder.max_tokens
    done = mean((work(network, part.lengths, words), share) for part, share in curriculum.shares().items())
    run.throughput.flops_per_image = done.forward + done.backward  # what is computed a second time is no use
    batches = feed.batches(run, pipeline)
    weights = {part: scale_weights(part.lengths, config.scale_power).to(run.device) for part in curriculum.shares()}
    if config.compile:
        compile_blocks(run.unwrap(model), run.device)
    model.train()
    for step in run.steps():
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
        part = curriculum.at(step, run.total_steps)
        for _ in run.micro_steps(model):
            batch = validation.without_held_out(next(batches))
            targets = encoder.targets(
                batch, noise=config.code_noise, neighbours=config.noise_neighbours, scales=part.scales
            )
            prompts = drop_captions(batch.prompts, config.caption_dropout, above=config.caption_dropout_above)
            text = encoder.batch_text(batch, prompts)
            kept_L, codes_BL = part.draw(), targets.codes_BL
            if kept_L is not None:
                kept_L = kept_L.to(run.device)
                codes_BL = codes_BL[:, kept_L]
            with run.autocast():
                loss_BL = model(
                    targets.teacher_input_BlE,
                    text,
                    kept_L=kept_L,
                    codes_BL=codes_BL,
                    label_smoothing=config.label_smoothing,
                )
            loss = (loss_BL.mean(dim=0) * weights[part]).sum()
            run.backward(loss)
            losses = {f"loss_scale/{k}": value for k, value in enumerate(per_scale(loss_BL, part.lengths))}
            run.log({"loss": loss.detach()} | losses, images=len(batch))
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
                show(config, run, frozen.generator(whole), step)
    whole = run.whole(smooth, lambda: NextScaleTransformer(network))
    if run.is_main:
        save(config, frozen.generator(whole), out / "model", card(config, run, validation))
        run.say(pipeline.report.text())
    return out / "model"


def measure(run: Run, smooth: NextScaleTransformer, validation: Validation, step: int) -> None:
    """Losses of the held-out pictures; every process must ask for it."""
    losses_K = validation.losses(smooth)
    run.note({"validation_loss": losses_K.mean(), "validation_loss_scale": losses_K})
    if run.is_main:
        validation.write(run.out / "validation.json", losses_K, step)


def show(config: TrainConfig, run: Run, generator: StarGenerator, step: int) -> None:
    """Sample pictures."""
    prompts = config.sample_prompts
    pixels_B3HW = generator.generate(prompts, seeds=range(len(prompts)), options=config.sample_options)
    run.picture("samples", grid(pixels_B3HW, columns=8), step)


def save(config: TrainConfig, generator: StarGenerator, path: Path, text: str) -> None:
    """Writes the model directory as the config asks for it, with the sampling options that it was shown with."""
    places = {"tokenizer": config.tokenizer, "text_encoder": config.text_encoder}
    generator.save_pretrained(
        path,
        card=text,
        about={"options": to_dict(config.sample_options), "licence": config.licence},
        references=None if config.bring_along else {name: reference(path, place) for name, place in places.items()},
        dtype=getattr(torch, config.dtype),
    )


def ema_decay(step: int, decay: float, warmup: bool) -> float:
    """The decay of the averaged weights in a step, 0 being the first."""
    return min(decay, (step + 1) / (step + 10)) if warmup else decay


def compile_blocks(model: NextScaleTransformer, device: torch.device) -> None:
    """Compiles the blocks one by one: being alike they are compiled once, in seconds. Raises InputError without g++."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise InputError("compile=true needs a C++ compiler on the CPU, found none: install g++, or set compile=false")
    for block in model.blocks:
        block.compile()


def make_optimizers(config: TrainConfig, model: NextScaleTransformer) -> dict[str, torch.optim.Optimizer]:
    """AdamW for everything, or beside it Muon for the matrices of the blocks; by the names they are saved under."""
    groups = matrix_groups(model.blocks, config.weight_decay) if config.optimizer == "muon" else []
    matrices = [group | {"lr_scale": config.matrix_lr} for group in groups]
    taken = {id(weight) for group in matrices for weight in group["params"]}
    rest = parameter_groups(model, config.weight_decay)
    for group in rest:
        group["params"] = [weight for weight in group["params"] if id(weight) not in taken]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, fused=True)
    }
    if matrices:
        optimizers["matrix_optimizer"] = Muon(matrices, lr=config.lr)
    return optimizers


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW of what is trained: what decays, and what does not (UNDECAYED, all of one dimension)."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        spare = parameter.ndim <= 1 or name.endswith(UNDECAYED)
        if parameter.requires_grad:
            (spared if spare else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


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
    every = pipeline.alone(loaded)
    encoder: TrainingInputs
    if frozen.encoding is not None:
        encoder = EncodedShards(frozen.encoding, run.device)
    elif config.precompute:
        encoder = EncodedSet(*frozen.networks(run.device), run.device, every.one_pass(), half=half)
    else:
        encoder = Encoder(*frozen.networks(run.device), run.device, half=half)
    if config.validation:
        held = replace(feed.settings, sources=((config.validation, 1.0),), workers=0, cache=False)
        source = Pipeline(held, batch_size=loaded, reader=feed.reader)
        batches = shared_out(source, run, lambda _key: True, config.validation_pictures)
        validation = Validation(encoder, batches, run)
    else:
        batches = shared_out(every, run, lambda key: is_held_out(key, config.held_out), config.validation_pictures)
        validation = Validation(encoder, batches, run, share=config.held_out)
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
        f"Nats per token on {validation.pictures} held-out pictures, and what code frequencies alone would cost:\n\n"
        f"| side | network | frequencies |\n|---|---|---|\n{table}\n"
        f"```json\n{json.dumps(to_dict(config), indent=1)}\n```\n"
    )
