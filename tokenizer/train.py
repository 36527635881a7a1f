"""Training of the multi-scale tokenizer: shards in, a model directory out.

    train(PRESETS["emoji-cpu"], data=["shards/"], out=Path("runs/tokenizer"), resume=False)

One step: encode, quantise (which also moves the codebook, see `codebook.py`), decode, and compare. The adversary, if
its weight is not 0, starts after `adversary_start` steps, when there is something worth telling from
real pictures (Esser et al. 2021, §3.1).

B batch, E code width, H W pixels, h w latent grid, K scales, 3 RGB.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.disk import write_text
from star.data.errors import InputError
from star.data.loader.batch import to_device
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.shards.splits import held_out_shards, training_sources
from star.generators.config import to_dict
from star.generators.registry import place_of
from star.generators.training.data_feed import Feed
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run
from star.generators.training.schedule import lr_at, set_lr
from star.tokenizer.adversary import Adversary, adamw
from star.tokenizer.align import AlignmentTeacher, alignment_loss
from star.tokenizer.config import TokenizerTrainConfig
from star.tokenizer.losses import perceptual_distance, quantisation_loss, reconstruction_loss, straight_through
from star.tokenizer.metrics import TokenizerScores, cuts_grid, measure
from star.tokenizer.plots import plot_usage
from star.tokenizer.quantizer import Pyramid
from star.tokenizer.quantizers import QuantizerTrainer, make_trainer
from star.tokenizer.tokenizer import MultiScaleTokenizer


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
    sources, side = training_sources(data, config.weights), config.network.resolution
    feed = Feed(config, sources, out, resume=resume, resolution=side)
    config = feed.config
    run = Run(out, config.run, to_dict(config) | feed.names, resume)
    pipeline = feed.pipeline(run)
    held_out = held_out_shards(data)
    trainer = TokenizerTrainer(config, run)
    run.restore()

    batches = feed.batches(run, pipeline)
    for step in run.steps():
        trainer.step(step, batches)
        if run.due(step, config.run.log_every):
            run.log(trainer.codebook.usage().log())
        if run.sample_due(step) and run.is_main:
            _show(run, trainer.smooth, config, held_out or feed.shards, step)
    if run.is_main:
        return _finish(run, trainer.smooth, config, held_out, pipeline)
    return Path(out) / "model"


class TokenizerTrainer:
    """The networks of a training, and its step. `smooth` is the moving average, which is what is kept."""

    def __init__(self, config: TokenizerTrainConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.tokenizer = _initial(config)
        self.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        known = bool(config.align_to or config.init_from)
        learner = make_trainer(self.tokenizer.quantizer, config.codebook, known=known).to(run.device)
        self.codebook: QuantizerTrainer = learner
        self.teacher: AlignmentTeacher | None = None
        if config.align_to:
            place = place_of(config.align_to)
            self.teacher = AlignmentTeacher(place, config.network, run.device, keep=config.cache is True)
            self.teacher.begin(self.tokenizer, fresh=not config.init_from)
        for part in _frozen(self.tokenizer, config, self.codebook):
            part.requires_grad_(False)
        averaged = MovingAverage(self.tokenizer, lambda: config.ema, buffers=True).to(run.device)
        self.averaged = averaged
        self.smooth: MultiScaleTokenizer = averaged.module  # type: ignore[assignment]
        # Gradients are averaged by hand: which parameters take part changes with the cut, which DDP does not allow.
        self.forward = TokenizerStep(self.tokenizer).to(run.device)
        self.learnt = [p for p in self.tokenizer.parameters() if p.requires_grad]
        self.optimizer = adamw(self.learnt, config)
        self.adversary = Adversary(config, run) if config.adversary_weight > 0 else None
        perceptual = perceptual_distance(place_of(config.perceptual))
        self.perceptual = perceptual.to(run.device) if perceptual is not None else None
        run.track(tokenizer=self.tokenizer, codebook=learner, ema=averaged, optimizer=self.optimizer)
        if self.adversary is not None:
            run.track(discriminator=self.adversary.network, discriminator_optimizer=self.adversary.optimizer)

    def step(self, step: int, batches: Iterator[Batch]) -> None:
        """One step of the tokenizer, of its average and, once it has begun, of the discriminator."""
        config, run = self.config, self.run
        steps = config.lr_steps or run.total_steps
        lr = lr_at(step, peak=config.lr, steps=steps, warmup=config.warmup, floor=config.lr_floor)
        set_lr(self.optimizer, lr)
        adversary = self.adversary if step >= config.adversary_start else None
        scales = _scales(config, config.network.quantizer.schedule.count, step)
        fakes: list[tuple[Tensor, Tensor]] = []
        for _ in run.micro_steps():
            pair = self._micro_step(next(batches), scales, adversary)
            if adversary is not None:
                fakes.append(pair)
        run.average_gradients(self.learnt)
        run.log({"grad_norm": run.clip(self.learnt), "lr": lr})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if adversary is not None:
            run.log(adversary.d_step(fakes, lr))
        self.averaged.update_parameters(self.tokenizer)

    def _micro_step(self, batch: Batch, scales: int, adversary: Adversary | None) -> tuple[Tensor, Tensor]:
        """Gradients of one batch; returns its images and, without gradient, what was decoded of them."""
        config, run = self.config, self.run
        image_B3HW = to_device(batch.image_B3HW, run.device).contiguous(memory_format=torch.channels_last)
        if config.jitter:
            image_B3HW = jittered(image_B3HW)
        with run.autocast():
            decoded_B3HW, latent_BEhw, pyramid = self.forward(image_B3HW, scales)
        restarted = None if config.freeze_codes else self.codebook.update(self.tokenizer.quantizer, pyramid)
        old_BEgg = None if self.teacher is None else self.teacher.latents(batch)
        reconstruction = config.reconstruction * reconstruction_loss(
            decoded_B3HW, image_B3HW, config.l1, log=config.log_error
        )
        quantisation = self._quantisation(latent_BEhw, pyramid, old_BEgg)
        values: dict[str, float | Tensor] = {
            "loss_reconstruction": reconstruction,
            "loss_quantisation": quantisation,
        }
        if self.perceptual is not None:
            values["loss_perceptual"] = self.perceptual(decoded_B3HW, image_B3HW)
            reconstruction = reconstruction + config.perceptual_weight * values["loss_perceptual"]
        loss = reconstruction if config.freeze_codes else reconstruction + quantisation
        regulariser = self.codebook.regulariser(self.tokenizer.quantizer, latent_BEhw, pyramid)
        if regulariser is not None and not config.freeze_codes:
            values["loss_entropy"] = regulariser
            loss = loss + regulariser
        if old_BEgg is not None:
            values["loss_alignment"] = alignment_loss(latent_BEhw, old_BEgg)
            loss = loss + config.align_weight * values["loss_alignment"]
        if adversary is not None:
            last_layer = self.tokenizer.decoder.last_layer
            adversarial, weight = adversary.g_loss(decoded_B3HW, reconstruction, last_layer)
            loss = loss + config.adversary_weight * weight * adversarial
            values |= {"loss_adversarial": adversarial, "adaptive_weight": weight}
        run.backward(loss)
        if restarted is not None:
            values["restarted_codes"] = float(restarted)
        run.log({**values, "loss": loss}, images=len(batch))
        return image_B3HW, decoded_B3HW.detach()

    def _quantisation(self, latent_BEhw: Tensor, pyramid: Pyramid, old_BEgg: Tensor | None) -> Tensor:
        mean_square = latent_BEhw.detach().float().square().mean()
        if old_BEgg is not None:
            mean_square = torch.maximum(mean_square, old_BEgg.square().mean())  # at first the new one is near 0
        return quantisation_loss(
            latent_BEhw,
            pyramid.latents,
            beta=self.config.beta,
            commit_to=self.config.commit_to,
            relative=self.config.relative,
            mean_square=self.run.average(mean_square),
        )


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
        tokenizer.aligned_to = start.aligned_to
    return tokenizer


def jittered(image_B3HW: Tensor) -> Tensor:
    """Each picture perhaps mirrored, and moved by up to 4 pixels (its edge goes on outwards).

    Drawn from torch's global generator on the CPU, which a run seeds for every step.
    """
    B, _, H, W = image_B3HW.shape
    padded = F.pad(image_B3HW, (4, 4, 4, 4), mode="replicate")
    mirrored, moves_B2 = torch.rand(B) < 0.5, torch.randint(0, 9, (B, 2))
    pictures = []
    for b, (y, x) in enumerate(moves_B2.tolist()):
        picture = padded[b, :, y : y + H, x : x + W]
        pictures.append(picture.flip(-1) if mirrored[b] else picture)
    return torch.stack(pictures).contiguous(memory_format=torch.channels_last)


def _frozen(
    tokenizer: MultiScaleTokenizer, config: TokenizerTrainConfig, codebook: QuantizerTrainer
) -> list[nn.Module]:
    """The parts that gradients do not move; under the "ema" rule the codebook moves by its own rule."""
    parts: list[nn.Module] = []
    if config.freeze_encoder or config.freeze_codes:
        parts += [tokenizer.encoder, tokenizer.quant_conv]
    if config.freeze_codes:
        parts.append(tokenizer.quantizer)
    else:
        parts += codebook.moves
    return parts


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
        pictures = cuts_grid(tokenizer, batch.image_B3HW.to(run.device), batch.prompts)
    tokenizer.train()
    run.picture("reconstructions", pictures, step)
    if (run.out / "metrics.jsonl").exists():
        plot_usage(run.out / "metrics.jsonl", tokenizer.schedule, tokenizer.tokens, run.out / "pictures" / "usage.png")


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


def _tokens(config: TokenizerTrainConfig) -> str:
    quantizer = config.network.quantizer
    return f"{quantizer.bits} bits a token" if quantizer.bits else f"{quantizer.vocabulary} codes"


def _card(run: Run, config: TokenizerTrainConfig, scores: TokenizerScores | None) -> str:
    measured = f"On held-out shards:\n\n```\n{scores.lines()}\n```" if scores else "Not measured: no held-out shards."
    return (
        f"# A multi-scale tokenizer\n\n{config.network.resolution} px, scales {config.network.quantizer.sizes}, "
        f"{_tokens(config)}. Trained for {run.step} steps on {run.images} pictures "
        f"(seed {config.run.seed}).\n\n{measured}\n\nRecipe:\n\n```json\n{json.dumps(to_dict(config), indent=1)}\n```\n"
    )
