"""Perceptual distances: LPIPS from converted files, and networks that each see pictures on their own scale."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from star.cli import main
from star.data.errors import InputError
from star.generators.gan.discriminators.stylegan2 import StyleGan2DiscriminatorConfig
from star.generators.training.run import RunConfig
from star.tokenizer.adversary import make_discriminator
from star.tokenizer.config import TokenizerTrainConfig
from star.tokenizer.losses import FeatureDistance, perceptual_distance, picture_scale
from star.tokenizer.lpips import PLACES, STAGES, Lpips, convert_lpips
from star.tokenizer.presets import PRESETS
from star.tokenizer.train import train

# Of VGG16's thirty-one layers: where torchvision has its convolutions, and after which LPIPS reads.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
POOLS, READ = (4, 9, 16, 23), (3, 8, 15, 22, 29)


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    """VGG16 as torchvision names it, the classifier stood for by one tensor, with random weights."""
    generator, state, before = torch.Generator().manual_seed(0), {}, 3
    widths = [width for width, count in STAGES for _ in range(count)]
    for layer, width in zip(CONVOLUTIONS, widths, strict=True):
        state[f"features.{layer}.weight"] = (
            torch.randn(width, before, 3, 3, generator=generator) * (2 / 9 / before) ** 0.5
        )
        state[f"features.{layer}.bias"] = torch.randn(width, generator=generator) * 0.1
        before = width
    return state | {"classifier.0.weight": torch.zeros(2, 2)}


def linear(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, (width, _) in enumerate(STAGES)
    }


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    one = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    return one, (one + 0.3 * torch.randn(one.shape, generator=generator)).clamp(-1, 1)


def plain(vgg: dict[str, Tensor], weights: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    """The published formula, written layer by layer."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    states = []
    for image in (one, other):
        x, read = (image - shift[:, None, None]) / scale[:, None, None], []
        for layer in range(30):
            if layer in CONVOLUTIONS:
                x = F.conv2d(x, vgg[f"features.{layer}.weight"], vgg[f"features.{layer}.bias"], padding=1)
            else:
                x = F.max_pool2d(x, 2, 2) if layer in POOLS else F.relu(x)
            if layer in READ:
                read.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        states.append(read)
    found = [
        F.conv2d((a - b) ** 2, weights[f"lin{i}.model.1.weight"]).mean()
        for i, (a, b) in enumerate(zip(*states, strict=True))
    ]
    return torch.stack(found).sum()


def written(vgg: dict[str, Tensor], folder: Path, kind: str) -> Path:
    if kind == "timm":
        save_file({name: tensor.contiguous() for name, tensor in vgg.items()}, folder / "vgg.safetensors")
        return folder / "vgg.safetensors"
    state = dict(vgg)
    if kind == "whole":  # LPIPS numbers torchvision's layers within its slices, and keeps the weights by channel twice
        state = {name.replace("features.", "net.slice1."): value for name, value in vgg.items() if "features" in name}
        state |= linear() | {f"lins.{name[3]}.model.1.weight": value for name, value in linear().items()}
        state |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    torch.save(state, folder / "vgg.pth")
    return folder / "vgg.pth"


@pytest.mark.parametrize("kind", ["torchvision", "timm", "whole"])
def test_lpips_is_the_published_formula(kind: str, vgg: dict[str, Tensor], tmp_path: Path) -> None:
    arguments = ["convert", "lpips", str(written(vgg, tmp_path, kind)), str(tmp_path / "lpips")]
    if kind != "whole":
        torch.save(linear(), tmp_path / "linear.pth")
        arguments += ["--linear", str(tmp_path / "linear.pth")]
    assert main(arguments) == 0
    distance = perceptual_distance(f"lpips:{tmp_path / 'lpips'}")
    assert isinstance(distance, Lpips)
    one, other = images()
    torch.testing.assert_close(distance(one, other), plain(vgg, linear(), one, other))
    assert distance(one, one).item() == 0
    flat = torch.zeros_like(one).requires_grad_()
    distance(flat, one).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()
    assert flat.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in distance.parameters())


def test_weights_by_channel_come_with_torchmetrics(vgg: dict[str, Tensor], tmp_path: Path) -> None:
    convert_lpips(written(vgg, tmp_path, "timm"), tmp_path / "lpips")
    weights = Lpips.from_directory(tmp_path / "lpips").channel_weights
    assert [len(weight) for weight in weights] == [64, 128, 256, 512, 512]
    assert all((weight >= 0).all() and 0 < weight.mean() < 1 for weight in weights)  # learnt under that constraint


def test_the_places_are_those_of_torchvision() -> None:
    assert tuple(PLACES) == CONVOLUTIONS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.28.bias"), r"lacks stages\.4\.2\.bias"),
        (lambda state: state.update({"features.0.weight": torch.zeros(64, 1, 3, 3)}), "has another shape for"),
    ],
)
def test_another_network_is_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, vgg: dict[str, Tensor], tmp_path: Path
) -> None:
    state = dict(vgg)
    change(state)
    with pytest.raises(InputError, match=message):
        convert_lpips(written(state, tmp_path, "torchvision"), tmp_path / "lpips")
    assert not (tmp_path / "lpips").exists()


def test_what_is_missing_is_told_with_the_way_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"made by `star convert lpips VGG16_FILE .*nowhere`"):
        perceptual_distance(f"lpips:{tmp_path / 'nowhere'}")
    assert main(["convert", "star", "file.pth", "out", "--linear", "x"]) == 2
    assert "--linear x was given for a star" in capsys.readouterr().err
    assert main(["convert", "lpips", "file.pth", "out", "--preset", "x"]) == 2
    assert "--preset x was given for a lpips" in capsys.readouterr().err


def vit(folder: Path, preprocessor: dict[str, object] | None) -> Path:
    shape = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    ViTModel(shape).save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    ("preprocessor", "low", "high"),
    [
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, -1.0, 1.0),  # a ViT's, SigLIP's
        ({"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}, -0.48 / 0.27, 0.52 / 0.27),  # CLIP's
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_normalize": False, "do_rescale": False}, 0.0, 255.0),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, -1.0, 1.0),
    ],
)
def test_each_network_sees_pictures_on_its_own_scale(
    preprocessor: dict[str, object], low: float, high: float, tmp_path: Path
) -> None:
    distance = FeatureDistance.from_pretrained(str(vit(tmp_path, preprocessor)))
    seen: list[Tensor] = []
    distance.network.register_forward_pre_hook(
        lambda _m, _a, named: seen.append(named["pixel_values"]), with_kwargs=True
    )
    black = -torch.ones(1, 3, 16, 16)
    distance(black, -black)
    assert seen[0][0, 0].mean().item() == pytest.approx(low, abs=1e-5)
    assert seen[1][0, 0].mean().item() == pytest.approx(high, rel=1e-5)


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        (None, "no readable preprocessor_config.json"),
        ({}, "image_mean None and image_std None, expected three numbers"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "expected three numbers each"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5, 0, 0.5]}, "of std above 0"),
    ],
)
def test_a_network_that_does_not_tell_its_scale_is_refused(
    preprocessor: dict[str, object] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        picture_scale(str(vit(tmp_path, preprocessor)))


def config(**changes: object) -> TokenizerTrainConfig:
    run = RunConfig(steps=3, batch_size=4, log_every=1, sample_every=0, checkpoint_every=5, trackers=())
    return replace(PRESETS["test"], **{"run": run, "adversary_weight": 0.1, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("adversary", ["patch", "stylegan2"])
def test_a_tokenizer_learns_against_an_augmented_discriminator(
    adversary: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import star.tokenizer.adversary as module

    seen: list[tuple[int, str]] = []

    def augment(image_B3HW: Tensor, policy: str) -> Tensor:
        seen.append((len(image_B3HW), policy))
        return image_B3HW

    monkeypatch.setattr(module, "augment", augment)
    small = replace(StyleGan2DiscriminatorConfig(), channel_base=128, channel_max=16)
    monkeypatch.setattr(module, "StyleGan2DiscriminatorConfig", lambda **size: replace(small, **size))
    options = config(adversary=adversary, augment="color,cutout")
    train(options, data=[str(shards / "train")], out=tmp_path / "run", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len({line["loss_discriminator"] for line in lines}) == 3
    # Decoded pictures for the decoder; then real and decoded, side by side or, where they are compared, apart.
    assert (
        seen[:3] == [(4, "color,cutout")] * 3
        if adversary == "stylegan2"
        else seen[:2] == [(4, "color,cutout"), (8, "color,cutout")]
    )


def test_groups_that_cannot_be_compared_are_refused() -> None:
    assert isinstance(make_discriminator(config(adversary="stylegan2"), 8), nn.Module)
    with pytest.raises(InputError, match=r"sees 6 pictures at once, expected a multiple of the 4"):
        make_discriminator(config(adversary="stylegan2"), 6)
    with pytest.raises(InputError, match="the augmentation 'blur' was given"):
        config(augment="blur")


def test_the_released_shape_has_the_terms_that_its_paper_names() -> None:
    preset = PRESETS["var-256"]
    assert (preset.reconstruction, preset.l1, preset.perceptual) == (1.0, 0.0, "lpips:models/lpips")
    assert (preset.adversary, preset.augment) == ("stylegan2", "color,translation,cutout")
    assert preset.run.batch_size % 4 == 0
