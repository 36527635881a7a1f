"""Styleformer, its discriminator and its augmentation against numbers of the official code."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.generators.gan.augment.ada import AdaptiveAugment
from star.generators.gan.augment.ada_images import low_pass
from star.generators.gan.discriminators.stylegan2 import StyleGan2Discriminator, StyleGan2DiscriminatorConfig
from star.generators.gan.losses import PathLength, path_lengths, r1_penalty
from star.generators.styleformer.convert import config_of
from star.generators.styleformer.layers import Block, StyleAttention
from star.generators.styleformer.model import Styleformer
from star.generators.styleformer.names import discriminator_keys, layers_of, rename
from tests.golden.generator_cases import GanCase, gan_cases

GENERATORS = gan_cases("Styleformer generator")
DISCRIMINATORS = gan_cases("Styleformer discriminator")


def with_aliases(case: GanCase) -> dict[str, Tensor]:
    """The official state dict with the second copies that the file leaves out."""
    state = case.state()
    return state | {name: state[other] for name, other in case.json["aliased_state_dict_keys"].items()}


def generator_of(case: GanCase, state: dict[str, Tensor]) -> Styleformer:
    network = Styleformer(config_of({key: tuple(tensor.shape) for key, tensor in state.items()}, case.json))
    network.load_state_dict(rename(state), strict=True)
    return network.eval()


def condition_of(case: GanCase) -> Tensor | None:
    return case.tensors.get("in.c")


@torch.no_grad()
def compare_images(case: GanCase, network: Styleformer) -> None:
    latent_BZ, condition_BP, told = case["in.z"], condition_of(case), case.json
    w_BSW = network.styles(latent_BZ, condition_BP)
    assert w_BSW.shape[1] == told["num_ws"]
    case.compare(w_BSW[:, 0], "out.w")
    case.compare(network.synthesis(w_BSW, "const"), "out.image")
    case.compare(network.synthesis(w_BSW, "none"), "out.image_noise_none")
    psi, cutoff, first = told["truncation_psi"], told["truncation_cutoff"], told["mix_cutoff"]
    shortened_BSW = network.styles(latent_BZ, condition_BP, truncation=psi)
    case.compare(shortened_BSW[:, -1], "out.w_trunc")
    case.compare(network.synthesis(shortened_BSW, "const"), "out.image_trunc")
    partly_BSW = network.styles(latent_BZ, condition_BP, truncation=psi, cutoff=cutoff)
    case.compare(network.synthesis(partly_BSW, "const"), "out.image_trunc_cutoff")
    mixed_BSW = torch.cat([w_BSW[:, :first], w_BSW.flip(0)[:, first:]], dim=1)
    case.compare(network.synthesis(mixed_BSW, "const"), "out.image_mix")


@pytest.mark.parametrize("path", GENERATORS)
def test_generator_draws_the_same(path: Path) -> None:
    case = GanCase(path)
    network = generator_of(case, with_aliases(case))
    assert network.resolution == (case.json["img_resolution"],) * 2
    compare_images(case, network)


@torch.no_grad()
@pytest.mark.parametrize("path", GENERATORS)
def test_layers_give_the_same(path: Path) -> None:
    """One attention layer alone, and one block with positions, picture and growth."""
    case = GanCase(path)
    network = generator_of(case, case.state())
    layers = layers_of(case.state())
    heads = [layer.heads for layer in network.modules() if isinstance(layer, StyleAttention)]
    assert heads == [case.json["num_heads"][f"b{side}_{j}"] for side, j in layers]
    side, j = case.json["block_tap"].removeprefix("synthesis.b").split("_")
    block = network.blocks[layers.index((int(side), int(j)))]
    assert isinstance(block, Block)
    case.compare(block.attention(case["enc.in.x"], case["enc.in.w"], "const"), "enc.out")
    own_BSW = case["block.in.ws"]
    start = network.constant_nC.expand(len(own_BSW), -1, -1)
    x_BnC = case.tensors.get("block.in.x", start)
    raw_B3HW = case.tensors.get("block.in.img")
    x_BnC, raw_B3HW = block(x_BnC, raw_B3HW, own_BSW[:, 0], own_BSW[:, -1], "const")
    case.compare(x_BnC, "block.out.x")
    assert (raw_B3HW is not None) == ("block.out.img" in case)
    if raw_B3HW is not None:
        case.compare(raw_B3HW, "block.out.img")


@pytest.mark.parametrize("path", GENERATORS)
def test_path_length_is_the_same(path: Path) -> None:
    case = GanCase(path)
    network = generator_of(case, case.state()).requires_grad_(False)
    w_BSW = case["out.w"][:, None].repeat(1, network.slots, 1).requires_grad_()
    raw_B3HW = network.synthesis(w_BSW, "const")
    noise_B3HW = case["pl.in.noise"]
    found_B, expected_B = path_lengths(raw_B3HW, w_BSW, noise_B3HW), case["pl.out.lengths"]
    # Not the case's 1e-4: where a leaky ReLU's input is zero but for rounding, the processor decides its slope. On one
    # with AMX this gave 0.73973 for 0.74007, in float64 too.
    torch.testing.assert_close(found_B.detach(), expected_B, rtol=1e-3, atol=1e-4)
    penalty = PathLength(decay=0.01)(raw_B3HW, w_BSW, noise_B3HW)
    torch.testing.assert_close(penalty.detach(), case["pl.out.penalty"], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("path", GENERATORS)
@pytest.mark.parametrize("changed", ["mapping.fc0.bias", "enc.q_weight", "enc.noise_const", "torgb.weight"])
def test_a_changed_weight_is_noticed(path: Path, changed: str) -> None:
    case = GanCase(path)
    state = case.state()
    name = next(key for key in state if key.endswith(changed))
    change = torch.zeros_like(state[name])
    change.view(-1)[0] = 10.0 if "mapping" in name else 0.1  # the mapping's are used at a hundredth
    network = generator_of(case, state | {name: state[name] + change})
    with pytest.raises(AssertionError, match="largest gap"):
        compare_images(case, network)


def discriminator_of(case: GanCase, state: dict[str, Tensor]) -> StyleGan2Discriminator:
    told = case.json
    discriminator = StyleGan2Discriminator(
        StyleGan2DiscriminatorConfig(
            resolution=told["img_resolution"],
            condition_width=told["c_dim"],
            architecture=told["architecture"],
            channel_base=told["channel_base"],
            channel_max=told["channel_max"],
            group=told["mbstd_group_size"],
            group_channels=told["mbstd_num_channels"],
            mapping_layers=sum(key.startswith("mapping.fc") and key.endswith("weight") for key in state) or 8,
            clamp=told["conv_clamp"],
        )
    )
    discriminator.load_state_dict(rename(state, discriminator_keys), strict=True)
    return discriminator


def compare_logits(case: GanCase, discriminator: StyleGan2Discriminator) -> None:
    image_B3HW = case["in.image"].requires_grad_()
    logits = discriminator(image_B3HW, condition_of(case))
    case.compare(logits, "out.logits")
    case.compare(F.softplus(logits), "out.softplus_pos")
    case.compare(F.softplus(-logits), "out.softplus_neg")
    case.compare(r1_penalty(logits, image_B3HW), "out.r1_per_sample")


@pytest.mark.parametrize("path", DISCRIMINATORS)
def test_discriminator_judges_the_same(path: Path) -> None:
    case = GanCase(path)
    compare_logits(case, discriminator_of(case, case.state()))


@pytest.mark.parametrize("path", DISCRIMINATORS)
@pytest.mark.parametrize("changed", [".conv0.weight", ".fromrgb.bias", "b4.out.bias"])
def test_a_changed_weight_of_the_discriminator_is_noticed(path: Path, changed: str) -> None:
    case = GanCase(path)
    state = case.state()
    name = next(key for key in state if key.endswith(changed))
    change = torch.zeros_like(state[name])
    change.view(-1)[0] = 0.5
    with pytest.raises(AssertionError, match="largest gap"):
        compare_logits(case, discriminator_of(case, state | {name: state[name] + change}))


def compare_augmented(case: GanCase, key: str) -> None:
    """out.NAME_pctQ is what operation NAME alone, or all of the case, makes of the picture at the quantile Q."""
    name, _, quantile = key.removeprefix("out.").rpartition("_pct")
    on = [operation for operation, strength in case.json["spec"].items() if strength]
    augment = AdaptiveAugment(on if name == "all" else [name], probability=float(case["sd.p"]))
    case.compare(augment(case["in.image"], quantile=float(quantile)), key)


@pytest.mark.parametrize("path", gan_cases("Styleformer / StyleGAN2-ADA AugmentPipe"))
def test_augmentation_is_the_same(path: Path) -> None:
    case = GanCase(path)
    outputs = [key for key in case.tensors if key.startswith("out.")]
    assert outputs
    torch.testing.assert_close(low_pass(), case["sd.Hz_geom"])
    for key in outputs:
        compare_augmented(case, key)


@pytest.mark.parametrize("path", gan_cases("Styleformer / StyleGAN2-ADA AugmentPipe"))
def test_another_picture_is_noticed(path: Path) -> None:
    case = GanCase(path)
    case.tensors["in.image"][:, :, 16, 16] += 0.01
    for key in [key for key in case.tensors if key.startswith("out.")]:
        with pytest.raises(AssertionError, match="largest gap"):
            compare_augmented(case, key)
