"""The two players of an adversarial training, and what each does in its turn.

    game = AdversarialTrainer(config, run)
    run.track(**game.state())
    game.d_step(step, lessons, draws)
    game.g_step(step, lessons, draws)
    game.finish_step()                               # averaged weights, and what processes share
    game.trained().save_pretrained(directory)

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
from star.generators.gan.clip_guidance import (
    ClipGuidance,
    blur,
    blur_sigma,
    hinge_discriminator,
    hinge_fake,
    hinge_generator,
)
from star.generators.gan.conditioning import Conditioner, OwnTower
from star.generators.gan.config import GanTrainConfig
from star.generators.gan.consistency import consistency_loss
from star.generators.gan.families import build_discriminator, build_network, family_of, learning, start_from
from star.generators.gan.generator import GanGenerator
from star.generators.gan.losses import (
    PathLength,
    lazy_optimizer_settings,
    logistic_discriminator,
    logistic_generator,
    r1_penalty,
)
from star.generators.gan.saturation import DiscriminatorMonitor
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run
from star.generators.training.sample_rng import Draws
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
    """The generator's side of what is learnt and averaged: the network, and in one phase its own text tower."""

    def __init__(self, config: GanTrainConfig) -> None:
        super().__init__()
        self.network = build_network(config.network)
        self.tower: OwnTower | None = None

    def condition(self, lesson: TrainingBatch) -> Tensor | None:
        """condition_BP: the given one, or what the tower that learns makes of the prompts."""
        return lesson.condition_BP if self.tower is None else self.tower(lesson.prompts)


class AdversarialTrainer:
    """Networks, optimisers and running state of one adversarial training."""

    def __init__(self, config: GanTrainConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.learner = TrainedNetwork(config)
        if config.init_from:
            run.say(start_from(self.learner.network, config.init_from))
        self.conditions = Conditioner(self.learner.network, config.clip, config.labels, run.device)
        if config.phase == "text_encoder":
            assert self.conditions.text_encoder is not None  # the config sees to it
            self.learner.tower = OwnTower(self.conditions.text_encoder, self.conditions.projection)
        self.learner.to(run.device)
        self.discriminator = build_discriminator(config.discriminator).to(run.device)
        self.path_length = PathLength().to(run.device)
        self.augment = _augment(config).to(run.device) if config.augment else None
        self.guidance = ClipGuidance(config.clip).to(run.device) if config.guidance else None
        self.watch = DiscriminatorMonitor(config.saturated_after).to(run.device)
        self._decay = 0.0
        self.average = MovingAverage(self.learner, lambda: self._decay)
        self.learning = learning(self.learner.network, self.learner.tower, config.phase)
        self.learner.requires_grad_(False)
        _let_learn(self.learning, True)
        self.judging = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.learner_optimizer = _adam(self._groups(), config, config.lr, config.path_length.interval)
        self.judge_optimizer = _adam([{"params": self.judging}], config, config.lr_discriminator, config.r1.interval)
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self.learner.train()
        self.discriminator.train()

    @property
    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return self.learner_optimizer, self.judge_optimizer

    def _groups(self) -> list[dict[str, Any]]:
        """What learns on the generator's side, projections over tokens by themselves."""
        names = {id(parameter): name for name, parameter in self.learner.named_parameters()}
        over_tokens = [p for p in self.learning if names[id(p)].endswith("attention.projection")]
        others = [p for p in self.learning if not names[id(p)].endswith("attention.projection")]
        groups: list[dict[str, Any]] = [{"params": others, "lr_scale": 1.0}]
        return groups + [{"params": over_tokens, "lr_scale": self.config.lr_projection}] if over_tokens else groups

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for `Run.track`."""
        parts: dict[str, Any] = {
            "generator": self.learner,
            "average": self.average,
            "discriminator": self.discriminator,
            "path_length": self.path_length,
            "saturation": self.watch,
            "generator_optimizer": self.learner_optimizer,
            "discriminator_optimizer": self.judge_optimizer,
        }
        return parts if self.augment is None else parts | {"augment": self.augment}

    # ---- the turns

    def d_step(self, step: int, lessons: Sequence[TrainingBatch], draws: Draws) -> None:
        """One optimiser step on the adversarial loss, then, where it is due, one on R1 (Karras et al. 2020, §B)."""
        run, config = self.run, self.config
        self._set_rates(step)
        _let_learn(self.judging, True)
        mistakes = torch.zeros((), dtype=torch.int64, device=run.device)
        for micro, lesson in enumerate(lessons):
            with run.autocast():
                with torch.no_grad():
                    fake_B3HW, _ = self.draw(lesson, draws, f"judge {micro}")
                real, fake = self.look(lesson.raw_B3HW, lesson.condition_BP), self.look(fake_B3HW, lesson.condition_BP)
                losses = {"loss_discriminator": self._share(DISCRIMINATOR_LOSS[config.loss](real, fake), lesson)}
                total = losses["loss_discriminator"]
                if config.mismatch and lesson.condition_BP is not None:
                    wrong = self.look(lesson.raw_B3HW, lesson.condition_BP.roll(1, dims=0))
                    losses["loss_mismatch"] = FAKE_LOSS[config.loss](wrong)
                    total = total + config.mismatch * self._share(losses["loss_mismatch"], lesson)
                if config.consistency:
                    seen = [(lesson.raw_B3HW, real), (fake_B3HW, fake)]
                    losses["loss_consistency"] = consistency_loss(
                        partial(self.look, condition_BP=lesson.condition_BP), seen
                    )
                    total = total + config.consistency * losses["loss_consistency"]
            run.backward(total)
            real_B, fake_B = (logits.detach().float().flatten(1).mean(dim=1) for logits in (real, fake))
            mistakes += (real_B <= 0).sum() + (fake_B >= 0).sum()
            run.log({**losses, "real_logits": real_B.mean(), "fake_logits": fake_B.mean()}, images=len(lesson))
            if self.augment is not None:
                self.augment.observe(run.average(real_B.sign().mean()), pictures=len(lesson) * run.world)
        self._move(self.judge_optimizer, self.judging, "discriminator", config.clip_discriminator)
        self.watch.observe(run.average(mistakes.float()))
        if run.due(step, run.config.log_every):
            self.watch.check(step + 1)
        if self.augment is not None:
            run.log({"augment_probability": self.augment.probability})
        if config.r1.due(step):
            for lesson in lessons:
                image_B3HW = lesson.raw_B3HW.detach().requires_grad_(True)
                penalty_B = r1_penalty(self.look(image_B3HW, lesson.condition_BP), image_B3HW)
                loss = penalty_B.mean()
                run.backward(0.5 * config.r1.weight * config.r1.every * loss)
                run.log({"loss_r1": loss})
            self._move(self.judge_optimizer, self.judging, "r1")

    def g_step(self, step: int, lessons: Sequence[TrainingBatch], draws: Draws) -> None:
        """One optimiser step on the adversarial loss and guidance, then, where it is due, one on the path length."""
        run, config = self.run, self.config
        _let_learn(self.judging, False)
        for micro, lesson in enumerate(lessons):
            with run.autocast():
                fake_B3HW, _ = self.draw(lesson, draws, f"learn {micro}")
                loss = self._share(GENERATOR_LOSS[config.loss](self.look(fake_B3HW, lesson.condition_BP)), lesson)
                losses, total = {"loss_generator": loss}, loss
                if self.guidance is not None and lesson.condition_BP is not None:
                    image_B3HW = self.learner.network.denormalise(fake_B3HW)
                    losses["loss_guidance"] = self.guidance(image_B3HW, lesson.condition_BP)
                    total = total + config.guidance * losses["loss_guidance"]
            run.backward(total)
            run.log(losses)
        self._move(self.learner_optimizer, self.learning, "generator")
        if config.path_length.due(step):
            for micro, lesson in enumerate(lessons):
                half = TrainingBatch(
                    lesson.raw_B3HW[: (len(lesson) + 1) // 2],
                    lesson.prompts[: (len(lesson) + 1) // 2],
                    None if lesson.condition_BP is None else lesson.condition_BP[: (len(lesson) + 1) // 2],
                )
                raw_B3HW, w_BSW = self.draw(half, draws, f"path {micro}")
                loss = self.path_length(raw_B3HW, w_BSW).mean()
                run.backward(config.path_length.weight * config.path_length.every * loss)
                run.log({"loss_path_length": loss, "path_length": self.path_length.mean})
            self._move(self.learner_optimizer, self.learning, "path_length")

    def finish_step(self) -> None:
        """Averages what every process tracks on its own pictures, and moves the averaged weights."""
        run = self.run
        if run.world > 1:
            followed = [buffer for name, buffer in self.learner.named_buffers() if name.endswith("average_W")]
            for buffer in (*followed, self.path_length.mean):
                buffer.copy_(run.average(buffer))
        self._decay = self.config.average.decay(run.config.batch_size, run.images)
        self.average.update_parameters(self.learner)

    # ---- what the turns share

    def draw(self, lesson: TrainingBatch, draws: Draws, purpose: str) -> tuple[Tensor, Tensor]:
        """raw_B3HW and w_BSW for the captions of a lesson, from latents of this purpose."""
        network, rows = self.learner.network, len(lesson)
        latent_BZ = draws.latents(purpose, rows, network.latent_width).to(self.run.device)
        mix = None
        if draws.chance(f"mix {purpose}") < self.config.style_mixing:
            other_BZ = draws.latents(f"other {purpose}", rows, network.latent_width).to(self.run.device)
            mix = (other_BZ, 1 + int(draws.chance(f"slot {purpose}") * (network.slots - 1)))
        return network(latent_BZ, self.learner.condition(lesson), self.config.noise, mix)

    def look(self, raw_B3HW: Tensor, condition_BP: Tensor | None) -> Tensor:
        """The discriminator's logits, behind the blur and the augmentation of this moment."""
        sigma = blur_sigma(self.run.images, self.config.blur.sigma, self.config.blur.pictures)
        seen_B3HW = blur(raw_B3HW, sigma) if sigma else raw_B3HW
        if self.augment is not None:
            seen_B3HW = self.augment(seen_B3HW)
        return self.discriminator(seen_B3HW, condition_BP).float()

    def _share(self, loss: Tensor, lesson: TrainingBatch) -> Tensor:
        """As StyleGAN-T's code weighs it against the other terms, where the config asks for it."""
        return loss / len(lesson) if self.config.loss_per_picture else loss

    def _move(
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
        """The averaged generator as one that draws; it shares its weights with the game."""
        learner: TrainedNetwork = self.average.module  # type: ignore[assignment]
        encoder = self.conditions.text_encoder if learner.tower is None else learner.tower.encoder()
        family = family_of(self.config.network)
        return family(learner.network, encoder, self.conditions.projection, self.conditions.labels)


def _let_learn(parameters: Sequence[nn.Parameter], yes: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(yes)


def _augment(config: GanTrainConfig) -> AdaptiveAugment:
    return AdaptiveAugment(
        config.augment, target=config.augment_target, pictures=config.augment_pictures, limit=config.augment_limit
    )


def _adam(groups: list[dict[str, Any]], config: GanTrainConfig, lr: float, interval: int) -> torch.optim.Adam:
    lr, betas = lazy_optimizer_settings(lr, config.betas, interval)
    return torch.optim.Adam(groups, lr=lr, betas=betas, eps=1e-8)
