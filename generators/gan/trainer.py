"""Generator and discriminator of an adversarial training, and one step of each.

    trainer = AdversarialTrainer(config, run)
    run.track(**trainer.state())
    trainer.d_step(step, batches, rng)               # discriminator
    trainer.g_step(step, batches, rng)               # generator
    trainer.finish_step()                            # averaged weights, and what processes share
    trainer.trained().save_pretrained(directory)

B batch, P condition width, S style slots, W style width, 3 RGB, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.gan.augment.ada import AdaptiveAugment
from star.generators.gan.backbones import round_towers
from star.generators.gan.clip_guidance import ClipGuidance, blur, blur_sigma
from star.generators.gan.conditioning import Conditioner, TrainableTextEncoder
from star.generators.gan.config import GanTrainConfig
from star.generators.gan.consistency import consistency_loss
from star.generators.gan.discriminator_monitor import DiscriminatorMonitor
from star.generators.gan.generator import GanGenerator, GanNetwork
from star.generators.gan.init_from import init_from
from star.generators.gan.losses import (
    PathLength,
    hinge_discriminator,
    hinge_fake,
    hinge_generator,
    lazy_optimizer_settings,
    logistic_discriminator,
    logistic_generator,
    r1_penalty,
)
from star.generators.gan.pairs import paired_loss
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run
from star.generators.training.sample_rng import SampleRng
from star.generators.training.schedule import set_lr

DISCRIMINATOR_LOSS = {"logistic": logistic_discriminator, "hinge": hinge_discriminator}
GENERATOR_LOSS = {"logistic": logistic_generator, "hinge": hinge_generator}
FAKE_LOSS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda logits: F.softplus(logits).mean(),
    "hinge": hinge_fake,
}


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One micro-batch: real pictures in the raw range of the network, and what is told about them."""

    raw_B3HW: Tensor
    prompts: list[str]
    condition_BP: Tensor | None

    def __len__(self) -> int:
        return len(self.raw_B3HW)


class TrainedNetwork(nn.Module):
    """What is learnt and averaged on the generator's side: the network, and in one phase its own text encoder."""

    def __init__(self, config: GanTrainConfig) -> None:
        super().__init__()
        self.network: GanNetwork = config.family.network_class(config.network)
        self.tower: TrainableTextEncoder | None = None

    def condition(self, batch: TrainingBatch) -> Tensor | None:
        """condition_BP: the given one, or what the text encoder that learns makes of the prompts."""
        return batch.condition_BP if self.tower is None else self.tower(batch.prompts)


class AdversarialTrainer:
    """Networks, optimisers and running state of one adversarial training."""

    def __init__(self, config: GanTrainConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.generator = TrainedNetwork(config)
        if config.init_from:
            run.say(init_from(config.family, self.generator.network, config.init_from))
        self.conditions = Conditioner(self.generator.network, config.clip, config.labels, run.device)
        if config.phase == "text_encoder":
            assert self.conditions.text_encoder is not None  # the config sees to it
            self.generator.tower = TrainableTextEncoder(self.conditions.text_encoder, self.conditions.projection)
        self.generator.to(run.device)
        self.discriminator = config.discriminator.build().to(run.device)
        self.path_length = PathLength().to(run.device)
        self.augment = _augment(config).to(run.device) if config.augment else None
        self.guidance = ClipGuidance(config.clip).to(run.device) if config.guidance else None
        if config.towers == "bfloat16":
            for module in (self.discriminator, self.guidance):
                if module is not None:
                    round_towers(module)
        self._drawn: list[Tensor] = []  # this step's pictures, with their graphs, where both networks learn from them
        self.monitor = DiscriminatorMonitor(config.saturated_after).to(run.device)
        self._decay = 0.0
        self.average = MovingAverage(self.generator, lambda: self._decay)
        self.generator_parameters = self.generator.network.trainable(config.phase)
        if self.generator.tower is not None:
            self.generator_parameters += list(self.generator.tower.parameters())
        self.generator.requires_grad_(False)
        _require_grad(self.generator_parameters, True)
        self.discriminator_parameters = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.g_optimizer = _adam(self._groups(), config, config.lr, config.path_length.interval)
        self.d_optimizer = _adam(
            [{"params": self.discriminator_parameters}], config, config.lr_discriminator, config.r1.interval
        )
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self.generator.train()
        self.discriminator.train()

    @property
    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return self.g_optimizer, self.d_optimizer

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the generator's optimiser: projections over tokens have a learning rate of their own."""
        names = {id(parameter): name for name, parameter in self.generator.named_parameters()}
        over_tokens = [p for p in self.generator_parameters if names[id(p)].endswith("attention.projection")]
        others = [p for p in self.generator_parameters if not names[id(p)].endswith("attention.projection")]
        groups: list[dict[str, Any]] = [{"params": others, "lr_scale": 1.0}]
        return groups + [{"params": over_tokens, "lr_scale": self.config.lr_projection}] if over_tokens else groups

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for `Run.track`."""
        parts: dict[str, Any] = {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
            "path_length": self.path_length,
            "saturation": self.monitor,
            "generator_optimizer": self.g_optimizer,
            "discriminator_optimizer": self.d_optimizer,
        }
        return parts if self.augment is None else parts | {"augment": self.augment}

    # ---- the two steps

    def d_step(self, step: int, batches: Sequence[TrainingBatch], rng: SampleRng) -> None:
        """One optimiser step on the adversarial loss, then, where it is due, one on R1 (Karras et al. 2020, §B)."""
        run, config = self.run, self.config
        self._set_rates(step)
        if step < config.paired_alone:
            run.log({}, images=sum(map(len, batches)))
            return
        _require_grad(self.discriminator_parameters, True)
        mistakes = torch.zeros((), dtype=torch.int64, device=run.device)
        for micro, batch in enumerate(batches):
            with run.autocast():
                with torch.set_grad_enabled(config.one_draw):
                    fake_B3HW, _ = self.generate(batch, rng, f"judge {micro}")
                if config.one_draw:
                    self._drawn.append(fake_B3HW)
                    fake_B3HW = fake_B3HW.detach()
                real, fake = (
                    self.discriminate(batch.raw_B3HW, batch.condition_BP),
                    self.discriminate(fake_B3HW, batch.condition_BP),
                )
                losses = {"loss_discriminator": self._weighed(DISCRIMINATOR_LOSS[config.loss](real, fake), batch)}
                total = losses["loss_discriminator"]
                if config.mismatch and batch.condition_BP is not None:
                    wrong = self.discriminate(batch.raw_B3HW, batch.condition_BP.roll(1, dims=0))
                    losses["loss_mismatch"] = FAKE_LOSS[config.loss](wrong)
                    total = total + config.mismatch * self._weighed(losses["loss_mismatch"], batch)
                if config.consistency:
                    seen = [(batch.raw_B3HW, real), (fake_B3HW, fake)]
                    losses["loss_consistency"] = consistency_loss(
                        partial(self.discriminate, condition_BP=batch.condition_BP), seen
                    )
                    total = total + config.consistency * losses["loss_consistency"]
            run.backward(total)
            real_B, fake_B = (logits.detach().float().flatten(1).mean(dim=1) for logits in (real, fake))
            mistakes += (real_B <= 0).sum() + (fake_B >= 0).sum()
            run.log({**losses, "real_logits": real_B.mean(), "fake_logits": fake_B.mean()}, images=len(batch))
            if self.augment is not None:
                self.augment.observe(run.average(real_B.sign().mean()), pictures=len(batch) * run.world)
        self._update(self.d_optimizer, self.discriminator_parameters, "discriminator", config.clip_discriminator)
        self.monitor.observe(run.average(mistakes.float()))
        if run.due(step, run.config.log_every):
            self.monitor.check(step + 1)
        if self.augment is not None:
            run.log({"augment_probability": self.augment.probability})
        if config.r1.due(step):
            for batch in batches:
                image_B3HW = batch.raw_B3HW.detach().requires_grad_(True)
                penalty_B = r1_penalty(self.discriminate(image_B3HW, batch.condition_BP), image_B3HW)
                loss = penalty_B.mean()
                run.backward(0.5 * config.r1.weight * config.r1.every * loss)
                run.log({"loss_r1": loss})
            self._update(self.d_optimizer, self.discriminator_parameters, "r1")

    def g_step(self, step: int, batches: Sequence[TrainingBatch], rng: SampleRng) -> None:
        """One optimiser step on the adversarial loss and guidance, then, where it is due, one on the path length."""
        run, config = self.run, self.config
        if step < config.paired_alone:
            self._paired_step(batches, rng)
            return
        _require_grad(self.discriminator_parameters, False)
        for micro, batch in enumerate(batches):
            with run.autocast():
                fake_B3HW = self._drawn[micro] if config.one_draw else self.generate(batch, rng, f"learn {micro}")[0]
                loss = self._weighed(
                    GENERATOR_LOSS[config.loss](self.discriminate(fake_B3HW, batch.condition_BP)), batch
                )
                losses, total = {"loss_generator": loss}, loss
                if self.guidance is not None and batch.condition_BP is not None:
                    image_B3HW = self.generator.network.denormalise(fake_B3HW)
                    losses["loss_guidance"] = self.guidance(image_B3HW, batch.condition_BP)
                    total = total + config.guidance * losses["loss_guidance"]
                if config.paired:
                    losses["loss_paired"] = paired_loss(fake_B3HW, batch.raw_B3HW)
                    total = total + config.paired * losses["loss_paired"]
            run.backward(total)
            run.log(losses)
        self._drawn.clear()
        self._update(self.g_optimizer, self.generator_parameters, "generator")
        if config.path_length.due(step):
            for micro, batch in enumerate(batches):
                half = TrainingBatch(
                    batch.raw_B3HW[: (len(batch) + 1) // 2],
                    batch.prompts[: (len(batch) + 1) // 2],
                    None if batch.condition_BP is None else batch.condition_BP[: (len(batch) + 1) // 2],
                )
                raw_B3HW, w_BSW = self.generate(half, rng, f"path {micro}")
                loss = self.path_length(raw_B3HW, w_BSW).mean()
                run.backward(config.path_length.weight * config.path_length.every * loss)
                run.log({"loss_path_length": loss, "path_length": self.path_length.mean})
            self._update(self.g_optimizer, self.generator_parameters, "path_length")

    def _paired_step(self, batches: Sequence[TrainingBatch], rng: SampleRng) -> None:
        """One optimiser step of the generator on the pictures that the captions belong to, and on nothing else."""
        for micro, batch in enumerate(batches):
            with self.run.autocast():
                loss = paired_loss(self.generate(batch, rng, f"learn {micro}")[0], batch.raw_B3HW)
            self.run.backward(self.config.paired * loss)
            self.run.log({"loss_paired": loss})
        self._update(self.g_optimizer, self.generator_parameters, "generator")

    def finish_step(self) -> None:
        """Averages what every process tracks on its own pictures, and moves the averaged weights."""
        run = self.run
        if run.world > 1:
            followed = [buffer for name, buffer in self.generator.named_buffers() if name.endswith("average_W")]
            for buffer in (*followed, self.path_length.mean):
                buffer.copy_(run.average(buffer))
        self._decay = self.config.average.decay(run.config.batch_size, run.images)
        self.average.update_parameters(self.generator)

    # ---- what both steps share

    def generate(self, batch: TrainingBatch, rng: SampleRng, purpose: str) -> tuple[Tensor, Tensor]:
        """raw_B3HW and w_BSW for the captions of a batch, from the latents that this purpose seeds."""
        network, rows = self.generator.network, len(batch)
        latent_BZ = rng.latents(purpose, rows, network.latent_width).to(self.run.device)
        mix = None
        if rng.chance(f"mix {purpose}") < self.config.style_mixing:
            other_BZ = rng.latents(f"other {purpose}", rows, network.latent_width).to(self.run.device)
            mix = (other_BZ, 1 + int(rng.chance(f"slot {purpose}") * (network.slots - 1)))
        return network(latent_BZ, self.generator.condition(batch), self.config.noise, mix)

    def discriminate(self, raw_B3HW: Tensor, condition_BP: Tensor | None) -> Tensor:
        """The discriminator's logits, behind the blur and the augmentation of this moment."""
        sigma = blur_sigma(self.run.images, self.config.blur.sigma, self.config.blur.pictures)
        seen_B3HW = blur(raw_B3HW, sigma) if sigma else raw_B3HW
        if self.augment is not None:
            seen_B3HW = self.augment(seen_B3HW)
        return self.discriminator(seen_B3HW, condition_BP).float()

    def _weighed(self, loss: Tensor, batch: TrainingBatch) -> Tensor:
        """As StyleGAN-T's code weighs it against the other terms, where the config asks for it."""
        return loss / len(batch) if self.config.loss_per_picture else loss

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        name: str,
        limit: float | None = None,
    ) -> None:
        self.run.average_gradients(parameters)
        self.run.log({f"grad_norm_{name}": self.run.clip(parameters, limit or None)})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _set_rates(self, step: int) -> None:
        begin, steps = self.config.lr_decay_from, self.run.total_steps
        share = 1.0 if not begin or step < begin else (steps - step) / (steps - begin)
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            set_lr(optimizer, rate * share)

    def trained(self) -> GanGenerator:
        """The averaged generator as one that draws; it shares its weights with the trainer."""
        averaged: TrainedNetwork = self.average.module  # type: ignore[assignment]
        encoder = self.conditions.text_encoder if averaged.tower is None else averaged.tower.encoder()
        return self.config.family(averaged.network, encoder, self.conditions.projection, self.conditions.labels)


def _require_grad(parameters: Sequence[nn.Parameter], yes: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(yes)


def _augment(config: GanTrainConfig) -> AdaptiveAugment:
    return AdaptiveAugment(
        config.augment, target=config.augment_target, pictures=config.augment_pictures, limit=config.augment_limit
    )


def _adam(groups: list[dict[str, Any]], config: GanTrainConfig, lr: float, interval: int) -> torch.optim.Adam:
    lr, betas = lazy_optimizer_settings(lr, config.betas, interval)
    return torch.optim.Adam(groups, lr=lr, betas=betas, eps=1e-8)
