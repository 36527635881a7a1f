"""What released networks were made with: the clamp of activations, and arguments that ours know, ignore or refuse."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from star.data.errors import InputError
from star.generators.config import from_dict, to_dict
from star.generators.gan.discriminators.stylegan2 import StyleGan2DiscriminatorConfig
from star.generators.gan.layers import SQRT2
from star.generators.gan.released_arguments import check_arguments, clamp_of
from star.generators.styleformer.convert import config_of as styleformer_config
from star.generators.stylegan_t.layers import FourierInput, ResidualConv, StyledConv, ToRgb
from star.generators.stylegan_t.model import StyleGanT, StyleGanTConfig
from star.generators.stylegan_t.names import config_of_arguments
from star.generators.stylenat import convert as released_stylenat

SMALL = StyleGanTConfig(
    resolution=16, condition_width=6, latent_width=4, channel_base=128, channel_max=8, residual_blocks=1, groups=4
)


def network_of(clamp: float | None) -> StyleGanT:
    """The same weights whatever the clamp."""
    torch.manual_seed(0)
    return StyleGanT(replace(SMALL, clamp=clamp)).eval()


@torch.no_grad()
@pytest.mark.parametrize("gain", [1.0, 1 / SQRT2])
@pytest.mark.parametrize("up", [False, True])
def test_an_activation_is_cut_after_its_gain_at_the_clamp_times_the_gain(gain: float, up: bool) -> None:
    """Leaky, times sqrt(2) gain, then between -+clamp gain: a gain scales the clamped layer of gain 1."""
    x, w, layers = torch.randn(2, 3, 4, 4), torch.randn(2, 5), []
    for clamp, its in ((None, 1.0), (0.5, 1.0), (0.5, gain)):
        torch.manual_seed(1)
        layers.append(StyledConv(3, 8, 8 if up else 4, 5, up=up, gain=its, clamp=clamp))
    free, cut, scaled = (layer(x, w, "none") for layer in layers)
    assert float(free.abs().max()) > 0.5
    assert torch.equal(cut, free.clamp(-0.5, 0.5))
    torch.testing.assert_close(scaled, gain * cut)


@torch.no_grad()
def test_what_an_rgb_layer_adds_is_cut() -> None:
    x, w, drawn = torch.randn(2, 8, 4, 4), torch.randn(2, 5), []
    for clamp in (None, 0.05):
        torch.manual_seed(1)
        drawn.append(ToRgb(8, 5, clamp=clamp)(x, w))
    assert float(drawn[0].abs().max()) > 0.05
    assert torch.equal(drawn[1], drawn[0].clamp(-0.05, 0.05))


@torch.no_grad()
def test_the_clamp_reaches_every_layer() -> None:
    network = network_of(0.25)
    seen: dict[str, float] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, StyledConv | ToRgb):
            layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: float(out.abs().max())}))
    kinds = [type(layer) for layer in network.modules()]
    assert FourierInput in kinds
    assert ResidualConv in kinds
    w_BSW = network.styles(torch.randn(2, 4), torch.randn(2, 6))
    raw_B3HW = network.synthesis(w_BSW, "none")
    # Of two blocks: a pair of convolutions each, one that doubles the side, and RGB at both sides.
    assert len(seen) == 2 * 2 + 1 + 2
    for name, largest in seen.items():
        limit = 0.25 / SQRT2 if ".layers." in name else 0.25
        assert largest <= limit + 1e-6
    assert sum(largest > 0.17 for largest in seen.values()) > 3  # it bites
    assert float(raw_B3HW.abs().max()) <= 0.25 + 0.25 * (2 * 0.75) ** 2  # the second picture, and the first brought up
    assert not torch.allclose(raw_B3HW, network_of(None).synthesis(w_BSW, "none"))
    assert torch.equal(network_of(1e6).synthesis(w_BSW, "none"), network_of(None).synthesis(w_BSW, "none"))


def test_the_clamp_survives_a_config_file_and_is_256_in_older_ones() -> None:
    for clamp in (None, 0.5, 256.0):
        config = replace(SMALL, clamp=clamp)
        assert from_dict(StyleGanTConfig, to_dict(config)) == config
    before = to_dict(SMALL)
    del before["clamp"]
    assert from_dict(StyleGanTConfig, before).clamp == 256
    for clamp in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="clamp is "):
            replace(SMALL, clamp=clamp)
    with pytest.raises(InputError, match="architecture is 'resnet', expected skip or orig"):
        replace(SMALL, architecture="resnet")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="architecture is 'skip', expected resnet or orig"):
        StyleGan2DiscriminatorConfig(architecture="skip")  # type: ignore[arg-type]


def test_stylegan_t_of_the_released_arguments() -> None:
    """What is left out has the released class's defaults, which are not ours."""
    plain = config_of_arguments(64, 64, 768, {})
    assert (plain.channel_base, plain.channel_max, plain.residual_blocks) == (32768, 512, 3)
    assert (plain.groups, plain.architecture, plain.clamp, plain.conditioning) == (32, "orig", 256, "text")
    told: dict[str, Any] = {
        "channel_base": 1024,
        "channel_max": 64,
        "num_res_blocks": 3,
        "gn_groups": 8,
        "architecture": "skip",
        "conv_clamp": None,
        "num_fp16_res": 4,
        "fused_modconv_default": False,
        "resample_filter": (1, 3, 3, 1),
        "activation": "lrelu",
        "use_noise": True,
    }
    assert config_of_arguments(32, 16, 0, told) == StyleGanTConfig(
        resolution=32,
        conditioning="none",
        condition_width=0,
        latent_width=16,
        channel_base=1024,
        channel_max=64,
        residual_blocks=3,
        groups=8,
        architecture="skip",
        clamp=None,
    )
    assert config_of_arguments(32, 16, 0, told | {"conv_clamp": 3}).clamp == 3


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"magnitude_ema_beta": 0.9}, "the unknown magnitude_ema_beta, expected only channel_base"),
        ({"activation": "relu"}, "activation 'relu', expected 'lrelu'"),
        ({"use_noise": False}, "use_noise False, expected True"),
        ({"use_noise": 1}, "use_noise 1, expected True"),
        ({"resample_filter": [1, 2, 1]}, r"resample_filter \[1, 2, 1\], expected \[1, 3, 3, 1\]"),
        ({"architecture": "resnet"}, "architecture 'resnet', expected 'skip' or 'orig'"),
        ({"img_channels": 1}, "img_channels 1, expected 3"),
        ({"conv_clamp": "256"}, "conv_clamp '256', expected a positive number or none"),
        ({"conv_clamp": True}, "conv_clamp True, expected a positive number"),
        ({"conv_clamp": 0}, "conv_clamp 0, expected a positive number"),
    ],
)
def test_stylegan_t_of_other_arguments_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of_arguments(32, 16, 8, told, "snapshot.pkl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"synthesis_kwargs": {"depth": 8, "conv_clamp": None}}, "conv_clamp none, expected a number"),
        ({"synthesis_kwargs": {"depth": 8, "conv_clamp": "x"}}, "conv_clamp 'x', expected a positive number"),
        ({"synthesis_kwargs": {"depth": 8, "architecture": "resnet"}}, "architecture 'resnet', expected 'skip'"),
        ({"synthesis_kwargs": {"depth": 8, "window": 4}}, "a synthesis network of the unknown window"),
        ({"synthesis_kwargs": {"depth": 8}, "mapping_kwargs": {"lr_multiplier": 1.0}}, "lr_multiplier 1.0, expected"),
        ({"synthesis_kwargs": {"depth": 8}, "mapping_kwargs": 3}, "mapping_kwargs that are no dictionary"),
    ],
)
def test_styleformer_of_other_arguments_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        styleformer_config({}, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qk_scale": 0.5}, "qk_scale 0.5, expected None"),
        ({"lr_mlp": 1.0}, "lr_mlp 1.0, expected 0.01"),
        ({"block_type": "swin"}, "block_type 'swin', expected 'nat'"),
        ({"windows": 8}, "the unknown windows"),
    ],
)
def test_stylenat_of_other_arguments_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        released_stylenat.config_of({}, arguments=arguments)


def test_what_changes_nothing_may_be_anything() -> None:
    check_arguments({"verbose": object(), "size": (3,)}, {"verbose": None, "size": ([3],)}, "a network", "file")
    assert clamp_of(None, "file") is None
    assert clamp_of(7, "file") == 7.0
