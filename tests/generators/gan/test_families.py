"""Which config builds what, what learns in a phase, and what a run may start from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from star.data.errors import InputError
from star.data.tiny import tiny_text_encoder
from star.generators.gan import families as adversaries
from star.generators.gan.discriminators import wavelet
from star.generators.gan.discriminators.projected import ProjectedConfig
from star.generators.gan.discriminators.stylegan2 import CONFIGS as STYLEGAN2
from star.generators.gan.discriminators.stylegan2 import StyleGan2Discriminator
from star.generators.gan.discriminators.wavelet import WaveletDiscriminator
from star.generators.gan.families import build_discriminator, build_network, family_of, learning, start_from
from star.generators.styleformer import model as styleformer
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


def test_a_config_tells_the_family() -> None:
    assert family_of(SMALL) is StyleGanTGenerator
    assert family_of(stylenat.CONFIGS["test"]) is StyleNatGenerator
    assert family_of(styleformer.CONFIGS["test"]).family == "styleformer"
    for config in (SMALL, stylenat.CONFIGS["test"], styleformer.CONFIGS["test"]):
        assert build_network(config).config == config


def test_a_config_tells_the_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_discriminator(wavelet.CONFIGS["test"]), WaveletDiscriminator)
    assert isinstance(build_discriminator(STYLEGAN2["test"]), StyleGan2Discriminator)
    monkeypatch.setattr(adversaries.FrozenFeatures, "from_pretrained", lambda name: f"features of {name}")
    monkeypatch.setattr(adversaries, "ProjectedDiscriminator", lambda config, features: (config, features))
    config = ProjectedConfig(features="some/vit")
    assert build_discriminator(config) == (config, "features of some/vit")


def test_what_learns() -> None:
    network, tower = StyleGanT(replace(SMALL, resolution=16)), nn.Linear(2, 2)
    assert learning(network, tower, "all") == list(network.parameters())
    only_tower = learning(network, tower, "text_encoder")
    assert {id(parameter) for parameter in only_tower} == {id(tower.weight), id(tower.bias)}
    assert learning(network, None, "text_encoder") == []
    with pytest.raises(InputError, match="the phase freeze64 was asked of a network of 16 pixels"):
        learning(network, tower, "freeze64")
    other = StyleNatNetwork(stylenat.CONFIGS["test"])
    assert learning(other, None, "all") == list(other.parameters())
    with pytest.raises(InputError, match="the phase freeze64 was asked of a StyleNatNetwork, expected a StyleGAN-T"):
        learning(other, None, "freeze64")


def test_a_run_starts_from_the_same_network_or_a_smaller_stylegan_t(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = StyleGanT(SMALL)
    StyleGanTGenerator(small, None).save_pretrained(tmp_path / "small")
    same = StyleGanT(SMALL)
    assert start_from(same, str(tmp_path / "small")) == f"started from {tmp_path / 'small'}"
    for name, tensor in small.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
    larger = StyleGanT(replace(SMALL, resolution=16))
    told = start_from(larger, str(tmp_path / "small"))
    assert told == f"started from {tmp_path / 'small'}, 8 pixels, with finer blocks that are fresh"
    assert torch.equal(larger.state_dict()["blocks.8.layers.0.weight"], small.state_dict()["blocks.8.layers.0.weight"])
    reading = replace(SMALL, conditioning="text", condition_width=6)
    encoder, projection_PD = tiny_text_encoder(), torch.randn(6, 32)  # which is no part of the network
    StyleGanTGenerator(StyleGanT(reading), encoder, projection_PD).save_pretrained(tmp_path / "text")
    assert start_from(StyleGanT(reading), str(tmp_path / "text")) == f"started from {tmp_path / 'text'}"
    with pytest.raises(InputError, match="small"):
        start_from(StyleGanT(replace(SMALL, latent_width=5)), str(tmp_path / "small"))
    with pytest.raises(InputError, match="small"):
        start_from(StyleNatNetwork(stylenat.CONFIGS["test"]), str(tmp_path / "small"))
