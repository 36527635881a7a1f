"""The families side by side: which config builds which generator network, discriminator and trained generator."""

from torch import nn

from star.data.errors import InputError
from star.generators.config import from_dict
from star.generators.gan.discriminators.projected import FrozenFeatures, ProjectedConfig, ProjectedDiscriminator
from star.generators.gan.discriminators.stylegan2 import StyleGan2Discriminator, StyleGan2DiscriminatorConfig
from star.generators.gan.discriminators.wavelet import WaveletConfig, WaveletDiscriminator
from star.generators.gan.generator import PROJECTION, GanGenerator, GanNetwork
from star.generators.pretrained import ModelDirectory, load_into
from star.generators.registry import place_of
from star.generators.styleformer.model import StyleformerConfig, StyleformerGenerator
from star.generators.stylegan_t.model import Phase, StyleGanT, StyleGanTConfig, StyleGanTGenerator, grow_from, trainable
from star.generators.stylenat.model import StyleNatConfig, StyleNatGenerator

NetworkConfig = StyleGanTConfig | StyleNatConfig | StyleformerConfig
DiscriminatorConfig = ProjectedConfig | WaveletConfig | StyleGan2DiscriminatorConfig

FAMILIES: dict[type, type[GanGenerator]] = {
    family.config_class: family for family in (StyleGanTGenerator, StyleNatGenerator, StyleformerGenerator)
}


def family_of(config: NetworkConfig) -> type[GanGenerator]:
    """The class that draws with networks of this config."""
    return FAMILIES[type(config)]


def build_network(config: NetworkConfig) -> GanNetwork:
    """A generator network with fresh weights."""
    network: GanNetwork = family_of(config).network_class(config)
    return network


def build_discriminator(config: DiscriminatorConfig) -> nn.Module:
    """A discriminator with fresh weights: raw_B3HW and condition_BP (or None) to logits (B,) or (B, N)."""
    if isinstance(config, ProjectedConfig):
        return ProjectedDiscriminator(config, FrozenFeatures.from_pretrained(config.features))
    if isinstance(config, WaveletConfig):
        return WaveletDiscriminator(config)
    return StyleGan2Discriminator(config)


def learning(network: GanNetwork, tower: nn.Module | None, phase: Phase) -> list[nn.Parameter]:
    """The parameters that learn in a phase. Raises InputError for a phase that only a StyleGAN-T has."""
    if phase == "all":
        return list(network.parameters())
    if not isinstance(network, StyleGanT):
        raise InputError(f"the phase {phase} was asked of a {type(network).__name__}, expected a StyleGAN-T: use all")
    return trainable(network, phase) + ([] if tower is None else list(tower.parameters()))


def start_from(network: GanNetwork, path: str) -> str:
    """Loads the weights of a model directory of the same family, for a StyleGAN-T also of a smaller one.

    Returns a line that says so. Raises InputError where it does not fit.
    """
    config = network.config
    path = place_of(path)
    directory = ModelDirectory.read(path, FAMILIES[type(config)].family)
    values = {name: value for name, value in directory.config.items() if name != "labels"}
    before = from_dict(type(config), values)
    tensors = directory.tensors()
    tensors.pop(PROJECTION, None)
    if isinstance(network, StyleGanT) and before.resolution < network.config.resolution:
        grow_from(network, tensors)
        return f"started from {path}, {before.resolution} pixels, with finer blocks that are fresh"
    load_into(network, tensors, path)
    return f"started from {path}"
