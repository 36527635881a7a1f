"""StyleGAN-T's generator: sizes of the paper, truncation towards the text, gradients, growing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from star.data.errors import InputError
from star.generators.gan.losses import path_lengths
from star.generators.protocol import SampleOptions
from star.generators.stylegan_t.layers import Block, FourierInput
from star.generators.stylegan_t.model import (
    CONFIGS,
    StyleGanT,
    StyleGanTConfig,
    StyleGanTGenerator,
)

TINY = StyleGanTConfig(
    resolution=16, condition_width=6, latent_width=4, channel_base=128, channel_max=8, residual_blocks=1, groups=4
)


def build(config: StyleGanTConfig = TINY, seed: int = 0) -> StyleGanT:
    torch.manual_seed(seed)
    return StyleGanT(config)


def inputs(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 4, dtype=dtype), nn.functional.normalize(torch.randn(batch, 6, dtype=dtype), dim=1)


# Millions of parameters of the synthesis network, and slots, measured on the released code.
@pytest.mark.parametrize(
    ("name", "millions", "slots"),
    [
        ("full-64", 975.55, 29),
        ("full-256", 1016.4, 43),
        ("full-512", 1020.5, 50),
        ("lite-64", 74.55, 21),
        ("lite-256", 85.7, 31),
        ("lite-512", 87.0, 36),
    ],
)
def test_sizes_of_the_paper(name: str, millions: float, slots: int) -> None:
    with torch.device("meta"):
        network = StyleGanT(CONFIGS[name])
    digits = len(str(millions).partition(".")[2])
    assert round(sum(p.numel() for p in network.blocks.parameters()) / 1e6, digits) == millions
    assert network.slots == slots
    assert sum(p.numel() for p in network.mapping.parameters()) == 2 * (64 * 64 + 64)
    assert CONFIGS[name].style_width == 832


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 48}, "resolution is 48, expected a power of two from 8"),
        ({"resolution": 4}, "resolution is 4, expected"),
        ({"residual_blocks": 0}, "residual_blocks is 0, expected at least 1"),
        ({"condition_width": 0}, "condition_width is 0 with conditioning text"),
        ({"conditioning": "none"}, "condition_width is 6 with conditioning none"),
        ({"groups": 3}, "the block of 8 pixels has 8 channels, expected a multiple of the 3 groups"),
        ({"channel_base": 8}, "the block of 8 pixels has 1 channels"),
    ],
)
def test_impossible_configs(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY, **changes)


def test_truncation_is_towards_the_mean_of_the_text() -> None:
    network = build()
    latent_BZ, condition_BP = inputs(3)
    network.mapping.track(torch.randn(5, 4))
    same_BP = condition_BP[:1].expand(3, -1)
    mean_BSW = network.styles(latent_BZ, same_BP, truncation=0.0)
    assert torch.equal(mean_BSW[0], mean_BSW[1])
    assert torch.equal(mean_BSW[0], mean_BSW[2])
    assert torch.equal(mean_BSW[0, 0], torch.cat([network.mapping.average_W, condition_BP[0]]))
    other_BSW = network.styles(latent_BZ, condition_BP[1:2].expand(3, -1), truncation=0.0)
    assert not torch.equal(mean_BSW[0], other_BSW[0])
    whole, half = (network.styles(latent_BZ, condition_BP, truncation=psi) for psi in (1.0, 0.5))
    zero = network.styles(latent_BZ, condition_BP, truncation=0.0)
    torch.testing.assert_close(half, (whole + zero) / 2)
    assert torch.equal(half[..., 4:], whole[..., 4:])  # the text is never truncated
    partly = network.styles(latent_BZ, condition_BP, truncation=0.5, cutoff=3)
    assert torch.equal(partly[:, :3], half[:, :3])
    assert torch.equal(partly[:, 3:], whole[:, 3:])


def test_a_truncated_picture_follows_its_prompt_alone() -> None:
    generator = StyleGanTGenerator.for_test()
    prompts, options = ["a red circle", "a red circle", "a blue square"], SampleOptions(truncation=0.0)
    pixels_B3HW = generator.generate(prompts, seeds=[1, 2, 2], options=options)
    assert torch.equal(pixels_B3HW[0], pixels_B3HW[1])
    assert (pixels_B3HW[1].float() - pixels_B3HW[2].float()).abs().mean() > 1  # of 255
    free_B3HW = generator.generate(prompts, seeds=[1, 2, 2])
    assert (free_B3HW[0].float() - free_B3HW[1].float()).abs().mean() > 1


def test_only_training_moves_the_running_mean() -> None:
    network, (latent_BZ, condition_BP) = build(), inputs(3)
    network.eval()(latent_BZ, condition_BP)
    assert not network.mapping.average_W.any()
    network.train()(latent_BZ, condition_BP, mix=(latent_BZ.flip(0), 2))
    torch.testing.assert_close(network.mapping.average_W, 0.005 * network.mapping(latent_BZ).mean(dim=0).detach())


def test_conditions_are_given_where_they_are_read() -> None:
    latent_BZ, condition_BP = inputs(2)
    without = build(replace(TINY, conditioning="none", condition_width=0))
    for call in (lambda: build().styles(latent_BZ), lambda: without.styles(latent_BZ, condition_BP)):
        with pytest.raises(ValueError, match="needs a condition"):
            call()
    assert without(latent_BZ)[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("architecture", ["skip", "orig"])
def test_every_parameter_learns(architecture: Any) -> None:
    network = build(replace(TINY, architecture=architecture))
    raw_B3HW, _ = network(*inputs(2))
    raw_B3HW.square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert sum("to_rgb.bias" in name for name, _ in network.named_parameters()) == (2 if architecture == "skip" else 1)


def test_noise() -> None:
    network, (latent_BZ, condition_BP) = build(), inputs(2)
    w_BSW = network.styles(latent_BZ, condition_BP)
    still = network.synthesis(w_BSW, "none")
    assert torch.equal(still, network.synthesis(w_BSW, "random"))  # strengths start at 0
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)
    one, other = (network.synthesis(w_BSW, "random") for _ in range(2))
    assert not torch.equal(one, other)
    fixed = network.synthesis(w_BSW, "const")
    assert torch.equal(fixed, network.synthesis(w_BSW, "const"))
    assert not torch.equal(fixed, still)


def test_pictures_of_a_batch_are_independent() -> None:
    network, (latent_BZ, condition_BP) = build().double(), inputs(3, torch.float64)
    together, _ = network(latent_BZ, condition_BP, "const")
    for row in range(3):
        alone, _ = network(latent_BZ[row : row + 1], condition_BP[row : row + 1], "const")
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-10)


def test_derivatives_of_first_and_second_order() -> None:
    """Against finite differences in float64: of the picture, and of path lengths, which differentiate twice."""
    network = build(replace(TINY, resolution=8, conditioning="none", condition_width=0)).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "layer_scale" in name:  # at 1e-5 the branch would hardly count
                parameter.fill_(0.5)
    w_BSW = torch.randn(1, network.slots, 4, dtype=torch.float64, requires_grad=True)
    noise_B3HW = torch.randn(1, 3, 8, 8, dtype=torch.float64)

    def draw(w_BSW: Tensor) -> Tensor:
        return network.synthesis(w_BSW, "const")

    assert torch.autograd.gradcheck(draw, w_BSW)
    assert torch.autograd.gradcheck(lambda w_BSW: path_lengths(draw(w_BSW), w_BSW, noise_B3HW), w_BSW)


def test_the_averaged_copy_draws() -> None:
    network, (latent_BZ, condition_BP) = build(), inputs(2)
    network(latent_BZ, condition_BP)
    average = AveragedModel(network)
    average.update_parameters(network)
    assert torch.equal(average(latent_BZ, condition_BP, "const")[0], network(latent_BZ, condition_BP, "const")[0])


# ---- Fourier input


def test_fourier_input_turns_with_the_users_transform() -> None:
    torch.manual_seed(0)
    source = FourierInput(style_width=4, channels=16).double()
    w_BW = torch.randn(2, 4, dtype=torch.float64)
    plain_BCHW = source(w_BW)
    source.transform_33.copy_(torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    torch.testing.assert_close(source(w_BW), plain_BCHW.rot90(1, (2, 3)))


def test_fourier_input_moves_and_fades() -> None:
    torch.manual_seed(0)
    source = FourierInput(style_width=4, channels=16).double()
    with torch.no_grad():
        source.weight.copy_(4 * torch.eye(16))  # one channel per frequency, after the division by sqrt(C)
    w_BW = torch.randn(1, 4, dtype=torch.float64)
    plain_BCHW = source(w_BW)
    source.transform_33[0, 2] = 1 / source.side  # picture sides: one pixel
    torch.testing.assert_close(source(w_BW)[..., :-1], plain_BCHW[..., 1:])
    source.transform_33.copy_(torch.diag(torch.tensor([3.0, 3.0, 1.0])))
    radius_C = 3 * source.frequencies_C2.square().sum(dim=1).sqrt()
    silent_C = source(w_BW).abs().amax(dim=(0, 2, 3)) == 0
    assert torch.equal(silent_C, radius_C >= source.side / 2)
    assert 0 < silent_C.sum() < 16
    assert source.frequencies_C2.square().sum(dim=1).sqrt().max() <= source.bandwidth


# ---- phases and growing


LARGE = replace(TINY, resolution=128, channel_base=1024)


def test_what_learns_in_each_phase() -> None:
    network = build(LARGE)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [names[id(p)] for p in network.trainable("all")] == list(names.values())
    assert network.trainable("text_encoder") == []
    chosen = {names[id(p)] for p in network.trainable("freeze64")}
    expected = {name for name in names.values() if name.startswith("blocks.128.") or ".to_rgb." in name}
    assert chosen == expected
    assert len({name for name in chosen if name.startswith("blocks.8.")}) == 4  # weight, bias, two of the style
    with pytest.raises(InputError, match="freeze64 was asked of a network of 16 pixels, expected more than 64"):
        build().trainable("freeze64")


def test_freeze64_moves_nothing_else() -> None:
    network, (latent_BZ, condition_BP) = build(LARGE), inputs(2)
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    network.requires_grad_(False)
    learning = network.trainable("freeze64")
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learning, lr=0.01)
    network(latent_BZ, condition_BP)[0].square().mean().backward()
    optimizer.step()
    moved = {name for name, tensor in network.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("blocks.128.") or ".to_rgb." in name}


def test_growing_keeps_what_was_learnt() -> None:
    smaller, larger = build(), build(replace(TINY, resolution=64, channel_base=512), seed=2)
    with torch.no_grad():
        smaller.mapping.average_W.fill_(0.5)
    fresh = {name: tensor.clone() for name, tensor in larger.state_dict().items()}
    larger.grow_from(smaller.state_dict())
    for name, tensor in larger.state_dict().items():
        source = smaller.state_dict().get(name, fresh[name])
        assert torch.equal(tensor, source), name
    latent_BZ, condition_BP = inputs(2)
    w_BSW = larger.styles(latent_BZ, condition_BP)
    assert torch.equal(w_BSW[:, : smaller.slots], smaller.styles(latent_BZ, condition_BP))
    x_BCHW, raw_B3HW, first = None, None, 0
    for side in ("8", "16"):
        block = larger.blocks[side]
        assert isinstance(block, Block)
        last = first + block.convolutions
        x_BCHW, raw_B3HW = block(x_BCHW, raw_B3HW, w_BSW[:, first : last + 1], "const")
        first = last
    assert raw_B3HW is not None
    assert torch.equal(raw_B3HW, smaller.synthesis(w_BSW[:, : smaller.slots], "const"))


def test_growing_refuses_what_does_not_fit() -> None:
    larger = build(replace(TINY, resolution=32, channel_base=256))
    state = build().state_dict()
    with pytest.raises(InputError, match=r"the smaller network has blocks\.8\.skip, which the larger one lacks"):
        larger.grow_from(state | {"blocks.8.skip": torch.zeros(1)})
    with pytest.raises(InputError, match=r"the smaller network lacks blocks\.8\.first\.weight"):
        larger.grow_from({name: tensor for name, tensor in state.items() if name != "blocks.8.first.weight"})
    with pytest.raises(InputError, match=r"the smaller network lacks mapping"):
        larger.grow_from({name: tensor for name, tensor in state.items() if name.startswith("blocks")})
    with pytest.raises(InputError, match=r"has shape .* in the smaller network and .* in the larger one"):
        larger.grow_from(build(replace(TINY, channel_max=4)).state_dict())
    with pytest.raises(InputError, match=r"the smaller network has blocks\.32\..*, which the larger one lacks"):
        build().grow_from(larger.state_dict())
    bare = build(replace(TINY, resolution=32, channel_base=256, architecture="orig"))
    with pytest.raises(InputError, match=r"has blocks\.16\.to_rgb\..*, which the larger one lacks: .* an RGB layer at"):
        bare.grow_from(build(replace(TINY, architecture="orig")).state_dict())
