"""StyleGAN-T equals the released code on its golden numbers: networks, their layers, losses, blur, augmentation.

Everything is built from what a case says of itself, so any other case of these kinds is compared too.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from star.generators.gan.augment.diffaugment import AugmentDraws, augment
from star.generators.gan.backbones import Preprocessing
from star.generators.gan.clip_guidance import blur, blur_sigma, squared_angles
from star.generators.gan.discriminators.projected import FrozenFeatures, Head, ProjectedConfig, ProjectedDiscriminator
from star.generators.gan.losses import hinge_fake, hinge_generator, hinge_real
from star.generators.stylegan_t.layers import Block
from star.generators.stylegan_t.model import StyleGanT
from star.generators.stylegan_t.names import config_of_arguments, rename_discriminator, rename_generator, rename_head
from tests.golden.generator_cases import GanCase, gan_cases

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
POLICY = "color,translation,cutout"


# ---- generator


def network_of(case: GanCase, state: dict[str, Tensor]) -> StyleGanT:
    about = case.json
    config = config_of_arguments(
        about["img_resolution"], about["z_dim"], about["c_dim"], about["synthesis_kwargs"], case.name
    )
    network = StyleGanT(config).eval()
    network.load_state_dict(rename_generator(state))
    return network


def compare_generator(case: GanCase, state: dict[str, Tensor]) -> None:
    about, network = case.json, network_of(case, state)
    latent, condition = case["in.z"], case.tensors.get("in.c")
    noise, cutoff = about["noise_mode"], about["mix_cutoff"]
    assert network.slots == about["num_ws"]
    w_BSW = network.styles(latent, condition)
    shortened_BSW = network.styles(latent, condition, truncation=about["truncation_psi"])
    assert torch.equal(w_BSW, w_BSW[:, :1].expand_as(w_BSW))
    case.compare(w_BSW[:, 0], "out.w")
    case.compare(shortened_BSW[:, 0], "out.w_trunc")
    case.compare(network.synthesis(w_BSW, noise), "out.image")
    case.compare(network.synthesis(shortened_BSW, noise), "out.image_trunc")
    case.compare(network.synthesis(w_BSW, "none"), "out.image_noise_none")
    # From the cutoff on, the styles of the batch in reverse order.
    mixed_BSW = torch.cat([w_BSW[:, :cutoff], w_BSW.flip(0)[:, cutoff:]], dim=1)
    case.compare(network.synthesis(mixed_BSW, noise), "out.image_mix")


def compare_layers(case: GanCase, state: dict[str, Tensor]) -> None:
    network, noise = network_of(case, state), case.json["noise_mode"]
    first = block_of(network, "b8")
    case.compare(first.first(case["out.w"]), "out.synthesis_input")

    name, plain, residual = tapped_layers(case)
    layers = block_of(network, name).layers
    case.compare(layers[plain](case["layer.plain.in"], case["out.w"], noise), "layer.plain.out")
    case.compare(layers[residual](case["layer.plain.out"], case["out.w"], noise), "layer.res.out")

    block = block_of(network, case.json["block_tap"].removeprefix("synthesis."))
    x = case.tensors.get("block.in.x")
    picture = case.tensors.get("block.in.img")
    x, picture = block(x, picture, case["block.in.ws"], noise)
    case.compare(x, "block.out.x")
    if "block.out.img" in case:
        assert picture is not None
        case.compare(picture, "block.out.img")


def tapped_layers(case: GanCase) -> tuple[str, int, int]:
    """Block, plain and residual convolution whose input and output a case holds, from its notes."""
    notes = case.json["notes"]
    plain = re.search(r"(b\d+)\.convs1\.(\d+)", notes["layer.plain"])
    residual = re.match(r"convs1\.(\d+), input = layer.plain.out", notes["layer.res"])
    assert plain is not None
    assert residual is not None
    return plain[1], int(plain[2]), int(residual[1])


def block_of(network: StyleGanT, name: str) -> Block:
    block = network.blocks[name.removeprefix("b")]
    assert isinstance(block, Block)
    return block


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T generator"))
@torch.no_grad()
def test_generator(path: Path) -> None:
    case = GanCase(path)
    compare_generator(case, case.state())


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T generator"))
@torch.no_grad()
def test_generator_layers(path: Path) -> None:
    case = GanCase(path)
    compare_layers(case, case.state())


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T generator"))
@torch.no_grad()
def test_generator_tracks_its_mean(path: Path) -> None:
    case = GanCase(path)
    network = network_of(case, case.state()).train()
    network(case["in.z"], case.tensors.get("in.c"))
    case.compare(network.mapping.average_W, "out.x_avg_after_train_forward")


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T generator"))
@torch.no_grad()
def test_a_changed_generator_fails(path: Path) -> None:
    case, state = GanCase(path), GanCase(path).state()
    state["synthesis.b8.convs1.0.weight"][0, 0, 1, 1] += 1e-2
    with pytest.raises(AssertionError, match=r"out\.image: largest gap"):
        compare_generator(case, state)
    (block, _, residual), state = tapped_layers(case), case.state()
    state[f"synthesis.{block}.convs1.{residual}.gamma"][0, 0] += 1e-2
    with pytest.raises(AssertionError, match=r"layer\.res\.out: largest gap"):
        compare_layers(case, state)


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T generator"))
def test_foreign_keys_are_refused(path: Path) -> None:
    state = GanCase(path).state()
    for foreign in (
        "synthesis.b8.convs1.0.gamma",
        "synthesis.b8.conv0.skip.weight",
        "mapping.embed.weight",
        "b8.torgb",
    ):
        with pytest.raises(ValueError, match=f"'{foreign}' is not a tensor of the released StyleGAN-T"):
            rename_generator(state | {foreign: torch.zeros(1)})


# ---- discriminator


def head_of(case: GanCase, state: dict[str, Tensor]) -> Head:
    about = case.json
    config = ProjectedConfig(
        condition_width=about["c_dim"], projection=about["cmap_dim"], group=about["virtual_bs"], augment=""
    )
    head = Head(about["channels"], config).eval()
    head.load_state_dict(rename_head(state))
    return head


def compare_head(case: GanCase, state: dict[str, Tensor]) -> None:
    head, features = head_of(case, state), case["in.features"]
    condition = case.tensors.get("in.c")
    assert features.shape[2] == case.json["tokens"]
    case.compare(head(features, condition).unsqueeze(1), "out.logits_eval")
    head.train()
    case.compare(head(features, condition).unsqueeze(1), "out.logits_train")
    after = head.state_dict()
    for released in case.state("sd_after."):
        (ours,) = rename_head({released: torch.empty(0)})
        case.compare(after[ours], f"sd_after.{released}")


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T DiscHead"))
@torch.no_grad()
def test_head(path: Path) -> None:
    case = GanCase(path)
    compare_head(case, case.state())


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T DiscHead"))
@torch.no_grad()
def test_a_changed_head_fails(path: Path) -> None:
    case, state = GanCase(path), GanCase(path).state()
    state["main.1.fn.1.weight"][0] += 1e-2
    with pytest.raises(AssertionError, match=r"logits_eval: largest gap"):
        compare_head(case, state)
    with pytest.raises(ValueError, match=r"'main\.2\.bias' is not a tensor of the released StyleGAN-T"):
        rename_head({"main.2.bias": torch.zeros(1)})


def transformers_vit(case: GanCase) -> ViTModel:
    """The case's tower, whose keys are those of timm, as transformers knows it."""
    about, prefix = case.json["vit"], "dino.model.model."
    assert about["act"] == "exact gelu"
    state = {key.removeprefix(prefix): t for key, t in case.state().items() if key.startswith(prefix)}
    renamed: dict[str, Tensor] = {}
    names = (
        (r"cls_token", "embeddings.cls_token"),
        (r"pos_embed", "embeddings.position_embeddings"),
        (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.o_proj."),
        (r"blocks\.(\d+)\.norm1\.", r"layers.\1.layernorm_before."),
        (r"blocks\.(\d+)\.norm2\.", r"layers.\1.layernorm_after."),
        (r"blocks\.(\d+)\.mlp\.", r"layers.\1.mlp."),
        (r"^norm\.", "layernorm."),
    )
    for key, tensor in state.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"layers.{match[1]}.attention.{letter}_proj.{match[2]}"] = part
            continue
        for timm, ours in names:
            key = re.sub(timm, ours, key)
        renamed[key] = tensor
    config = ViTConfig(
        hidden_size=about["dim"],
        num_hidden_layers=about["depth"],
        num_attention_heads=about["heads"],
        intermediate_size=int(about["dim"] * about["mlp_ratio"]),
        hidden_act="gelu",
        image_size=about["img_size"],
        patch_size=about["patch"],
        layer_norm_eps=about["ln_eps"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tower = ViTModel(config, add_pooling_layer=False)
    tower.load_state_dict(renamed)
    return tower


def discriminator_of(case: GanCase, state: dict[str, Tensor]) -> ProjectedDiscriminator:
    about = case.json
    assert not about["diffaug"], f"{case.name} has random augmentations, which its numbers cannot be compared under"
    assert not about["p_crop"]
    config = ProjectedConfig(
        taps=tuple(about["hooks"]),
        patches=about["hook_patch"],
        condition_width=about["c_dim"],
        projection=about.get("cmap_dim", 64),
        augment="",
        crop=0.0,
    )
    features = FrozenFeatures(transformers_vit(case), Preprocessing(about["vit"]["img_size"], *IMAGENET))
    discriminator = ProjectedDiscriminator(config, features).eval()
    discriminator.heads.load_state_dict(
        {key.removeprefix("heads."): tensor for key, tensor in rename_discriminator(state).items()}
    )
    return discriminator


def compare_discriminator(case: GanCase, state: dict[str, Tensor]) -> None:
    discriminator, config = discriminator_of(case, state), discriminator_of(case, state).config
    image = case["in.image"].requires_grad_(True)
    features = discriminator.features(image, config.taps, config.patches)
    for k, feature in enumerate(features):
        case.compare(feature, f"out.features.{k}")
    logits = discriminator(image, case.tensors.get("in.c"))
    case.compare(logits, "out.logits")
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    case.compare(gradient, "out.grad_sum_logits")


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T ProjectedDiscriminator"))
def test_discriminator(path: Path) -> None:
    case = GanCase(path)
    compare_discriminator(case, case.state())


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T ProjectedDiscriminator"))
def test_a_changed_discriminator_fails(path: Path) -> None:
    case, state = GanCase(path), GanCase(path).state()
    name = next(key for key in state if key.endswith("cmapper.weight") or key.endswith("cls.bias"))
    state[name] += 1e-2
    with pytest.raises(AssertionError, match=r"out\.logits: largest gap"):
        compare_discriminator(case, state)
    with pytest.raises(ValueError, match=r"'head\.0\.cls\.bias' is not a tensor"):
        rename_discriminator({"head.0.cls.bias": torch.zeros(1)})


# ---- losses, blur, augmentation


def draws_of(case: GanCase) -> AugmentDraws:
    return AugmentDraws(
        brightness_B=case["diffaug.brightness_u"],
        saturation_B=case["diffaug.saturation_u"],
        contrast_B=case["diffaug.contrast_u"],
        # The released numbers say which pixel is read; ours, where a pixel goes.
        shift_down_B=-case["diffaug.translation_rows"].long(),
        shift_right_B=-case["diffaug.translation_cols"].long(),
        hole_row_B=case["diffaug.cutout_rows"].long(),
        hole_column_B=case["diffaug.cutout_cols"].long(),
    )


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T losses"))
def test_losses(path: Path) -> None:
    case = GanCase(path)
    pictures = case.json["batch_gpu"]
    case.compare(hinge_fake(case["in.fake_logits"], pictures), "out.loss_D_fake")
    case.compare(hinge_real(case["in.real_logits"], pictures), "out.loss_D_real")
    case.compare(hinge_generator(case["in.fake_logits"], pictures), "out.loss_G")
    angles_B = squared_angles(case["in.img_feat"], case["in.txt_feat"])
    case.compare(angles_B, "out.spherical")
    case.compare(angles_B.mean(), "out.clip_loss")
    with pytest.raises(AssertionError, match="largest gap"):
        case.compare(hinge_fake(case["in.fake_logits"]), "out.loss_D_fake")


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T losses"))
def test_blur(path: Path) -> None:
    case = GanCase(path)
    sigmas = [key.removeprefix("out.blur_sigma_") for key in case.tensors if key.startswith("out.blur_sigma_")]
    assert sigmas
    for sigma in sigmas:
        case.compare(blur(case["in.image"], float(sigma)), f"out.blur_sigma_{sigma}")
        if float(sigma) * 3 >= 1:
            with pytest.raises(AssertionError, match="largest gap"):
                case.compare(blur(case["in.image"], 1.1 * float(sigma)), f"out.blur_sigma_{sigma}")
    schedules = [key for key in case.json if key.startswith("blur_schedule_")]
    assert schedules
    for key in schedules:
        match = re.fullmatch(r"blur_schedule_init(\d+)_fade(\d+)kimg", key)
        assert match is not None
        for seen, sigma in case.json[key].items():
            ours = blur_sigma(int(seen), start=float(match[1]), fade_images=1000 * int(match[2]))
            assert ours == pytest.approx(sigma, abs=1e-12)


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T losses"))
def test_augmentation(path: Path) -> None:
    case = GanCase(path)
    case.compare(augment(case["diffaug.in"], POLICY, draws_of(case)), "diffaug.out")
    for less in ("color,translation", "translation,cutout", "color,cutout"):
        with pytest.raises(AssertionError, match="largest gap"):
            case.compare(augment(case["diffaug.in"], less, draws_of(case)), "diffaug.out")
