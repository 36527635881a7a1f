"""StyleNAT: its generator, its discriminator, its consistency loss, and what configurations may be."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.config import from_dict, to_dict
from star.generators.gan.consistency import consistency_loss
from star.generators.gan.discriminators import wavelet
from star.generators.gan.discriminators.wavelet import WaveletConfig, WaveletDiscriminator, haar
from star.generators.gan.layers import SpectralWeight
from star.generators.gan.losses import path_lengths, r1_penalty
from star.generators.stylenat import model as stylenat
from star.generators.stylenat.layers import Modulation, Upsampling, waves
from star.generators.stylenat.model import StyleNatConfig, StyleNatNetwork

TINY = StyleNatConfig(
    widths=(8, 8, 8),
    heads=(2, 2, 2),
    kernels=((4,), (3, 3), (3, 5)),
    dilations=((1,), (1, 2), (5, 3)),
    latent_width=8,
    style_width=8,
    mapping_layers=2,
)


def tiny(**changes: object) -> StyleNatNetwork:
    config = replace(TINY, widths=(8, 12, 8), heads=(2, 3, 2), **changes)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StyleNatNetwork(config).eval()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "millions"), [("ffhq-256", 48.921), ("ffhq-1024", 49.453)])
def test_released_sizes_are_the_papers(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(parameters(StyleNatNetwork(stylenat.CONFIGS[name])) / 1e6, 3) == millions
        judge = parameters(WaveletDiscriminator(wavelet.CONFIGS[name])) / 1e6
    assert round(judge, 2) == {"ffhq-256": 26.21, "ffhq-1024": 27.74}[name]


@pytest.mark.parametrize("name", stylenat.CONFIGS)
def test_configs_survive_json(name: str) -> None:
    config = stylenat.CONFIGS[name]
    assert from_dict(StyleNatConfig, to_dict(config)) == config
    if name in wavelet.CONFIGS:
        assert wavelet.CONFIGS[name].resolution == config.resolution
        assert wavelet.CONFIGS[name].condition_width == config.condition_width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (2, 2)}, "3 widths, 2 heads, 3 kernels and 3 dilations are given"),
        ({"conditioning": "text"}, "condition_width is 0 with conditioning text"),
        ({"widths": (8, 8, 9)}, "the width at 16 pixels is 9"),
        ({"widths": (8, 8, 6)}, r"expected multiples of 4 from 8 on"),
        ({"kernels": ((4,), (3,), (3, 5))}, "1 kernels and 2 dilations are given at 8 pixels"),
        ({"dilations": ((1,), (1, 3), (5, 3))}, "a kernel of 3 with dilation 3 is given at 8 pixels"),
        ({"style_width": 0}, "style_width is 0"),
    ],
)
def test_impossible_configs_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY, **changes)
    with pytest.raises(InputError, match="widths are"):
        WaveletConfig(widths=())


def test_each_slot_moves_the_picture_and_truncation_goes_to_the_mean() -> None:
    network = tiny()
    latent_BZ = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        w_BSW = network.styles(latent_BZ)
        assert w_BSW.shape == (2, network.slots, 8)
        raw_B3HW = network.synthesis(w_BSW)
        assert raw_B3HW.shape == (2, 3, 16, 16)
        assert torch.equal(raw_B3HW, network.synthesis(w_BSW, "const"))
        for slot in range(network.slots):
            moved_BSW = w_BSW.clone()
            moved_BSW[:, slot] += 1
            assert not torch.equal(network.synthesis(moved_BSW), raw_B3HW), f"slot {slot} is not read"
        network.mapping.average_W.fill_(0.25)
        assert torch.equal(network.styles(latent_BZ, truncation=0.0), torch.full_like(w_BSW, 0.25))
        partly_BSW = network.styles(latent_BZ, truncation=0.0, cutoff=2)
        assert torch.equal(partly_BSW[:, 2:], w_BSW[:, 2:])
        assert bool((partly_BSW[:, :2] == 0.25).all())


def test_text_is_truncated_towards_its_own_mean() -> None:
    network = tiny(conditioning="text", condition_width=4)
    latent_BZ, condition_BP = torch.randn(2, 8), F.normalize(torch.randn(2, 4), dim=1)
    with torch.no_grad():
        mean_BSW = network.styles(latent_BZ, condition_BP, truncation=0.0)
        assert torch.equal(mean_BSW, network.styles(-latent_BZ, condition_BP, truncation=0.0))
        assert not torch.allclose(mean_BSW[0], mean_BSW[1])
    with pytest.raises(ValueError, match="needs a condition"):
        network.styles(latent_BZ)


def test_path_length_is_differentiable() -> None:
    network = tiny().double()
    w_BSW = torch.randn(2, network.slots, 8, dtype=torch.float64, requires_grad=True)
    raw_B3HW = network.synthesis(w_BSW)
    path_lengths(raw_B3HW, w_BSW, torch.randn_like(raw_B3HW)).sum().backward()
    for name, parameter in network.levels.named_parameters():
        if name.endswith(("qkv.weight", "tables.1")):
            assert parameter.grad is not None
            assert bool((parameter.grad != 0).any()), name


def test_raw_pictures_are_normalised_by_imagenet() -> None:
    network = tiny()
    image_B3HW = torch.rand(2, 3, 4, 4) * 2 - 1
    raw_B3HW = network.normalise(image_B3HW)
    torch.testing.assert_close(network.denormalise(raw_B3HW), image_B3HW)
    white_3 = network.normalise(torch.ones(1, 3, 1, 1))[0, :, 0, 0]
    torch.testing.assert_close(white_3, torch.tensor([2.2489, 2.4286, 2.64]), atol=1e-4, rtol=0)


def test_modulation_normalises_each_picture() -> None:
    modulation = Modulation(3, 4)
    with torch.no_grad():
        modulation.style.weight.zero_()
        modulation.style.bias.copy_(torch.tensor([2.0, 2, 2, 5, 5, 5]))  # type: ignore[union-attr]
        y_BHWC = modulation(torch.randn(2, 6, 7, 3) * 9 + 30, torch.zeros(2, 4))
    torch.testing.assert_close(y_BHWC.mean(dim=(1, 2)), torch.full((2, 3), 5.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(y_BHWC.std(dim=(1, 2), correction=0), torch.full((2, 3), 2.0), atol=1e-3, rtol=0)


def test_waves_tell_places_apart() -> None:
    waves_HWC = waves(6, 8, 16)
    assert waves_HWC.shape == (6, 8, 16)
    assert torch.equal(waves_HWC[0, :, :8], waves_HWC[5, :, :8])  # columns
    assert torch.equal(waves_HWC[:, 0, 8:], waves_HWC[:, 7, 8:])  # rows
    assert len({tuple(place.tolist()) for place in waves_HWC.flatten(0, 1)}) == 48
    place = torch.tensor(5.0)  # the fifth column, by the frequency of 1
    torch.testing.assert_close(waves_HWC[2, 4, [0, 4]], torch.stack([place.sin(), place.cos()]))
    step = Upsampling(8, 8, 6)
    assert "waves_HWC" not in step.state_dict()  # recomputed, so released files fit


# ---- the discriminator


def test_wavelets_are_orthogonal() -> None:
    image_BCHW = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    wavelets = haar(image_BCHW)
    assert wavelets.shape == (2, 12, 4, 3)
    torch.testing.assert_close(wavelets.square().sum(), image_BCHW.square().sum())
    flat = haar(torch.ones(1, 3, 2, 2))[0, :, 0, 0]
    assert flat.tolist() == [2.0] * 3 + [0.0] * 9


@pytest.mark.parametrize("spectral", [True, False])
def test_discriminator_reads_text_and_every_weight(spectral: bool) -> None:
    torch.manual_seed(0)
    discriminator = WaveletDiscriminator(WaveletConfig(condition_width=4, widths=(4, 6, 6), spectral=spectral))
    image_B3HW = torch.randn(4, 3, 32, 32, requires_grad=True)
    one, other = torch.randn(2, 4, 4)
    logits = discriminator(image_B3HW, one)
    assert logits.shape == (4, 1)
    assert not torch.allclose(logits, discriminator(image_B3HW, other))
    r1_penalty(logits, image_B3HW).mean().backward(retain_graph=True)
    logits.square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name
    for arguments in ((image_B3HW,), (image_B3HW[:, :, :16], one)):
        with pytest.raises(ValueError, match=r"needs a condition|expected \(3, 32, 32\)"):
            discriminator(*arguments)


def test_spectral_norm_is_found() -> None:
    torch.manual_seed(0)
    weight = SpectralWeight(nn.Parameter(torch.randn(6, 4, 3, 3)), None)
    before = weight.left_O.clone()
    weight.eval().norm()
    assert torch.equal(weight.left_O, before)
    weight.train()
    for _ in range(100):
        norm = weight.norm()
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(weight.weight.flatten(1), 2))


def test_consistency_counts_what_an_augmentation_changes() -> None:
    def mean(raw_B3HW: Tensor) -> Tensor:
        return raw_B3HW.mean(dim=(1, 2, 3))

    raw_B3HW = torch.rand(8, 3, 16, 16, requires_grad=True)
    torch.manual_seed(0)
    loss = consistency_loss(mean, [(raw_B3HW, mean(raw_B3HW)), (raw_B3HW * 0.5, mean(raw_B3HW * 0.5))])
    assert loss.item() > 0
    (gradient,) = torch.autograd.grad(loss, raw_B3HW)
    assert bool((gradient != 0).any())
    assert consistency_loss(lambda raw_B3HW: raw_B3HW.sum() * torch.zeros(8), [(raw_B3HW, torch.zeros(8))]).item() == 0
