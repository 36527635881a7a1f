"""The tokenizer's losses against their closed forms and their gradients.

B batch, E code width, h w latent grid.
"""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.errors import InputError
from star.tokenizer.losses import (
    FeatureDistance,
    PatchDiscriminator,
    adaptive_weight,
    perceptual_distance,
    quantisation_loss,
    reconstruction_loss,
    straight_through,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_is_the_mean_square_and_a_share_of_the_mean_absolute_error() -> None:
    target = normal(2, 3, 4, 4)
    for error, weight in ((0.5, 0.0), (-0.5, 3.0), (2.0, 0.25)):
        found = reconstruction_loss(target + error, target, weight)
        assert found.item() == pytest.approx(error**2 + weight * abs(error), rel=1e-5)
    half = reconstruction_loss(target.bfloat16(), target.bfloat16() + 1, 1.0)
    assert half.dtype == torch.float32


def test_log_error_is_the_psnr_of_each_picture() -> None:
    target = torch.zeros(2, 3, 4, 4)
    image = torch.stack([torch.full((3, 4, 4), 0.02), torch.full((3, 4, 4), 0.5)])
    psnr_B = -10 * torch.log10((image / 2).square().mean(dim=(1, 2, 3)))
    expected = -(psnr_B - 10 * math.log10(4)).mean() * math.log(10) / 10
    found = reconstruction_loss(image, target, 0.0, log=True)
    assert float(found) == pytest.approx(float(expected), abs=0.12)  # 1e-4 is added to each error
    better = reconstruction_loss(image * torch.tensor([0.5, 1.0]).view(2, 1, 1, 1), target, 0.0, log=True)
    worse = reconstruction_loss(image * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1), target, 0.0, log=True)
    assert float(found - better) > 0.4, "halving a small error counts nearly as much as halving a large one"
    assert float(found - worse) == pytest.approx(math.log(2), abs=0.01)


@pytest.mark.parametrize("commit_to", ["last", "all"])
@pytest.mark.parametrize("relative", [False, True])
def test_quantisation_pulls_latent_and_sums_towards_each_other(commit_to: str, relative: bool) -> None:
    """Value and both gradients, each a mean over its terms; what is detached moves nothing."""
    latent = normal(2, 3, 2, 2).requires_grad_()
    sums = [normal(2, 3, 2, 2, seed=k + 1).requires_grad_() for k in range(3)]
    beta, count = 0.3, latent.numel()
    gaps = [(total - latent).detach() for total in sums]
    scale = float(latent.detach().square().mean()) if relative else 1.0
    committed = gaps if commit_to == "all" else gaps[-1:]
    loss = quantisation_loss(latent, sums, beta=beta, commit_to=commit_to, relative=relative)
    fit = sum(float(gap.square().mean()) for gap in gaps) / 3
    commitment = sum(float(gap.square().mean()) for gap in committed) / len(committed)
    assert loss.item() == pytest.approx((beta * commitment + fit) / scale, rel=1e-5)
    loss.backward()
    pull = -2 * beta / count * torch.stack(committed).mean(0) / scale
    torch.testing.assert_close(latent.grad, pull)
    for total, gap in zip(sums, gaps, strict=True):
        torch.testing.assert_close(total.grad, 2 / count / 3 * gap / scale)


def test_quantisation_commits_to_the_last_sum_and_is_relative_by_default() -> None:
    latent, sums = normal(2, 3, 2, 2), [normal(2, 3, 2, 2, seed=k + 1) for k in range(2)]
    plain = quantisation_loss(latent, sums, beta=0.3)
    assert plain == quantisation_loss(latent, sums, beta=0.3, commit_to="last", relative=True)
    torch.testing.assert_close(quantisation_loss(9 * latent, [9 * total for total in sums], beta=0.3), plain)
    told = quantisation_loss(latent, sums, beta=0.3, mean_square=torch.tensor(4.0))
    torch.testing.assert_close(told, quantisation_loss(latent, sums, beta=0.3, relative=False) / 4)
    nothing = torch.zeros(1, 3, 2, 2)
    assert quantisation_loss(nothing, [nothing + 1e-4], beta=0.0).item() == pytest.approx(1.0, rel=1e-3)  # 1e-8 / 1e-8


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    latent, quantised = normal(2, 3, 2, 2).requires_grad_(), normal(2, 3, 2, 2, seed=1).requires_grad_()
    out = straight_through(latent, quantised)
    torch.testing.assert_close(out, quantised)
    (3 * out).sum().backward()
    assert torch.equal(latent.grad, torch.full_like(latent, 3.0))  # type: ignore[arg-type]
    assert quantised.grad is None


class Watched(nn.Module):
    """A vision network whose states are its input and, as tokens, twice that: what it is given is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, pixel_values: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        assert output_hidden_states
        self.seen.append(pixel_values)
        tokens = pixel_values.flatten(2).transpose(1, 2).square()
        return SimpleNamespace(hidden_states=(pixel_values * self.weight, tokens))


def test_perceptual_distance_is_that_of_unit_vectors_over_channels() -> None:
    network = Watched()
    distance = FeatureDistance(network, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixel values are the picture's own
    assert not network.weight.requires_grad
    assert not network.training
    image, other = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    layers = [(image, other), (image.square(), other.square())]
    expected = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in layers]
    torch.testing.assert_close(distance(image, other), torch.stack(expected).mean())
    torch.testing.assert_close(network.seen[0], image)
    assert distance(image, 3 * image).item() == pytest.approx(0, abs=1e-6)
    one, two = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    one[:, 0], two[:, 1] = 1.0, 1.0
    assert distance(one, two).item() == pytest.approx(2)  # of orthogonal ones, in both layers
    image.requires_grad_()
    distance(image, other).backward()
    assert float(image.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_pictures_are_normalised_and_resized_as_the_network_wants() -> None:
    network, mean, std = Watched(), (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    distance = FeatureDistance(network, 4, mean, std)
    image = torch.full((1, 3, 8, 8), 0.5)  # 0.75 of [0, 1]
    distance(image, image)
    assert network.seen[0].shape == (1, 3, 4, 4)
    for channel in range(3):
        expected = torch.full((4, 4), (0.75 - mean[channel]) / std[channel])
        torch.testing.assert_close(network.seen[0][0, channel], expected)
    bars = torch.zeros(1, 3, 8, 8)
    bars[..., ::2] = 1.0
    distance(bars, bars)
    smooth = network.seen[-1] * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
    assert float((smooth - 0.75).abs().max()) < 0.1  # an average of 0.5 and 1, not one or the other


def test_perceptual_networks_by_name() -> None:
    assert perceptual_distance("none") is None
    with pytest.raises(InputError, match="no/such/folder"):
        perceptual_distance("no/such/folder")


def test_the_patch_discriminator_halves_as_often_as_it_is_deep() -> None:
    torch.manual_seed(0)
    for depth, widths in ((3, [3, 8, 16, 32, 1]), (4, [3, 8, 16, 32, 32, 1]), (1, [3, 8, 1])):
        network = PatchDiscriminator(channels=8, depth=depth)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 32 >> depth, 32 >> depth)
        convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
        assert [convolutions[0].in_channels, *(layer.out_channels for layer in convolutions)] == widths
        assert [layer.kernel_size for layer in convolutions] == [(4, 4)] * depth + [(3, 3)]
        slopes = [layer.negative_slope for layer in network.layers if isinstance(layer, nn.LeakyReLU)]
        assert slopes == [0.2] * depth
    assert sum(isinstance(layer, nn.Conv2d) for layer in PatchDiscriminator().layers) == 4
    assert PatchDiscriminator().layers[0].out_channels == 64


def test_the_patch_discriminator_is_spectrally_normalised_and_judges_pictures_apart() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(channels=8)
    for _ in range(30):
        network(torch.zeros(1, 3, 16, 16))  # a power iteration each
    network.eval()
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    images = normal(3, 3, 16, 16)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer() -> None:
    last = nn.Parameter(torch.ones(4))
    reconstruction, adversarial = (6 * last).sum(), (2 * last).sum()
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert weight.item() == pytest.approx(6 * math.sqrt(4) / (2 * math.sqrt(4) + 1e-4), rel=1e-6)
    assert not weight.requires_grad
    (reconstruction + weight * adversarial).backward()  # the graph is still there
    vanishing = adaptive_weight((6 * last).sum(), (0 * last).sum(), last)
    assert vanishing.item() == pytest.approx(1e4)
    assert adaptive_weight((0.01 * last).sum(), (0 * last).sum(), last).item() == pytest.approx(0.02 / 1e-4, rel=1e-4)
