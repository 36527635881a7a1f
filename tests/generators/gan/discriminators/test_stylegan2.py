"""StyleGAN2-ADA's discriminator: sizes, the projection of a condition, the deviation within a batch, R1 in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.generators.gan.discriminators.stylegan2 import (
    CONFIGS,
    Halving,
    StyleGan2Discriminator,
    StyleGan2DiscriminatorConfig,
)
from star.generators.gan.losses import logistic_discriminator, logistic_generator, r1_penalty
from star.generators.styleformer import model as styleformer

TINY = StyleGan2DiscriminatorConfig(
    resolution=8, condition_width=3, channel_base=64, channel_max=8, group=2, mapping_layers=2
)


def build(config: StyleGan2DiscriminatorConfig = TINY) -> StyleGan2Discriminator:
    torch.manual_seed(0)
    return StyleGan2Discriminator(config)


def inputs(batch: int = 4, side: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(batch, 3, side, side, dtype=dtype) * 2 - 1, torch.eye(3, dtype=dtype)[torch.arange(batch) % 3]


def test_sides() -> None:
    for resolution, sides in ((4, (4,)), (32, (32, 16, 8, 4)), (48, (48, 24, 12, 6)), (7, (7,)), (20, (20, 10, 5))):
        assert replace(TINY, resolution=resolution).sides == sides
        image_B3HW, condition_BP = inputs(side=resolution)
        assert build(replace(TINY, resolution=resolution))(image_B3HW, condition_BP).shape == (4, 1)


def test_channels_double_up_to_a_limit() -> None:
    config = StyleGan2DiscriminatorConfig(resolution=128)
    assert [config.channels(side) for side in config.sides] == [128, 256, 512, 512, 512, 512]


def test_every_configuration_goes_with_a_generator() -> None:
    for name, config in CONFIGS.items():
        network = styleformer.CONFIGS[name]
        assert (config.resolution, config.condition_width) == (network.resolution, network.condition_width)


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
def test_a_block_halves(architecture: str) -> None:
    """Its skip is a low-pass filter and a 1x1 convolution; both ways are scaled by sqrt(1/2)."""
    torch.manual_seed(0)
    block = Halving(3, 5, skip=architecture == "resnet", clamp=None).double()
    x_BCHW = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    blur = torch.outer(taps, taps).expand(3, 1, 4, 4)
    y = F.conv2d(x_BCHW, block.first.weight / 27**0.5, block.first.bias, padding=1)
    y = F.conv2d(F.leaky_relu(y, 0.2) * 2**0.5, blur, padding=2, groups=3)
    y = F.conv2d(y, block.second.weight / 27**0.5, block.second.bias, stride=2)
    y = F.leaky_relu(y, 0.2) * 2**0.5
    if architecture == "resnet":
        assert block.skip is not None
        thin = F.conv2d(x_BCHW, blur, padding=1, stride=2, groups=3)
        y = (y + F.conv2d(thin, block.skip.weight / 3**0.5)) / 2**0.5
    torch.testing.assert_close(block(x_BCHW), y)
    assert block(x_BCHW).shape == (2, 5, 4, 4)


def test_the_logit_is_a_product_with_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    discriminator, (image_B3HW, condition_BP) = build().double(), inputs(dtype=torch.float64)
    directions_BM = discriminator.condition(condition_BP)
    expected = discriminator(image_B3HW, condition_BP)
    assert not torch.allclose(expected, discriminator(image_B3HW, condition_BP.roll(1, dims=0)), atol=1e-3)
    monkeypatch.setattr(discriminator, "condition", lambda direction_BM: direction_BM)
    axes = torch.eye(8, dtype=torch.float64)[:, None].expand(-1, 4, -1)
    features_BM = torch.cat([discriminator(image_B3HW, axis_BM) for axis_BM in axes], dim=1)
    torch.testing.assert_close(expected, (features_BM * directions_BM).sum(dim=1, keepdim=True))


def test_a_condition_is_mapped_like_a_latent() -> None:
    discriminator, (_, condition_BP) = build().double(), inputs(dtype=torch.float64)
    assert discriminator.embedding is not None
    assert discriminator.embedding.bias is not None
    x_BM = condition_BP @ discriminator.embedding.weight.T / 3**0.5 + discriminator.embedding.bias
    x_BM = x_BM / (x_BM.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    assert len(discriminator.mapping) == 2
    for weight, bias in (layer.parameters() for layer in discriminator.mapping):
        x_BM = F.leaky_relu(x_BM @ (0.01 * weight.T) / 8**0.5 + 0.01 * bias, 0.2) * 2**0.5
    torch.testing.assert_close(discriminator.condition(condition_BP), x_BM)


def test_pictures_are_compared_within_their_group() -> None:
    """Of four pictures in groups of two, the first goes with the third, the second with the fourth."""
    discriminator, (image_B3HW, condition_BP) = build().double(), inputs(dtype=torch.float64)
    logits = discriminator(image_B3HW, condition_BP)
    image_B3HW[2] = -image_B3HW[2]
    moved = (discriminator(image_B3HW, condition_BP) - logits).abs().flatten() > 1e-9
    assert moved.tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="a batch of 3 pictures is no multiple of the group of 2"):
        discriminator(image_B3HW[:3], condition_BP[:3])
    assert discriminator(image_B3HW[:1], condition_BP[:1]).isfinite().all()


def test_without_a_condition() -> None:
    discriminator, (image_B3HW, condition_BP) = build(replace(TINY, condition_width=0)), inputs()
    assert discriminator(image_B3HW).shape == (4, 1)
    for call in (lambda: discriminator(image_B3HW, condition_BP), lambda: build()(image_B3HW)):
        with pytest.raises(ValueError, match="needs a condition, and one without takes none"):
            call()
    with pytest.raises(ValueError, match=r"pictures have shape \(3, 4, 4\), expected \(3, 8, 8\)"):
        discriminator(image_B3HW[:, :, :4, :4])


def test_activations_are_clamped() -> None:
    image_B3HW, condition_BP = inputs()
    free, clamped = (build(replace(TINY, clamp=clamp)) for clamp in (None, 0.5))
    assert torch.equal(build(replace(TINY, clamp=1e9))(image_B3HW, condition_BP), free(image_B3HW, condition_BP))
    assert not torch.allclose(clamped(image_B3HW, condition_BP), free(image_B3HW, condition_BP), atol=1e-3)


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
def test_every_parameter_learns(architecture: Any) -> None:
    discriminator, (image_B3HW, condition_BP) = build(replace(TINY, architecture=architecture)), inputs()
    logistic_discriminator(*discriminator(image_B3HW, condition_BP).chunk(2)).backward()
    assert not [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
def test_r1_against_finite_differences(architecture: Any) -> None:
    """In float64: the penalty itself, from differences of logits, and its gradient in every parameter."""
    config = replace(TINY, architecture=architecture, channel_max=4, mapping_layers=1)
    discriminator, (image_B3HW, condition_BP) = build(config).double(), inputs(2, dtype=torch.float64)

    def sum_of_logits(image_B3HW: Tensor) -> Tensor:
        return discriminator(image_B3HW, condition_BP).sum()

    image_B3HW.requires_grad_()
    penalty_B = r1_penalty(discriminator(image_B3HW, condition_BP), image_B3HW)
    step, slopes = 1e-6, []
    with torch.no_grad():
        for place in range(3 * 8 * 8):  # of the first picture
            ends = []
            for sign in (1, -1):
                moved_B3HW = image_B3HW.clone()
                moved_B3HW[0].view(-1)[place] += sign * step
                ends.append(sum_of_logits(moved_B3HW))
            slopes.append((ends[0] - ends[1]) / (2 * step))
    torch.testing.assert_close(penalty_B[0].detach(), torch.stack(slopes).square().sum(), rtol=1e-6, atol=0)

    names = [name for name, _ in discriminator.named_parameters()]

    def penalty(*parameters: Tensor) -> Tensor:
        told = dict(zip(names, parameters, strict=True))
        logits = torch.func.functional_call(discriminator, told, (image_B3HW, condition_BP))
        return r1_penalty(logits, image_B3HW)

    assert torch.autograd.gradcheck(penalty, tuple(discriminator.parameters()), fast_mode=True)


def test_it_learns_to_tell_pictures_and_captions_apart() -> None:
    """Bright pictures are real under one caption, dark ones under the other: neither alone decides."""
    discriminator = build(replace(TINY, channel_base=128, channel_max=16))
    torch.manual_seed(3)
    shade = torch.tensor([0.5, -0.5, 0.5, -0.5])[:, None, None, None]
    image_B3HW = (torch.randn(4, 3, 8, 8) * 0.1 + shade).clamp(-1, 1)
    caption = torch.eye(3)[:2].repeat(2, 1)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.02)
    for _ in range(30):
        real, fake = discriminator(image_B3HW, caption), discriminator(image_B3HW, caption.flip(0))
        loss = logistic_discriminator(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1  # 1.39 where nothing is told apart
    assert logistic_generator(discriminator(image_B3HW, caption)).item() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 3}, "resolution is 3, expected a number that can be halved"),
        ({"resolution": 18}, "resolution is 18, expected a number that can be halved"),
        ({"channel_base": 0}, "channel_base is 0, expected at least 1"),
        ({"group": 0}, "group is 0, expected at least 1"),
        ({"mapping_layers": 0}, "mapping_layers is 0, expected at least 1"),
        ({"condition_width": -1}, "condition_width is -1, expected at least 0"),
        ({"group_channels": 3}, "group_channels is 3, expected a divisor of the 8 channels"),
    ],
)
def test_impossible_configs(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY, **changes)
