"""The discriminator on frozen features: what the heads are shown, what stays frozen, the laws of its layers."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    T5Config,
    ViTConfig,
    ViTModel,
)

from star.data.errors import InputError
from star.generators.gan.backbones import Preprocessing, random_crop
from star.generators.gan.discriminators.projected import (
    FrozenFeatures,
    Head,
    ProjectedConfig,
    ProjectedDiscriminator,
    SpectralConv1d,
    VirtualBatchNorm,
)
from star.generators.gan.losses import hinge_discriminator, hinge_generator

GUIDE_EMOJI = Path(__file__).parents[4] / "star" / "weights" / "guide-emoji"
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=16), add_pooling_layer=False),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=16)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)),
}
CONFIG = ProjectedConfig(
    features="", taps=(0, 2), condition_width=5, projection=4, kernel=3, group=2, augment="", crop=0.0
)
MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def backbone_of(kind: str = "vit") -> nn.Module:
    """Three blocks of random weights; transformers starts near zero, where all pictures look alike."""
    torch.manual_seed(0)
    backbone = MAKERS[kind]()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return backbone


def features_of(kind: str = "vit", side: int = 8) -> FrozenFeatures:
    return FrozenFeatures(backbone_of(kind), Preprocessing(side, MEAN, DEVIATION))


def build(config: ProjectedConfig = CONFIG) -> ProjectedDiscriminator:
    features = features_of()
    torch.manual_seed(1)
    return ProjectedDiscriminator(config, features)


def inputs(batch: int = 4, side: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(batch, 3, side, side) * 2 - 1, F.normalize(torch.randn(batch, 5), dim=1)


# ---- features


@pytest.mark.parametrize("kind", MAKERS)
def test_taps_are_the_outputs_of_blocks(kind: str) -> None:
    """As forward hooks see them: raw, with the class token added to each patch, other tokens left out."""
    features, (image_B3HW, _) = features_of(kind), inputs()
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, output: seen.append(output)) for block in features.blocks]
    hooks.append(features.blocks[0].register_forward_pre_hook(lambda _m, arguments: seen.insert(0, arguments[0])))
    found = features(image_B3HW, taps=(2, 0), patches=True)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 4
    tokens = 2 if kind == "registers" else 0
    for feature_BCN, states in zip(found, (seen[3], seen[1], seen[0]), strict=True):
        assert feature_BCN.shape == (4, 8, 4)
        expected = states[:, 1 + tokens :] + states[:, :1]
        assert torch.equal(feature_BCN, expected.transpose(1, 2))
    features.keep(2)
    assert len(features.blocks) == 2
    assert torch.equal(features(image_B3HW, taps=(0,), patches=False)[0], found[1])


@pytest.mark.parametrize("kind", MAKERS)
def test_position_embeddings_are_resized(kind: str) -> None:
    image_B3HW, _ = inputs(side=16)
    (feature_BCN,) = features_of(kind, side=16)(image_B3HW, taps=(1,), patches=False)
    assert feature_BCN.shape == (4, 8, 16)


def test_the_picture_is_averaged_down_and_normed() -> None:
    features, (image_B3HW, _) = features_of(), inputs(side=16)
    averaged = F.avg_pool2d(image_B3HW, 2)
    (patches_BCN,) = features(image_B3HW, taps=(), patches=True)
    torch.testing.assert_close(patches_BCN, features(averaged, taps=(), patches=True)[0])
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, DEVIATION))
    tokens = features.tower.embeddings((averaged * 0.5 + 0.5 - mean) / deviation)  # type: ignore[operator]
    torch.testing.assert_close(patches_BCN, (tokens[:, 1:] + tokens[:, :1]).transpose(1, 2))


def test_features_stay_frozen_and_pass_the_gradient_on() -> None:
    discriminator, (image_B3HW, condition_BP) = build().train(), inputs()
    before = copy.deepcopy(discriminator.features.state_dict())
    assert not any(module.training for module in discriminator.features.modules())
    assert discriminator.heads.training
    discriminator.requires_grad_(False)
    discriminator.requires_grad_(True)
    learning = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
    assert len(learning) == len(list(discriminator.heads.parameters()))
    image_B3HW.requires_grad_(True)
    hinge_generator(discriminator(image_B3HW, condition_BP)).backward()
    assert image_B3HW.grad is not None
    assert bool((image_B3HW.grad.abs().amax(dim=(1, 2, 3)) > 0).all())
    assert all(parameter.grad is None for parameter in discriminator.features.parameters())
    torch.optim.SGD(learning, lr=1.0).step()
    for name, tensor in discriminator.features.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_features_may_be_asked_while_they_are_computed() -> None:
    features, (image_B3HW, _) = features_of(), inputs()
    expected = features(image_B3HW, taps=(0, 1, 2), patches=True)
    inner: list[list[Tensor]] = []

    def ask(_module: nn.Module, _arguments: object) -> None:
        if not inner:
            inner.append([])
            inner[0] = features(-image_B3HW, taps=(0, 1, 2), patches=True)

    hook = features.blocks[1].register_forward_pre_hook(ask)
    found = features(image_B3HW, taps=(0, 1, 2), patches=True)
    hook.remove()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(inner[0], features(-image_B3HW, taps=(0, 1, 2), patches=True), strict=True):
        assert torch.equal(one, other)


# ---- layers of a head


def test_spectral_norm_finds_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    conv = SpectralConv1d(6, 5, kernel=3)
    x_BIN = torch.randn(2, 6, 7)
    for _ in range(100):
        conv(x_BIN)
    largest = torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
    torch.testing.assert_close(conv.norm(), largest, rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(conv.norm(), conv.weight)
    expected = torch.outer(conv.left_O, conv.right_I).reshape(conv.weight.shape)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)
    vectors = conv.left_O.clone(), conv.right_I.clone()
    conv.eval()(x_BIN)
    assert torch.equal(vectors[0], conv.left_O)
    assert torch.equal(vectors[1], conv.right_I)


def test_two_passes_before_one_backward() -> None:
    discriminator, (image_B3HW, condition_BP) = build().train(), inputs()
    one, other = discriminator(image_B3HW, condition_BP), discriminator(-image_B3HW, condition_BP)
    (one.square().mean() + other.square().mean()).backward()
    silent = [name for name, p in discriminator.heads.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a norm is taken out by it; what reaches it is rounding.
    assert not [name for name in silent if not name.endswith("conv.bias")]


def test_virtual_batch_norm() -> None:
    torch.manual_seed(0)
    norm = VirtualBatchNorm(3, group=4)
    x_BCN = torch.randn(8, 3, 5) * 3 + 1
    normed = norm(x_BCN)
    for part in normed.split(4):
        torch.testing.assert_close(part.mean(dim=(0, 2)), torch.zeros(3), rtol=0, atol=1e-6)
        torch.testing.assert_close(part.var(dim=(0, 2), correction=0), torch.ones(3), rtol=1e-4, atol=0)
    assert torch.equal(normed[:4], norm(x_BCN[:4]))  # groups know nothing of each other
    assert not torch.allclose(normed[:1], norm(x_BCN[:1]), atol=1e-2)  # neighbours in a group do
    assert torch.equal(norm.eval()(x_BCN), normed)
    assert norm(x_BCN[:6]).shape == (6, 3, 5)  # two groups of three
    with pytest.raises(ValueError, match="a batch of 5 pictures was given, expected one that splits into 2 equal"):
        norm(x_BCN[:5])


def test_a_head_knows_no_first_patch() -> None:
    """Convolutions run round the row of patches: turning the row turns the logits."""
    torch.manual_seed(0)
    head = Head(8, replace(CONFIG, kernel=5)).eval()
    features_BCN, condition_BP = torch.randn(2, 8, 6), torch.randn(2, 5)
    turned = head(features_BCN.roll(2, dims=2), condition_BP)
    torch.testing.assert_close(turned, head(features_BCN, condition_BP).roll(2, dims=1))


def test_the_text_projects_the_judgement() -> None:
    torch.manual_seed(0)
    head = Head(8, CONFIG).eval()
    features_BCN, one_BP, other_BP = torch.randn(2, 8, 6), torch.randn(2, 5), torch.randn(2, 5)
    halfway = head(features_BCN, (one_BP + other_BP) / 2)
    torch.testing.assert_close(halfway, (head(features_BCN, one_BP) + head(features_BCN, other_BP)) / 2)
    assert not torch.allclose(head(features_BCN, one_BP), head(features_BCN, other_BP))


# ---- the whole


def test_logits_are_those_of_all_heads_in_order() -> None:
    discriminator, (image_B3HW, condition_BP) = build().eval(), inputs()
    logits_BN = discriminator(image_B3HW, condition_BP)
    assert logits_BN.shape == (4, 3 * 4)
    assert logits_BN.dtype == torch.float32
    features = discriminator.features(image_B3HW, (0, 2), True)
    for k, head in enumerate(discriminator.heads):
        assert torch.equal(logits_BN[:, 4 * k : 4 * k + 4], head(features[k], condition_BP))


def test_groups_of_pictures_are_independent() -> None:
    discriminator, (image_B3HW, condition_BP) = build().double().eval(), inputs()
    image_B3HW, condition_BP = image_B3HW.double(), condition_BP.double()
    together = discriminator(image_B3HW, condition_BP)
    torch.testing.assert_close(together[2:], discriminator(image_B3HW[2:], condition_BP[2:]), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together[:1], discriminator(image_B3HW[:1], condition_BP[:1]), atol=1e-3)


def test_the_gradient_of_a_picture() -> None:
    """Of the hinge losses, through heads and backbone, against finite differences in float64."""
    discriminator = build(replace(CONFIG, taps=(1,))).double().eval()
    image_B3HW, condition_BP = (tensor.double() for tensor in inputs(2))
    image_B3HW.requires_grad_(True)

    def loss(image_B3HW: Tensor) -> Tensor:
        logits_BN = discriminator(image_B3HW, condition_BP)
        return hinge_discriminator(logits_BN[:1], logits_BN[1:]) + hinge_generator(logits_BN)

    assert torch.autograd.gradcheck(loss, image_B3HW, fast_mode=True)


def test_crops_and_augmentations_are_drawn_for_each_pass() -> None:
    image_B3HW, condition_BP = inputs(side=12)
    cropping = build(replace(CONFIG, crop=1.0)).eval()
    torch.manual_seed(7)
    logits_BN = cropping(image_B3HW, condition_BP)
    torch.manual_seed(7)
    torch.rand(())
    assert torch.equal(logits_BN, cropping(random_crop(image_B3HW, 8), condition_BP))
    whole = build().eval()(image_B3HW, condition_BP)
    assert not torch.allclose(whole, logits_BN)
    mixed = build(replace(CONFIG, crop=0.5)).eval()
    kinds = {bool(torch.equal(mixed(image_B3HW, condition_BP), whole)) for _ in range(20)}
    assert kinds == {True, False}
    augmenting = build(replace(CONFIG, augment="color,translation,cutout")).eval()
    assert not torch.equal(augmenting(image_B3HW, condition_BP), augmenting(image_B3HW, condition_BP))


def test_without_a_condition() -> None:
    discriminator, (image_B3HW, condition_BP) = build(replace(CONFIG, condition_width=0)), inputs()
    assert discriminator(image_B3HW).shape == (4, 12)
    with pytest.raises(ValueError, match="one without takes none"):
        discriminator(image_B3HW, condition_BP)
    with pytest.raises(ValueError, match="needs a condition"):
        build()(image_B3HW)


def test_heads_learn_to_tell_pictures_and_captions_apart() -> None:
    """Bright pictures are real under one caption, dark ones under the other: neither alone decides."""
    discriminator = build(replace(CONFIG, group=8)).train()
    torch.manual_seed(3)
    shade = torch.tensor([0.5, -0.5, 0.5, -0.5])[:, None, None, None]
    image_B3HW = (torch.randn(4, 3, 8, 8) * 0.1 + shade).clamp(-1, 1)
    caption = torch.eye(5)[:2].repeat(2, 1)
    optimizer = torch.optim.Adam([p for p in discriminator.parameters() if p.requires_grad], lr=0.02)
    for _ in range(30):
        real, fake = discriminator(image_B3HW, caption), discriminator(image_B3HW, caption.flip(0))
        loss = hinge_discriminator(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5  # 2 where nothing is told apart


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": (1, 1)}, r"taps is \(1, 1\), expected different blocks"),
        ({"taps": (-1,)}, r"taps is \(-1,\), expected different blocks"),
        ({"taps": (), "patches": False}, "expected at least one, or patches"),
        ({"kernel": 4}, "kernel is 4, expected an odd number"),
        ({"crop": 1.5}, r"crop is 1\.5, expected a share"),
        ({"augment": "flip"}, "the augmentation 'flip' was given"),
    ],
)
def test_impossible_configs(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


# ---- sources


def save(kind: str, folder: Path) -> None:
    backbone_of(kind).save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": DEVIATION}))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_saved_backbone_gives_the_same_features(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    image_B3HW, _ = inputs()
    for one, other in zip(
        FrozenFeatures.from_pretrained(tmp_path)(image_B3HW, (0, 2), True),
        features_of(kind)(image_B3HW, (0, 2), True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_image_side_of_clip_emoji() -> None:
    features = FrozenFeatures.from_pretrained(GUIDE_EMOJI)
    assert (features.width, len(features.blocks), features.preprocessing.side) == (192, 6, 64)
    config = ProjectedConfig(features=str(GUIDE_EMOJI), taps=(1, 3), condition_width=256)
    discriminator = ProjectedDiscriminator(config, features)
    assert len(features.blocks) == 4  # nothing is computed after the last tap
    torch.manual_seed(0)
    logits_BN = discriminator(torch.rand(2, 3, 64, 64) * 2 - 1, F.normalize(torch.randn(2, 256), dim=1))
    assert logits_BN.shape == (2, 3 * 64)
    assert logits_BN.isfinite().all()


def test_sources_that_are_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere/none is neither a folder here nor a hub repository within reach"):
        FrozenFeatures.from_pretrained("nowhere/none")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        FrozenFeatures.from_pretrained(tmp_path)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is of a 't5' model, expected one of clip, .*: give another folder"):
        FrozenFeatures.from_pretrained(tmp_path)
    save("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json does not tell image_mean and image_std"):
        FrozenFeatures.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="block 4 was asked of a backbone of 3 blocks, numbered from 0"):
        build(replace(CONFIG, taps=(0, 4)))
