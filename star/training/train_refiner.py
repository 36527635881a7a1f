"""Training of a refiner behind a transformer that stays as it is: hidden codes of fine scales, told by known ones.

B batch, L tokens of all scales, R of those that are refined, C model width, E code width, k scale index.

    star train star --preset emoji-refiner --data SHARDS --out RUN      # the model in init_from, with a refiner

Ma et al. 2024, causal-driven stable sampling. Each picture goes through the transformer once, without gradient; of its
refined scales some codes are shown to the refiner, and the others are asked for. What differs from the release: it
begins as the transformer itself (`Refiner.start_from`), and every scale is computed as it is drawn (masking.py).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from star.data.disk import write_text
from star.data.errors import InputError
from star.data.loader.pipeline import Batch
from star.data.unfilled import unfilled
from star.generator import StarGenerator
from star.generators import registry
from star.generators.config import to_dict
from star.generators.pretrained import ModelDirectory
from star.generators.registry import place_of
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run
from star.model.attention_backends import refuse_untrainable
from star.model.kernels.choice import Attention
from star.model.refiner import Refiner
from star.model.transformer import NextScaleTransformer
from star.planning.flops import refiner_work
from star.precomputed.format import Encoding
from star.training.config import TrainConfig
from star.training.frozen_networks import FrozenNetworks
from star.training.inputs import TrainingInputs
from star.training.lora import mark
from star.training.masking import HIDDEN, SHARES, MaskedLosses, Refined, draw_known, refined_vectors
from star.training.optimizers import make_optimizers
from star.training.refiner_config import RefinerTraining
from star.training.targets import per_scale, scale_weights
from star.training.train import (
    compile_blocks,
    drop_captions,
    ema_decay,
    make_feed,
    prepare_data,
    save,
    set_rates,
    settle,
    show,
)
from star.training.validation import Validation


def train_refiner(config: TrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on shards and returns the model directory written at the end, `out/model`: `init_from` with a refiner.

    Raises InputError for anything wrong with data, config, folder or the model behind which it is to be.
    """
    ours = asked(config)
    config, sources, encoding = settle(config, data)
    if ours.alters:
        config = replace(config, precompute=False)
        refuse_codes(encoding)
    refuse_untrainable(config.attention, Accelerator().device)
    out, frozen = Path(out), FrozenNetworks(config.tokenizer, config.text_encoder, encoding)
    directory, generator = base_model(config, frozen)
    learnt = ours.network(generator.tokenizer.schedule)
    feed = make_feed(config, sources, out, frozen, resume)
    config = feed.config
    names = feed.names | {"refiner_network": to_dict(learnt), "model": mark(directory), "digests": frozen.digests}
    run = Run(out, config.run, to_dict(config) | names, resume)
    transformer = teacher(generator.transformer.to(run.device), config.attention)
    generator.tokenizer.to(run.device)
    generator.text_encoder.to(run.device)
    pipeline, encoder, validation = prepare_data(config, feed, frozen, run)
    model, ema, optimizers = make_networks(
        config, run, generator, lambda: spreads(config, run, transformer, encoder, next(pipeline.batches(start=0)))
    )
    smooth: MaskedLosses = ema.module  # type: ignore[assignment]
    exam = Exam(run, validation, Refined(transformer, smooth, encoder.tokenizer.quantizer))
    run.throughput.flops_per_image = refiner_work(
        transformer.config, learnt, frozen.text_encoder.max_tokens, ours.masks
    ).total
    batches = feed.batches(run, pipeline)
    if config.compile:
        compile_blocks(run.unwrap(model).refiner, run.device)
    model.train()
    for step in run.steps():
        lr = set_rates(config, run, optimizers, step)
        for _ in run.micro_steps(model):
            learn(config, run, model, transformer, encoder, validation.without_held_out(next(batches)))
        run.log({"grad_norm": run.clip(model.parameters()), "lr": lr})
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update_parameters(run.unwrap(model))
        if validation.pictures and run.due(step, config.validate_every):
            exam.hold(step)
        if run.sample_due(step) and config.sample_prompts:
            whole = run.whole(smooth, lambda: masked_losses(config, generator))
            if run.is_main:
                generator.refiner = whole.refiner.eval()
                show(config, run, generator, step)
    whole = run.whole(smooth, lambda: masked_losses(config, generator))
    if run.is_main:
        generator.refiner = whole.refiner.eval()
        seen = registry.images_seen_after(run.images, config.init_from)
        save(config, generator, out / "model", card(config, run, exam), seen)
        run.say(pipeline.report.text())
    return out / "model"


def asked(config: TrainConfig) -> RefinerTraining:
    """What the config says of the refiner. Raises ValueError if it has none."""
    if config.refiner is None:
        raise ValueError("a config without a refiner trains a transformer: give it to star.training.stages.train")
    return config.refiner


def base_model(config: TrainConfig, frozen: FrozenNetworks) -> tuple[ModelDirectory, StarGenerator]:
    """The model that the refiner is trained behind, on the CPU.

    Raises InputError if none is given, or one that was trained with other frozen networks.
    """
    if not config.init_from:
        raise InputError(
            "init_from is empty, expected the STAR model behind which the refiner is trained: give --init-from=MODEL"
        )
    place = place_of(config.init_from)
    directory = ModelDirectory.read(place, family="star")
    given = {"tokenizer": config.tokenizer, "text_encoder": config.text_encoder}
    for name, digest in frozen.digests.items():
        if (expected := directory.references[name].digest) and digest != expected:
            raise InputError(
                f"{config.init_from} was trained with a {name} of digest {expected[:12]}..., the one at {given[name]} "
                f"has {digest[:12]}...: set --{name} to {directory.resolve(name)}"
            )
    return directory, StarGenerator.from_directory(place)


def teacher(transformer: NextScaleTransformer, attention: Attention) -> NextScaleTransformer:
    """The same weights, in the same memory, with another way to compute attention; they learn nothing."""
    with unfilled():
        other = NextScaleTransformer(replace(transformer.config, attention=attention))
    other.load_state_dict(transformer.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def refuse_codes(encoding: Encoding | None) -> None:
    """Raises InputError for shards that hold no pictures to alter."""
    if encoding is not None:
        raise InputError(
            "refiner.flip or refiner.shift is given, and the shards hold codes, expected shards of pictures: give "
            "those, or set --refiner.flip=0 --refiner.shift=0"
        )


def masked_losses(config: TrainConfig, generator: StarGenerator) -> MaskedLosses:
    """A refiner with random weights, or those of the model's own, where that is as deep."""
    ours, before = asked(config), generator.refiner
    transformer = generator.transformer
    shape = replace(transformer.config, dropout=config.dropout, attention=config.attention)
    refiner = Refiner(ours.network(transformer.schedule), shape)
    if before is not None and before.config.depth == ours.depth:
        refiner.load_state_dict(before.state_dict())
    return MaskedLosses(refiner, transformer)


@torch.no_grad()
def spreads(
    config: TrainConfig, run: Run, transformer: NextScaleTransformer, encoder: TrainingInputs, batch: Batch
) -> tuple[float, float]:
    """Standard deviations of codebook vectors and of the transformer's states on the refined scales of a batch."""
    targets = encoder.targets(altered(batch, asked(config).flip, asked(config).shift))
    with run.autocast():
        text = encoder.batch_text(batch, batch.prompts)
        hidden_BLC, _ = transformer.hidden(targets.teacher_input_BlE, text, schedule=targets.schedule)
    scales = range(targets.schedule.count - asked(config).scales, targets.schedule.count)
    vectors_BRE = refined_vectors(encoder.tokenizer.quantizer, targets.codes_BL, targets.schedule, scales)
    states_BRC = hidden_BLC[:, targets.schedule.offsets[scales.start] :].float()
    code_spread, state_spread = run.average(torch.stack((vectors_BRE.std(), states_BRC.std()))).tolist()
    return code_spread, state_spread


def make_networks(
    config: TrainConfig, run: Run, generator: StarGenerator, spread: Callable[[], tuple[float, float]]
) -> tuple[MaskedLosses, MovingAverage, dict[str, torch.optim.Optimizer]]:
    """The refiner, its moving average and its optimizers, distributed, and as the run's checkpoint has them.

    spread: see `spreads`; asked for where the refiner is new.
    """
    found = spread() if generator.refiner is None or generator.refiner.config.depth != asked(config).depth else None
    run.seed(rank=0, step=0)  # every process starts with the same weights
    model = masked_losses(config, generator)
    if found is not None:
        model.refiner.start_from(generator.transformer, *found)
    ema = MovingAverage(model, lambda: ema_decay(run.step, config.ema, config.ema_warmup))
    smooth: MaskedLosses = ema.module  # type: ignore[assignment]
    run.distribute(smooth, smooth.refiner.blocks, learns=False)
    model = run.distribute(model, model.refiner.blocks)
    optimizers = make_optimizers(config, run.unwrap(model).refiner)
    run.track(model=model, ema=ema, **optimizers)
    run.restore()
    return model, ema, optimizers


def learn(
    config: TrainConfig,
    run: Run,
    model: MaskedLosses,
    transformer: NextScaleTransformer,
    encoder: TrainingInputs,
    batch: Batch,
) -> None:
    """Gradients of one batch: what the hidden codes cost, each with the weight of its scale."""
    ours = asked(config)
    masked: MaskedLosses = run.unwrap(model)
    batch = altered(batch, ours.flip, ours.shift)
    targets = encoder.targets(batch, noise=config.code_noise, neighbours=config.noise_neighbours)
    prompts = drop_captions(batch.prompts, config.caption_dropout, above=config.caption_dropout_above)
    text, schedule = encoder.batch_text(batch, prompts), targets.schedule
    start, lengths = schedule.offsets[masked.first], masked.lengths(schedule)
    with run.autocast():
        with torch.no_grad():
            hidden_BLC, _ = transformer.hidden(targets.teacher_input_BlE, text, schedule=schedule)
            vectors_BRE = masked.vectors(encoder.tokenizer.quantizer, targets.codes_BL, schedule)
        known_BR = draw_known(lengths, ours.masks * len(batch), ours.known, run.device)
        shown = (text.pooled_BD, vectors_BRE, hidden_BLC[:, start:], targets.codes_BL[:, start:])
        pooled_BD, vectors_BRE, hidden_BRC, codes_BR = (torch.cat([part] * ours.masks) for part in shown)
        loss_BR = model(pooled_BD, vectors_BRE, known_BR, hidden_BRC, codes_BR, schedule, config.label_smoothing)
    loss_BR = loss_BR / HIDDEN[ours.known]  # known codes cost 0: the mean is that of hidden ones
    weights_R = scale_weights(lengths, config.scale_power).to(run.device)
    loss = (loss_BR.mean(dim=0) * weights_R).sum()
    run.backward(loss)
    losses = {f"loss_scale/{masked.first + k}": value for k, value in enumerate(per_scale(loss_BR, lengths))}
    run.log({"loss": loss.detach()} | losses, images=len(batch))


def altered(batch: Batch, flip: float, shift: int) -> Batch:
    """A share of the pictures mirrored, and all moved by up to `shift` pixels each way, their edges repeated."""
    if not flip and not shift:
        return batch
    image_B3HW, (height, width) = batch.image_B3HW, batch.image_B3HW.shape[2:]
    if flip:
        mirrored_B = torch.rand(len(batch)) < flip
        image_B3HW = torch.where(mirrored_B[:, None, None, None], image_B3HW.flip(3), image_B3HW)
    if shift:
        places = torch.randint(2 * shift + 1, (len(batch), 2)).tolist()
        wide_B3HW = F.pad(image_B3HW, (shift,) * 4, mode="replicate")
        moved = [wide_3HW[:, y : y + height, x : x + width] for wide_3HW, (y, x) in zip(wide_B3HW, places, strict=True)]
        image_B3HW = torch.stack(moved)
    return replace(batch, image_B3HW=image_B3HW)


class Exam:
    """What hidden codes of held-out pictures cost the refiner, by the share that is known, and what the transformer."""

    def __init__(self, run: Run, validation: Validation, refined: Refined) -> None:
        """refined: with the averaged weights. Every process must make one."""
        self.run, self.validation, self.refined = run, validation, refined
        self.scales = range(refined.masked.first, validation.schedule.count)
        self.before_SK = self.losses(alone=True) if validation.pictures else torch.empty(0)
        self.rows: list[dict[str, Any]] = []

    def losses(self, *, alone: bool = False) -> Tensor:
        """Nats of hidden codes, a row for each of SHARES and a column for each refined scale; alone: see Refined."""
        self.refined.alone = alone
        found = []
        for self.refined.share in SHARES:
            found.append(self.validation.losses(self.refined)[self.scales.start :])
        return torch.stack(found)

    def hold(self, step: int) -> None:
        """Notes the losses of hidden codes and writes `validation.json`; every process must ask for it."""
        loss_SK = self.losses()
        scales = {f"validation_loss_scale/{k}": loss for k, loss in zip(self.scales, loss_SK.mean(dim=0), strict=True)}
        gains_S = (self.before_SK - loss_SK).mean(dim=1)
        gains = {f"validation_gain_known/{share:g}": gain for share, gain in zip(SHARES, gains_S, strict=True)}
        before = {"validation_loss_transformer": self.before_SK.mean()}
        self.run.note({"validation_loss": loss_SK.mean()} | before | scales | gains)
        self.write(loss_SK, step)

    def write(self, loss_SK: Tensor, step: int) -> None:
        """Everything that was measured, for the model card and for people."""
        self.rows = []
        for place, k in enumerate(self.scales):
            row: dict[str, Any] = {"size": self.validation.schedule.sizes[k]}
            for name, of_SK in (("transformer", self.before_SK), ("refiner", loss_SK)):
                values = zip(SHARES, of_SK[:, place].tolist(), strict=True)
                row[name] = {f"{share:g}": round(loss, 4) for share, loss in values}
            self.rows.append(row)
        found = {"step": step + 1, "pictures": self.validation.pictures, "scales": self.rows}
        if self.run.is_main:
            write_text(self.run.out / "validation.json", json.dumps(found, indent=1) + "\n")


def card(config: TrainConfig, run: Run, exam: Exam) -> str:
    """The model card: what it was made of, and its validation losses."""
    shares = " | ".join(f"{share:.0%} known" for share in SHARES)
    table = "".join(
        f"| {row['size']} | {name} | {' | '.join(map(str, row[name].values()))} |\n"
        for row in exam.rows
        for name in ("transformer", "refiner")
    )
    return (
        f"# {config.init_from} with a refiner\n\n"
        f"The transformer is that of `{config.init_from}`; the refiner behind it was trained for {run.step} steps of "
        f"{run.config.batch_size} pictures. `star sample --no-refine` draws without it.\n\n"
        f"Nats per {exam.validation.tokens.unit} on {exam.validation.pictures} held-out pictures, for codes that are "
        "hidden while so many others of their scale are known:\n\n"
        f"| side | network | {shares} |\n|{'---|' * (2 + len(SHARES))}\n{table}\n"
        f"```json\n{json.dumps(to_dict(config), indent=1)}\n```\n"
    )
