"""What a family registers, what learns in a phase, and what a run may start from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generators.gan.discriminators import projected, wavelet
from star.generators.gan.discriminators.projected import ProjectedConfig
from star.generators.gan.discriminators.stylegan2 import CONFIGS as STYLEGAN2
from star.generators.gan.discriminators.stylegan2 import StyleGan2Discriminator
from star.generators.gan.discriminators.wavelet import WaveletDiscriminator
from star.generators.gan.init_from import init_from
from star.generators.registration import load
from star.generators.registry import GANS, registration
from star.generators.stylegan_t.model import StyleGanT, StyleGanTConfig, StyleGanTGenerator
from star.generators.stylenat import model as stylenat
from star.generators.stylenat.model import StyleNatGenerator, StyleNatNetwork

SMALL = StyleGanTConfig(
    resolution=8,
    conditioning="none",
    condition_width=0,
    latent_width=4,
    channel_base=64,
    channel_max=8,
    residual_blocks=1,
    groups=4,
)


def test_every_family_builds_its_networks() -> None:
    for name in GANS:
        registered = registration(name)
        recipe = load(registered.presets)["test"]
        assert recipe.family is load(registered.generator)
        assert recipe.family.family == name
        assert recipe.family.network_class(recipe.network).config == recipe.network


def test_a_config_builds_its_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(wavelet.CONFIGS["test"].build(), WaveletDiscriminator)
    assert isinstance(STYLEGAN2["test"].build(), StyleGan2Discriminator)
    monkeypatch.setattr(projected.FrozenFeatures, "from_pretrained", lambda name: f"features of {name}")
    monkeypatch.setattr(projected, "ProjectedDiscriminator", lambda config, features: (config, features))
    config = ProjectedConfig(features="some/vit")
    assert config.build() == (config, "features of some/vit")


def test_what_learns() -> None:
    network = StyleGanT(replace(SMALL, resolution=16))
    assert network.trainable("all") == list(network.parameters())
    assert network.trainable("text_encoder") == []
    with pytest.raises(InputError, match="the phase freeze64 was asked of a network of 16 pixels"):
        network.trainable("freeze64")
    other = StyleNatNetwork(stylenat.CONFIGS["test"])
    assert other.trainable("all") == list(other.parameters())
    with pytest.raises(InputError, match="the phase freeze64 was asked of a StyleNatNetwork, expected a StyleGAN-T"):
        other.trainable("freeze64")


def test_a_run_starts_from_the_same_network_or_a_smaller_stylegan_t(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = StyleGanT(SMALL)
    StyleGanTGenerator(small, None).save_pretrained(tmp_path / "small")
    same = StyleGanT(SMALL)
    assert init_from(StyleGanTGenerator, same, str(tmp_path / "small")) == f"started from {tmp_path / 'small'}"
    for name, tensor in small.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
    larger = StyleGanT(replace(SMALL, resolution=16))
    told = init_from(StyleGanTGenerator, larger, str(tmp_path / "small"))
    assert told == f"started from {tmp_path / 'small'}, 8 pixels, with finer blocks that are fresh"
    assert torch.equal(larger.state_dict()["blocks.8.layers.0.weight"], small.state_dict()["blocks.8.layers.0.weight"])
    reading = replace(SMALL, conditioning="text", condition_width=6)
    encoder, projection_PD = tiny_text_encoder(), torch.randn(6, 32)  # which is no part of the network
    StyleGanTGenerator(StyleGanT(reading), encoder, projection_PD).save_pretrained(tmp_path / "text")
    assert (
        init_from(StyleGanTGenerator, StyleGanT(reading), str(tmp_path / "text")) == f"started from {tmp_path / 'text'}"
    )
    with pytest.raises(InputError, match="small"):
        init_from(StyleGanTGenerator, StyleGanT(replace(SMALL, latent_width=5)), str(tmp_path / "small"))
    with pytest.raises(InputError, match="small"):
        init_from(StyleNatGenerator, StyleNatNetwork(stylenat.CONFIGS["test"]), str(tmp_path / "small"))
