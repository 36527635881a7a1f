"""Losses of the GANs against closed forms, and their second derivatives against finite differences."""

import math

import pytest
import torch
from torch import Tensor

from star.generators.gan.losses import (
    PathLength,
    hinge_discriminator,
    hinge_generator,
    lazy_optimizer_settings,
    logistic_discriminator,
    logistic_generator,
    path_lengths,
    r1_penalty,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_logistic_losses_are_cross_entropies() -> None:
    real, fake = drawn(5), drawn(5, seed=1)
    p, q = real.sigmoid(), fake.sigmoid()
    torch.testing.assert_close(logistic_discriminator(real, fake), -p.log().mean() - (1 - q).log().mean())
    torch.testing.assert_close(logistic_generator(fake), -q.log().mean())
    certain = torch.tensor([200.0, 1000.0])  # where float32 has no logarithm of a sigmoid any more
    assert float(logistic_discriminator(certain, -certain)) == 0.0
    assert float(logistic_generator(-certain)) == 600.0


def discriminate(image_B3HW: Tensor, weight: Tensor) -> Tensor:
    """A discriminator of one hidden layer, (B, 2) logits."""
    hidden = torch.tanh(image_B3HW.flatten(1) @ weight)
    return torch.stack([hidden.square().sum(dim=1), hidden.sum(dim=1)], dim=1)


def test_r1_is_the_squared_gradient_of_each_picture() -> None:
    weight = drawn(12, 3)
    image = drawn(4, 3, 2, 2, seed=1).requires_grad_()
    penalty = r1_penalty(discriminate(image, weight), image)
    assert penalty.shape == (4,)
    step = 1e-5
    for i in range(4):
        slopes = []
        for j in range(12):
            moved = torch.zeros(12, dtype=torch.float64)
            moved[j] = step
            ends = [
                discriminate((image[i].flatten() + sign * moved).reshape(1, 3, 2, 2), weight).sum() for sign in (1, -1)
            ]
            slopes.append((ends[0] - ends[1]) / (2 * step))
        torch.testing.assert_close(penalty[i], torch.stack(slopes).square().sum(), rtol=1e-7, atol=0)


def test_r1_has_the_gradient_that_finite_differences_have() -> None:
    image = drawn(2, 3, 2, 2, seed=1).requires_grad_()
    weight = drawn(12, 3).mul(0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: r1_penalty(discriminate(image, w), image), (weight,))


def draw(w_BSW: Tensor, weight: Tensor) -> Tensor:
    """A generator of one layer that reads all slots but the last, (B, 3, 2, 2)."""
    return torch.sin(w_BSW[:, :-1].flatten(1) @ weight).reshape(-1, 3, 2, 2)


def test_path_length_is_the_norm_of_the_jacobian_times_noise() -> None:
    weight, noise = drawn(6, 12), drawn(2, 3, 2, 2, seed=2)
    w = drawn(2, 3, 3, seed=1).requires_grad_()
    lengths = path_lengths(draw(w, weight), w, noise)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda row: draw(row, weight), w[i : i + 1].detach())
        product = torch.einsum("bchwase,bchw->se", jacobian, noise[i : i + 1])
        assert bool((product[-1] == 0).all())
        torch.testing.assert_close(lengths[i], (product.square().sum() / 3).sqrt())


def test_path_penalty_has_the_gradient_that_finite_differences_have() -> None:
    noise = drawn(2, 3, 2, 2, seed=2)
    w = drawn(2, 3, 3, seed=1).requires_grad_()
    weight = drawn(6, 12).mul(0.3).requires_grad_()

    def penalty(weight: Tensor) -> Tensor:
        return PathLength(decay=0.25).double()(draw(w, weight), w, noise)

    assert torch.autograd.gradcheck(penalty, (weight,))


def test_the_running_mean_approaches_the_lengths_and_is_state() -> None:
    weight, noise = drawn(6, 12), drawn(2, 3, 2, 2, seed=2)
    w = drawn(2, 3, 3, seed=1).requires_grad_()
    lengths = path_lengths(draw(w, weight), w, noise).detach()
    regulariser = PathLength(decay=0.25).double()
    for step in range(1, 4):
        penalty = regulariser(draw(w, weight), w, noise)
        mean = lengths.mean() * (1 - 0.75**step)
        torch.testing.assert_close(regulariser.mean, mean)
        torch.testing.assert_close(penalty.detach(), (lengths - mean).square())
    resumed = PathLength(decay=0.25).double()
    resumed.load_state_dict(regulariser.state_dict())
    assert torch.equal(resumed(draw(w, weight), w, noise), regulariser(draw(w, weight), w, noise))


def test_noise_that_is_not_given_has_the_size_of_a_picture() -> None:
    """For raw = w, a picture of 3 x 8 x 8, J^T y is y itself, of length sqrt(3) on average."""
    w = torch.zeros(200, 1, 192, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    penalty = PathLength(decay=0.0).double()(w.reshape(-1, 3, 8, 8), w)
    assert float(penalty.mean()) == pytest.approx(3.0, rel=0.02)


def test_lazy_settings_keep_the_pace() -> None:
    lr, (beta1, beta2) = lazy_optimizer_settings(0.0025, (0.0, 0.99), 16)
    assert lr * 17 == pytest.approx(0.0025 * 16)
    assert beta1 == 0.0
    assert beta2**17 == pytest.approx(0.99**16)
    assert math.isclose(lazy_optimizer_settings(0.0025, (0.5, 0.99), 4)[1][0], 0.5**0.8)
    assert lazy_optimizer_settings(0.0025, (0.5, 0.99), 0) == (0.0025, (0.5, 0.99))
    with pytest.raises(ValueError, match="interval is -1"):
        lazy_optimizer_settings(0.0025, (0.5, 0.99), -1)


def test_the_running_mean_is_no_part_of_a_graph_and_moves_by_a_hundredth() -> None:
    weight, noise = drawn(6, 12), drawn(2, 3, 2, 2, seed=2)
    w = drawn(2, 3, 3, seed=1).requires_grad_()
    regulariser = PathLength().double()
    for _ in range(2):
        regulariser(draw(w, weight), w, noise).sum().backward()
        assert not regulariser.mean.requires_grad
    lengths = path_lengths(draw(w, weight), w, noise).detach()
    torch.testing.assert_close(regulariser.mean, lengths.mean() * (1 - 0.99**2))


def test_noise_has_the_size_of_a_picture_that_is_wider_than_high() -> None:
    w = torch.zeros(200, 1, 192, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    penalty = PathLength(decay=0.0).double()(w.reshape(-1, 3, 4, 16), w)
    assert float(penalty.detach().mean()) == pytest.approx(3.0, rel=0.02)


def test_hinge_losses_stop_at_the_margin() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -1.0, 2.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx(2.5 / 3 + 3 / 3)
    assert hinge_discriminator(torch.tensor([1.0]), torch.tensor([-1.0])) == 0
    assert hinge_discriminator(real, fake, pictures=3).item() == pytest.approx((2.5 / 3 + 3 / 3) / 3)
    assert hinge_generator(fake).item() == pytest.approx(2 / 3)
