"""What each family learns from a batch, as a loss to be made small: the contract's laws about learning use it.

B batch, H W pixels, 3 RGB.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.class_generator import VarGenerator
from star.generator import StarGenerator
from star.generators.gan.generator import GanGenerator
from star.training.targets import make_targets
from tests.generators.toy import ToyGenerator

Loss = Callable[[], Tensor]


def fitting_loss(generator: Any, prompts: list[str]) -> tuple[nn.Module, Loss]:
    """The network that learns, and the loss of one batch: pictures of soft colours, one for each prompt.

    A GAN has to hit given pictures from given latents: its way to a gradient, without a discriminator.
    """
    height, width = generator.resolution
    picture_generator = torch.Generator().manual_seed(0)
    coarse_B344 = torch.rand(len(prompts), 3, 4, 4, generator=picture_generator) * 1.6 - 0.8
    image_B3HW = F.interpolate(coarse_B344, size=(height, width), mode="bilinear")
    if isinstance(generator, GanGenerator):
        network = generator.network.train()
        condition_BP = generator.condition(prompts)
        latent_BZ = torch.randn(len(prompts), network.latent_width, generator=picture_generator)
        target_B3HW = network.normalise(image_B3HW)
        return network, lambda: F.mse_loss(network(latent_BZ, condition_BP)[0], target_B3HW)
    if isinstance(generator, (StarGenerator, VarGenerator)):
        tokenizer, transformer = generator.tokenizer, generator.transformer.train()
        taught = make_targets(tokenizer.quantizer, tokenizer.image_to_latent(image_B3HW) * 5)
        told: Any = (
            generator.text_encoder.encode(prompts)
            if isinstance(generator, StarGenerator)
            else torch.tensor([generator.label(prompt) for prompt in prompts])
        )
        return transformer, lambda: transformer(taught.teacher_input_BlE, told, codes_BL=taught.codes_BL).mean()
    if isinstance(generator, ToyGenerator):
        noise_BW = torch.randn(len(prompts), generator.width, generator=picture_generator)
        return generator, lambda: F.mse_loss(generator.to_image(noise_BW).tanh().view_as(image_B3HW), image_B3HW)
    pytest.skip(f"how a {type(generator).__name__} learns is not known to this suite")
