"""StyleNAT, its attention, its discriminator, losses and augmentation against numbers of the official code."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.generators.gan.augment.diffaugment import AugmentDraws
from star.generators.gan.consistency import augment, consistency_loss
from star.generators.gan.discriminators.wavelet import WaveletConfig, WaveletDiscriminator, haar
from star.generators.gan.layers import downsample, fir_kernel, upsample
from star.generators.gan.losses import logistic_discriminator, logistic_generator, r1_penalty
from star.generators.stylenat.convert import AVERAGE, config_of
from star.generators.stylenat.layers import Block
from star.generators.stylenat.model import StyleNatNetwork
from star.generators.stylenat.names import discriminator_keys, rename
from star.generators.stylenat.neighborhood import partitioned_attention, split_heads, window_logits
from tests.golden.generator_cases import GanCase, gan_cases

GENERATORS = gan_cases("StyleNAT generator")
ATTENTIONS = gan_cases("StyleNAT head-partitioned neighbourhood attention")
DISCRIMINATORS = gan_cases("StyleNAT discriminator")
LOSSES = gan_cases("StyleNAT losses")
RESAMPLERS = gan_cases("StyleNAT resamplers")


def generator_of(case: GanCase, state: dict[str, Tensor]) -> StyleNatNetwork:
    shapes, told = {key: tuple(tensor.shape) for key, tensor in state.items()}, case.json["generator"]
    network = StyleNatNetwork(config_of(shapes, told["dilations"], case.name, told))
    network.load_state_dict(rename(state) | {AVERAGE: case["in.w_mean"]}, strict=True)
    return network.eval()


@torch.no_grad()
def compare_images(case: GanCase, network: StyleNatNetwork) -> None:
    latent_BZ, told = case["in.z"], case.json
    w_BSW = network.styles(latent_BZ)
    assert w_BSW.shape[1] == told["n_latent"]
    case.compare(w_BSW[:, 0], "out.w")
    case.compare(network.synthesis(w_BSW), "out.image")
    shortened_BSW = network.styles(latent_BZ, truncation=told["truncation_psi"])
    case.compare(network.synthesis(shortened_BSW), "out.image_trunc")
    mixed_BSW = torch.cat([w_BSW[:, : told["mix_cutoff"]], w_BSW.flip(0)[:, told["mix_cutoff"] :]], dim=1)
    case.compare(network.synthesis(mixed_BSW), "out.image_mix")


@pytest.mark.parametrize("path", GENERATORS)
def test_generator_draws_the_same(path: Path) -> None:
    case = GanCase(path)
    network = generator_of(case, case.state())
    assert network.resolution == (case.json["size"],) * 2
    assert list(network.config.heads) == case.json["num_heads"]
    compare_images(case, network)


def block_of(network: StyleNatNetwork, name: str) -> Block:
    """By its released name, as in "layers.3.blocks.0.attn (...)"."""
    found = re.match(r"layers\.(\d+)\.blocks\.(\d+)", name)
    assert found is not None
    block = network.levels[int(found[1])].blocks[int(found[2])]  # type: ignore[index]
    assert isinstance(block, Block)
    return block


@torch.no_grad()
@pytest.mark.parametrize("path", GENERATORS)
def test_layers_give_the_same(path: Path) -> None:
    """One attention layer, one block, and the maps between the levels, each with its row-major places in a row."""
    case = GanCase(path)
    network = generator_of(case, case.state())
    attention = block_of(network, case.json["attn_tap"]).attention
    case.compare(attention(case["attn.in.x"]), "attn.out")
    x_BnC = case["block.in.x"]
    side = round(x_BnC.shape[1] ** 0.5)
    block = block_of(network, case.json["block_tap"])
    case.compare(block(x_BnC.unflatten(1, (side, side)), case["block.in.w"]).flatten(1, 2), "block.out")
    maps: dict[str, Tensor] = {}
    for i, level in enumerate(network.levels):
        level.register_forward_hook(lambda _, __, out, i=i: maps.update({f"out.layer{i}": out[0]}))
        for j, part in enumerate(level.blocks):  # type: ignore[arg-type]
            part.register_forward_hook(lambda _, __, out, i=i, j=j: maps.update({f"out.layer{i}.block{j}": out}))
    network.synthesis(network.styles(case["in.z"]))
    expected = [key for key in case.tensors if key.startswith("out.layer")]
    assert expected
    for key in expected:
        case.compare(maps[key].flatten(1, 2), key)


@pytest.mark.parametrize("path", GENERATORS)
@pytest.mark.parametrize("changed", ["style.1.bias", "rpb", "rpb.0", "fc2.bias", "alpha", "norm1.style.bias"])
def test_a_changed_weight_is_noticed(path: Path, changed: str) -> None:
    case = GanCase(path)
    state = case.state()
    name = next(key for key in state if key.endswith((changed, changed.replace(".0", "0"))))
    change = torch.zeros_like(state[name])
    change.view(-1)[change.numel() // 2] = 0.1 if changed[0] in "fan" else 10.0  # what acts weakly changes more
    network = generator_of(case, state | {name: state[name] + change})
    with pytest.raises(AssertionError, match="largest gap"):
        compare_images(case, network)


def tables_of(case: GanCase) -> list[Tensor]:
    return [case[f"in.rpb.{i}"] for i in range(len(case.json["kernel_sizes"]))]


def compare_attention(case: GanCase, tables: list[Tensor], backend: str) -> None:
    told = case.json
    kernels, dilations, scale = told["kernel_sizes"], told["dilations"], told["scale"]
    query, key, value = (case[f"in.{name}"] for name in "qkv")
    counts = split_heads(query.shape[1], len(tables))
    assert list(counts) == told["heads_per_partition"] == [len(table) for table in tables]
    first = 0
    for i, table in enumerate(tables):
        some = slice(first, first + len(table))
        logits = window_logits(query[:, some], key[:, some], kernels[i], dilations[i], table, scale)
        case.compare(logits, f"mid.logits.{i}")
        first = some.stop
    output_BNHWE = partitioned_attention(
        query, key, value, kernels=kernels, dilations=dilations, tables=tables, scale=scale, backend=backend
    )
    case.compare(output_BNHWE, "out.o")
    case.compare(output_BNHWE.permute(0, 2, 3, 1, 4).flatten(3), "out.nhwc")


@pytest.mark.parametrize("backend", ["tiled", "gather", "dense"])
@pytest.mark.parametrize("path", ATTENTIONS)
def test_attention_is_the_same(path: Path, backend: str) -> None:
    case = GanCase(path)
    compare_attention(case, tables_of(case), backend)


@pytest.mark.parametrize("path", ATTENTIONS)
def test_a_changed_bias_is_noticed(path: Path) -> None:
    case = GanCase(path)
    tables = tables_of(case)
    tables[-1][0, 0, 0] += 0.01
    with pytest.raises(AssertionError, match="largest gap"):
        compare_attention(case, tables, "tiled")


def discriminator_of(case: GanCase, state: dict[str, Tensor]) -> WaveletDiscriminator:
    told = case.json
    channels = {int(side): count for side, count in told["channels"].items()}
    sides = [told["size"] >> i for i in range(2, told["size"].bit_length() - 2)]  # that a stage leaves with
    widths = (channels[told["size"]], *(channels[side] for side in sides))
    discriminator = WaveletDiscriminator(WaveletConfig(widths=widths, spectral=told["sn"], group=told["stddev_group"]))
    assert discriminator.config.resolution == told["size"]
    discriminator.load_state_dict(rename(state, discriminator_keys), strict=True)
    return discriminator


def compare_logits(case: GanCase, discriminator: WaveletDiscriminator) -> None:
    image_B3HW = case["in.image"].requires_grad_()
    logits = discriminator.eval()(image_B3HW)
    case.compare(logits, "out.logits")
    case.compare(r1_penalty(logits, image_B3HW).mean()[None], "out.r1_penalty")
    (gradient_B3HW,) = torch.autograd.grad(logits.sum(), image_B3HW)
    case.compare(gradient_B3HW, "out.grad")
    if "out.logits_train" in case:
        with torch.no_grad():
            case.compare(discriminator.train()(image_B3HW), "out.logits_train")
        moved = case.state("sd_after.")
        keys = discriminator_keys([*case.state(), *moved])
        assert moved
        for key in moved:
            case.compare(discriminator.state_dict()[str(keys[key])], f"sd_after.{key}")


@pytest.mark.parametrize("path", DISCRIMINATORS)
def test_discriminator_judges_the_same(path: Path) -> None:
    case = GanCase(path)
    assert case.json["stddev_feat"] == 1
    compare_logits(case, discriminator_of(case, case.state()))


@pytest.mark.parametrize("path", DISCRIMINATORS)
@pytest.mark.parametrize("changed", ["from_rgbs.1.conv.1.bias", "convs.0.conv2.2.bias", "final_linear.0.bias"])
def test_a_changed_weight_of_the_discriminator_is_noticed(path: Path, changed: str) -> None:
    case = GanCase(path)
    state = case.state()
    change = torch.zeros_like(state[changed])
    change[0] = 0.5
    with pytest.raises(AssertionError, match="largest gap"):
        compare_logits(case, discriminator_of(case, state | {changed: state[changed] + change}))


@pytest.mark.parametrize("path", RESAMPLERS)
def test_resampling_is_the_same(path: Path) -> None:
    """The inverse of the wavelets is the identity on them, which is why ours keeps the picture instead."""
    case = GanCase(path)
    image_B3HW = case["in.x"]
    torch.testing.assert_close(case["kernel.up"], 4 * fir_kernel())
    case.compare(upsample(image_B3HW, fir_kernel()), "out.upsample")
    case.compare(downsample(image_B3HW, fir_kernel()), "out.downsample")
    case.compare(haar(image_B3HW), "out.haar")
    case.compare(image_B3HW, "out.ihaar_of_haar")
    with pytest.raises(AssertionError, match="largest gap"):
        case.compare(haar(image_B3HW + 0.001), "out.haar")


@pytest.mark.parametrize("path", LOSSES)
def test_losses_are_the_same(path: Path) -> None:
    case = GanCase(path)
    real, fake = case["in.real"], case["in.fake"]
    case.compare(logistic_generator(fake), "out.g_nonsat")
    judged = logistic_discriminator(real, fake)
    case.compare(judged, "out.d_logistic")
    augmented = iter([case["in.real_aug"], case["in.fake_aug"]])
    seen = [(torch.zeros(len(real), 3, 8, 8), real), (torch.zeros(len(fake), 3, 8, 8), fake)]
    consistency = case.json["bcr_lambda"] * consistency_loss(lambda _: next(augmented), seen)
    case.compare(consistency, "out.bcr")
    case.compare(judged + consistency, "out.d_total")


def augmented(case: GanCase) -> Tensor:
    """By the case's own draws. Their shifts tell where a pixel comes from, ours where it goes."""
    draws = AugmentDraws(
        brightness_B=case["crda.brightness_u"],
        saturation_B=case["crda.saturation_u"],
        contrast_B=case["crda.contrast_u"],
        shift_down_B=-case["crda.translation_rows"].long(),
        shift_right_B=-case["crda.translation_cols"].long(),
        hole_row_B=case["crda.cutout_rows"].long(),
        hole_column_B=case["crda.cutout_cols"].long(),
    )
    return augment(case["crda.in"], case["crda.flip_u"] < 0.5, draws)


@pytest.mark.parametrize("path", LOSSES)
def test_augmentation_is_the_same(path: Path) -> None:
    case = GanCase(path)
    case.compare(augmented(case), "crda.out")
    assert float((case["crda.out"] == 0).float().mean()) > 0.05  # the hole
    case.tensors["crda.brightness_u"][0] += 0.001
    with pytest.raises(AssertionError, match="largest gap"):
        case.compare(augmented(case), "crda.out")
