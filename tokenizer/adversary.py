"""The discriminator of a tokenizer's training, and the steps that it takes.

B batch, H W pixels, 3 RGB.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.gan.augment.diffaugment import augment
from star.generators.gan.discriminators.stylegan2 import StyleGan2Discriminator, StyleGan2DiscriminatorConfig
from star.generators.gan.losses import hinge_discriminator, hinge_generator
from star.generators.training.run import Run
from star.generators.training.schedule import set_lr
from star.tokenizer.config import TokenizerTrainConfig
from star.tokenizer.losses import PatchDiscriminator, adaptive_weight


class Adversary:
    """A discriminator with its optimiser; what it sees is augmented, each picture by itself."""

    def __init__(self, config: TokenizerTrainConfig, run: Run) -> None:
        self.run, self.policy = run, config.augment
        # StyleGAN2's compares the pictures of a batch, so real and decoded ones may not share one.
        self.apart = config.adversary == "stylegan2"
        self.network = run.prepare(make_discriminator(config, run.micro_batch_size))
        self.optimizer = adamw(list(self.network.parameters()), config)

    def g_loss(self, decoded_B3HW: Tensor, reconstruction: Tensor, last_layer: nn.Parameter) -> tuple[Tensor, Tensor]:
        """The decoder's hinge loss and its adaptive weight."""
        self.network.requires_grad_(False)
        with self.run.autocast():
            adversarial = hinge_generator(self.network(augment(decoded_B3HW, self.policy)).float())
        self.network.requires_grad_(True)
        return adversarial, adaptive_weight(reconstruction, adversarial, last_layer)

    def d_step(self, fakes: Sequence[tuple[Tensor, Tensor]], lr: float) -> dict[str, Tensor]:
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


def adamw(parameters: list[nn.Parameter], config: TokenizerTrainConfig) -> torch.optim.AdamW:
    """AdamW; matrices and filters decay, biases and norms do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)
