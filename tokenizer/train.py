"""Training of the multi-scale tokenizer: shards in, a model directory out.

    train(PRESETS["emoji-cpu"], data=["shards/"], out=Path("runs/tokenizer"), resume=False)

One step: encode, quantise (which also moves the codebook, see `codebook.py`), decode, and compare. The adversary, if
its weight is not 0, starts after `adversary_start` steps, when there is something worth judging
(Esser et al. 2021, §3.1).

B batch, E code width, H W pixels, h w latent grid, K scales, 3 RGB.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.disk import write_text
from star.data.errors import InputError
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.shards.splits import held_out_shards, training_sources
from star.generators.config import to_dict
from star.generators.gan.augment.diffaugment import augment, operations
from star.generators.gan.discriminators.stylegan2 import StyleGan2Discriminator, StyleGan2DiscriminatorConfig
from star.generators.gan.losses import hinge_discriminator, hinge_generator
from star.generators.registry import place_of
from star.generators.training.data_feed import CachedFeedConfig, Feed
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run
from star.generators.training.schedule import lr_at, set_lr
from star.tokenizer.align import Anchor, alignment_loss
from star.tokenizer.codebook import CodebookConfig, CodebookTrainer, usage_from_counts
from star.tokenizer.losses import (
    PatchDiscriminator,
    adaptive_weight,
    perceptual_distance,
    quantisation_loss,
    reconstruction_loss,
    straight_through,
)
from star.tokenizer.metrics import TokenizerScores, cuts_grid, measure
from star.tokenizer.plots import plot_usage
from star.tokenizer.quantizer import Pyramid
from star.tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTrainConfig(CachedFeedConfig):
    """A whole training of a tokenizer; shards and folder are given beside it."""

    network: TokenizerConfig = field(default_factory=TokenizerConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    lr: float = 1e-3
    lr_steps: int = 0  # length of the schedule; 0: the run's steps
    lr_floor: float = 0.02  # share of lr at the last step
    warmup: int = 100  # steps
    weight_decay: float = 1e-4
    beta2: float = 0.99
    ema: float = 0.995  # decay of the averaged weights, which are what is kept
    beta: float = 0.25  # weight of the commitment
    commit_to: str = "last"  # or "all", as released
    relative: bool = True  # quantisation loss in units of the latent's mean square
    reconstruction: float = 4.0  # weight of the reconstruction loss
    l1: float = 0.25  # weight of the absolute error beside the squared one
    cut: float = 0.0  # share of steps in which the picture is decoded from a random number of scales only
    perceptual: str = "none"  # or lpips:FOLDER, or a folder or hub id of a transformers vision model; see losses.py
    perceptual_weight: float = 1.0
    adversary_weight: float = 0.0  # times the adaptive weight
    adversary_start: int = 0  # steps
    adversary: Literal["patch", "stylegan2"] = "patch"  # the discriminator
    augment: str = ""  # what it sees of real and decoded pictures alike, as "color,translation,cutout" (DiffAug)
    init_from: str = ""  # a tokenizer's model directory to start from
    anchor: str = ""  # a tokenizer's model directory whose coarse codes are to keep their meaning, see anchor.py
    anchor_weight: float = 0.5
    freeze_encoder: bool = False  # only quantizer and decoder learn
    freeze_codes: bool = False  # encoder and quantizer stay, only the decoder learns: the codes keep their meaning
    jitter: bool = False  # mirrored and shifted pictures, colour channels in any order
    dtype: str = "bfloat16"  # of the stored weights

    def __post_init__(self) -> None:
        if not 0 <= self.cut < 1:
            raise ValueError(f"cut is {self.cut}, expected a share of at least 0 and below 1")
        if self.commit_to not in ("last", "all"):
            raise ValueError(f"commit_to is {self.commit_to!r}, expected 'last' or 'all'")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")
        operations(self.augment)  # raises InputError for an unknown one


class TokenizerStep(nn.Module):
    """The differentiable part of a step."""

    def __init__(self, tokenizer: MultiScaleTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image_B3HW: Tensor, scales: int) -> tuple[Tensor, Tensor, Pyramid]:
        """Returns the unclamped image decoded from the first `scales` scales, the latent, and the pyramid."""
        latent_BEhw = self.tokenizer.image_to_latent(image_B3HW)
        with torch.autocast(latent_BEhw.device.type, enabled=False):  # codes are chosen in float32
            pyramid = self.tokenizer.quantizer.encode(latent_BEhw.detach())
        through_BEhw = straight_through(latent_BEhw, pyramid.latents[scales - 1])
        return self.tokenizer.latent_to_image(through_BEhw, clamp=False), latent_BEhw, pyramid


def train(config: TokenizerTrainConfig, *, data: Sequence[str], out: Path, resume: bool) -> Path:
    """Trains on the training shards among `data`, measures on those held out, and returns the model's directory.

    Raises InputError for shards without usable pictures, an unusable folder, or a changed config on resume.
    """
    network = config.network
    feed = Feed(config, training_sources(data, config.weights), out, resume=resume, resolution=network.resolution)
    config = feed.config
    run = Run(out, config.run, to_dict(config) | feed.names, resume)
    pipeline = feed.pipeline(run)
    held_out = held_out_shards(data)

    tokenizer = _initial(config)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    codebook = CodebookTrainer(tokenizer.quantizer, config.codebook, known=bool(config.anchor or config.init_from))
    codebook.to(run.device)
    anchor = Anchor(place_of(config.anchor), network, run.device, keep=config.cache is True) if config.anchor else None
    if anchor is not None:
        anchor.begin(tokenizer, fresh=not config.init_from)
    for part in _frozen(tokenizer, config):
        part.requires_grad_(False)
    averaged = MovingAverage(tokenizer, lambda: config.ema, buffers=True).to(run.device)
    ema: MultiScaleTokenizer = averaged.module  # type: ignore[assignment]
    # Gradients are averaged by hand: which parameters take part changes with the cut, and that DDP does not forgive.
    step_module = TokenizerStep(tokenizer).to(run.device)
    learnt = [p for p in tokenizer.parameters() if p.requires_grad]
    optimizer = _adam(learnt, config)
    adversary = _Adversary(config, run) if config.adversary_weight > 0 else None
    perceptual = perceptual_distance(place_of(config.perceptual))
    perceptual = perceptual.to(run.device) if perceptual is not None else None
    run.track(tokenizer=tokenizer, codebook=codebook, ema=averaged, optimizer=optimizer)
    if adversary is not None:
        run.track(discriminator=adversary.network, discriminator_optimizer=adversary.optimizer)
    run.restore()

    batches = feed.batches(run, pipeline)
    for step in run.steps():
        lr = lr_at(
            step, peak=config.lr, steps=config.lr_steps or run.total_steps, warmup=config.warmup, floor=config.lr_floor
        )
        set_lr(optimizer, lr)
        judged = adversary is not None and step >= config.adversary_start
        scales = _scales(config, network.quantizer.schedule.count, step)
        fakes: list[tuple[Tensor, Tensor]] = []
        for _ in run.micro_steps():
            batch = next(batches)
            image_B3HW = batch.image_B3HW.to(run.device).contiguous(memory_format=torch.channels_last)
            if config.jitter:
                image_B3HW = jittered(image_B3HW)
            with run.autocast():
                decoded_B3HW, latent_BEhw, pyramid = step_module(image_B3HW, scales)
            reborn = 0 if config.freeze_codes else codebook.update(tokenizer.quantizer, pyramid)
            reconstruction = config.reconstruction * reconstruction_loss(decoded_B3HW, image_B3HW, config.l1)
            mean_square = latent_BEhw.detach().float().square().mean()
            if anchor is not None:
                old_BEgg = anchor.latents(batch)
                mean_square = torch.maximum(mean_square, old_BEgg.square().mean())  # at first the new one is near 0
            quantisation = quantisation_loss(
                latent_BEhw,
                pyramid.latents,
                beta=config.beta,
                commit_to=config.commit_to,
                relative=config.relative,
                mean_square=run.average(mean_square),
            )
            values: dict[str, float | Tensor] = {
                "loss_reconstruction": reconstruction,
                "loss_quantisation": quantisation,
            }
            if perceptual is not None:
                values["loss_perceptual"] = perceptual(decoded_B3HW, image_B3HW)
                reconstruction = reconstruction + config.perceptual_weight * values["loss_perceptual"]
            loss = reconstruction if config.freeze_codes else reconstruction + quantisation
            if anchor is not None:
                values["loss_anchor"] = alignment_loss(latent_BEhw, old_BEgg)
                loss = loss + config.anchor_weight * values["loss_anchor"]
            if judged and adversary is not None:
                adversarial, weight = adversary.judge(decoded_B3HW, reconstruction, tokenizer.decoder.last_layer)
                loss = loss + config.adversary_weight * weight * adversarial
                values |= {"loss_adversarial": adversarial, "adaptive_weight": weight}
                fakes.append((image_B3HW, decoded_B3HW.detach()))
            run.backward(loss)
            run.log({**values, "loss": loss, "reborn": float(reborn)}, images=len(batch))
        run.average_gradients(learnt)
        run.log({"grad_norm": run.clip(learnt), "lr": lr})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if judged and adversary is not None:
            run.log(adversary.learn(fakes, lr))
        averaged.update_parameters(tokenizer)
        if run.due(step, config.run.log_every):
            _log_usage(run, codebook)
        if run.sample_due(step) and run.is_main:
            _show(run, ema, config, held_out or feed.shards, step)
    if run.is_main:
        return _finish(run, ema, config, held_out, pipeline)
    return Path(out) / "model"


def _initial(config: TokenizerTrainConfig) -> MultiScaleTokenizer:
    """A new network, or the one to start from, which must have the same configuration."""
    tokenizer = MultiScaleTokenizer(config.network)
    if config.init_from:
        start = MultiScaleTokenizer.from_directory(place_of(config.init_from))
        if replace(start.config, detail=config.network.detail) != config.network:
            raise InputError(f"{config.init_from} has another network than this preset; give one of the same shape")
        fresh = start.config.detail != config.network.detail  # the decoder's detail begins anew, as no correction
        known = {name: value for name, value in start.state_dict().items() if not (fresh and ".detail." in name)}
        tokenizer.load_state_dict(known, strict=not fresh)
        tokenizer.anchored = start.anchored
    return tokenizer


def jittered(image_B3HW: Tensor) -> Tensor:
    """Each picture perhaps mirrored, moved by up to 4 pixels (its edge goes on outwards), its channels permuted.

    Drawn from torch's global generator on the CPU, which a run seeds for every step.
    """
    B, _, H, W = image_B3HW.shape
    padded = F.pad(image_B3HW, (4, 4, 4, 4), mode="replicate")
    mirrored, moves_B2 = torch.rand(B) < 0.5, torch.randint(0, 9, (B, 2))
    orders = [torch.randperm(3) for _ in range(B)]
    pictures = []
    for b, (y, x) in enumerate(moves_B2.tolist()):
        picture = padded[b, orders[b], y : y + H, x : x + W]
        pictures.append(picture.flip(-1) if mirrored[b] else picture)
    return torch.stack(pictures).contiguous(memory_format=torch.channels_last)


def _frozen(tokenizer: MultiScaleTokenizer, config: TokenizerTrainConfig) -> list[nn.Module]:
    """The parts that gradients do not move; under the "ema" rule the codebook moves by its own rule."""
    parts: list[nn.Module] = []
    if config.freeze_encoder or config.freeze_codes:
        parts += [tokenizer.encoder, tokenizer.quant_conv]
    if config.freeze_codes:
        parts.append(tokenizer.quantizer)
    elif config.codebook.rule == "ema":
        parts.append(tokenizer.quantizer.codebook)
    return parts


class _Adversary:
    """A discriminator with its optimiser; what it sees is augmented, each picture by itself."""

    def __init__(self, config: TokenizerTrainConfig, run: Run) -> None:
        self.run, self.policy = run, config.augment
        # StyleGAN2's compares the pictures of a batch, so real and decoded ones may not share one.
        self.apart = config.adversary == "stylegan2"
        self.network = run.prepare(make_discriminator(config, run.micro_batch_size))
        self.optimizer = _adam(list(self.network.parameters()), config)

    def judge(self, decoded_B3HW: Tensor, reconstruction: Tensor, last_layer: nn.Parameter) -> tuple[Tensor, Tensor]:
        """The decoder's hinge loss and its adaptive weight."""
        self.network.requires_grad_(False)
        with self.run.autocast():
            adversarial = hinge_generator(self.network(augment(decoded_B3HW, self.policy)).float())
        self.network.requires_grad_(True)
        return adversarial, adaptive_weight(reconstruction, adversarial, last_layer)

    def learn(self, fakes: Sequence[tuple[Tensor, Tensor]], lr: float) -> dict[str, Tensor]:
        """One step of the discriminator on real and decoded pictures."""
        set_lr(self.optimizer, lr)
        losses = []
        for real_B3HW, fake_B3HW in fakes:
            with self.run.autocast():
                if self.apart:
                    real, fake = (self.network(augment(side, self.policy)) for side in (real_B3HW, fake_B3HW))
                else:
                    real, fake = self.network(augment(torch.cat([real_B3HW, fake_B3HW]), self.policy)).chunk(2)
            losses.append(0.5 * hinge_discriminator(real.float(), fake.float()))
            self.run.backward(losses[-1])
        self.run.clip(self.network.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss_discriminator": torch.stack(losses).mean().detach()}


def make_discriminator(config: TokenizerTrainConfig, batch: int) -> nn.Module:
    """A fresh discriminator: image (B, 3, H, W) -> logits, one for each patch or for each picture.

    batch: pictures that it sees at once. Raises InputError unless StyleGAN2's can compare them in its groups.
    """
    if config.adversary == "patch":
        return PatchDiscriminator()
    network = StyleGan2DiscriminatorConfig(resolution=config.network.resolution)
    if batch % min(batch, network.group):
        raise InputError(
            f"each process sees {batch} pictures at once, expected a multiple of the {network.group} that adversary "
            "stylegan2 compares: change run.batch_size or run.accumulate"
        )
    return StyleGan2Discriminator(network)


def _adam(parameters: list[nn.Parameter], config: TokenizerTrainConfig) -> torch.optim.AdamW:
    """AdamW; matrices and filters decay, biases and norms do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def _in_order(config: TokenizerTrainConfig, shards: Sequence[str], batch_size: int) -> Iterator[Batch]:
    """Every picture of some shards once."""
    settings = DataConfig(shards=tuple(shards), resolution=config.network.resolution, crop=config.crop, shuffle=False)
    return Pipeline(settings, batch_size=batch_size).one_pass()


def _scales(config: TokenizerTrainConfig, count: int, step: int) -> int:
    """How many scales this step decodes from; every process draws the same number."""
    generator = torch.Generator().manual_seed(config.run.seed * 1_000_003 + step)
    if count > 1 and float(torch.rand((), generator=generator)) < config.cut:
        return int(torch.randint(1, count, (), generator=generator))
    return count


def _log_usage(run: Run, codebook: CodebookTrainer) -> None:
    """Codes in use: those chosen at least once per 100 steps lately."""
    usage = usage_from_counts(codebook.hits_KV.cpu(), threshold=0.01)
    run.log(
        {
            "usage_distinct": torch.tensor(usage.distinct, dtype=torch.float32),
            "usage_perplexity": torch.tensor(usage.perplexity),
            "usage_overall": usage.distinct_overall / usage.vocabulary,
        }
    )


def _show(
    run: Run,
    tokenizer: MultiScaleTokenizer,
    config: TokenizerTrainConfig,
    shards: Sequence[str],
    step: int,
) -> None:
    """Writes reconstructions at every cut, and the plot of usage so far."""
    batch = next(_in_order(config, shards, 8))
    tokenizer.eval()
    with run.autocast():
        sheet = cuts_grid(tokenizer, batch.image_B3HW.to(run.device), batch.prompts)
    tokenizer.train()
    run.picture("reconstructions", sheet, step)
    if (run.out / "metrics.jsonl").exists():
        plot_usage(
            run.out / "metrics.jsonl", tokenizer.schedule, tokenizer.vocabulary, run.out / "pictures" / "usage.png"
        )


def _finish(
    run: Run, tokenizer: MultiScaleTokenizer, config: TokenizerTrainConfig, held_out: Sequence[str], pipeline: Pipeline
) -> Path:
    """Writes the model directory, measured as it will be used: with the stored precision of its weights."""
    directory = run.out / "model"
    dtype = getattr(torch, config.dtype)
    tokenizer = tokenizer.to(dtype).float().eval()
    scores: TokenizerScores | None = None
    if held_out:
        batches = _in_order(config, held_out, 64)
        scores = measure(tokenizer, batches, config.run.precision)
        run.say(scores.lines())
        write_text(run.out / "scores.json", json.dumps(scores.as_dict(), indent=1) + "\n")
    tokenizer.save(directory, card=_card(run, config, scores), dtype=dtype)
    run.say(f"{pipeline.report.text()}\nwrote {directory}")
    return directory


def _card(run: Run, config: TokenizerTrainConfig, scores: TokenizerScores | None) -> str:
    measured = f"On held-out shards:\n\n```\n{scores.lines()}\n```" if scores else "Not measured: no held-out shards."
    return (
        f"# A multi-scale tokenizer\n\n{config.network.resolution} px, scales {config.network.quantizer.sizes}, "
        f"{config.network.quantizer.vocabulary} codes. Trained for {run.step} steps on {run.images} pictures "
        f"(seed {config.run.seed}).\n\n{measured}\n\nRecipe:\n\n```json\n{json.dumps(to_dict(config), indent=1)}\n```\n"
    )
