"""Adaptive augmentation: how the probability moves, what each operation does to pixels, two orders of derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.generators.gan.augment.ada import AdaptiveAugment
from star.generators.gan.augment.ada_images import (
    double_size,
    halve_size,
    low_pass,
    move,
    recolour,
    rotation,
    scaling,
    translation,
)
from star.generators.gan.augment.ada_operations import COLOURS, GROUPS, MOVES, NAMES, Chance, operations_of
from star.generators.gan.losses import r1_penalty

OPERATION = dict(MOVES + COLOURS)


def image_of(batch: int = 2, side: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(batch, 3, side, side, dtype=dtype) * 2 - 1


def smooth_of(batch: int = 2, side: int = 32) -> Tensor:
    """Pictures without fine detail, which resampling leaves as they are but for a little."""
    torch.manual_seed(0)
    coarse = torch.rand(batch, 3, 4, 4, dtype=torch.float64) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bicubic")


# ---- the probability


def test_the_probability_follows_the_discriminator() -> None:
    augment = AdaptiveAugment(target=0.6, pictures=1000, every=4)
    for _ in range(3):
        augment.observe(torch.tensor(0.9), pictures=10)
        assert float(augment.probability) == 0  # it waits for the fourth
    augment.observe(0.9, pictures=10)
    assert float(augment.probability) == pytest.approx(0.04)
    for _ in range(8):
        augment.observe(1.0, pictures=10)
    assert float(augment.probability) == pytest.approx(0.12)
    for sign in (1.0, 1.0, 0.0, 0.0):  # a mean of 0.5 is below the target
        augment.observe(sign, pictures=10)
    assert float(augment.probability) == pytest.approx(0.08)
    for _ in range(4 * 4):
        augment.observe(-1.0, pictures=10)
    assert float(augment.probability) == 0


def test_the_probability_has_a_limit() -> None:
    augment = AdaptiveAugment(pictures=100, every=1, limit=0.7)
    for _ in range(20):
        augment.observe(1.0, pictures=10)
    assert float(augment.probability) == pytest.approx(0.7)


def test_a_run_resumes_in_the_middle_of_an_interval() -> None:
    first, other = (AdaptiveAugment(pictures=100, every=4, probability=0.2) for _ in range(2))
    for sign in (1.0, 0.4, 0.9):
        first.observe(sign, pictures=3)
    other.load_state_dict(first.state_dict())
    for augment in (first, other):
        augment.observe(0.8, pictures=3)
    assert float(other.probability) == float(first.probability) == pytest.approx(0.2 + 0.12)


def test_nothing_happens_at_first() -> None:
    image_B3HW = image_of()
    assert AdaptiveAugment()(image_B3HW) is image_B3HW


def test_randomness_is_that_of_torch() -> None:
    image_B3HW, augment = image_of(), AdaptiveAugment(probability=0.8)
    torch.manual_seed(1)
    one, other = augment(image_B3HW), augment(image_B3HW)
    torch.manual_seed(1)
    assert torch.equal(one, augment(image_B3HW))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("probability", [0.3, 0.9])
def test_each_operation_strikes_as_often_as_it_should(probability: float) -> None:
    image_B3HW = torch.empty(4000, 3, 16, 16)
    torch.manual_seed(0)
    chance = Chance(image_B3HW, torch.tensor(probability))
    for name, operation in MOVES + COLOURS:
        matrices = operation(chance).expand(4000, -1, -1)
        struck = (matrices - torch.eye(matrices.shape[1])).abs().amax(dim=(1, 2)) > 1e-6
        # Half of the flips, a quarter of the turns and some of the shifts leave the picture where it was.
        visible = {"xflip": 0.5, "lumaflip": 0.5, "rotate90": 0.75, "xint": 1 - 0.25**2}.get(name, 1.0)
        expected = 1 - math.sqrt(1 - probability) if name == "rotate" else probability * visible
        assert abs(float(struck.float().mean()) - expected) < 0.04, name


def test_pictures_are_moved_each_by_its_own_draw() -> None:
    image_B3HW = image_of(1).expand(6, -1, -1, -1)
    torch.manual_seed(0)
    moved_B3HW = AdaptiveAugment(["bgc"], probability=1.0)(image_B3HW)
    for i in range(6):
        for j in range(i):
            assert not torch.allclose(moved_B3HW[i], moved_B3HW[j], atol=1e-2)


# ---- what operations do


class Given(Chance):
    """Always strikes, with the same number for every draw."""

    def __init__(self, image_B3HW: Tensor, number: float) -> None:
        super().__init__(image_B3HW, torch.ones(()))
        self.number = number

    def uniform(self, low: float, high: float) -> Tensor:
        return self.image.new_full((len(self.image),), self.number)

    def normal(self, deviation: float) -> Tensor:
        return self.uniform(0, 1)

    def strikes(self, probability: Tensor | None = None) -> Tensor:
        return self.image.new_ones(len(self.image))


def moved(name: str, number: float, image_B3HW: Tensor) -> Tensor:
    inverse_B33 = OPERATION[name](Given(image_B3HW, number)).expand(len(image_B3HW), -1, -1)
    return move(image_B3HW, inverse_B33, low_pass().double())


def recoloured(name: str, number: float, image_B3HW: Tensor) -> Tensor:
    return recolour(image_B3HW, OPERATION[name](Given(image_B3HW, number)))


def test_flips_and_quarter_turns() -> None:
    image_B3HW = smooth_of()
    torch.testing.assert_close(moved("xflip", 1.2, image_B3HW), image_B3HW.flip(3), rtol=0, atol=4e-2)
    torch.testing.assert_close(moved("xflip", 0.9, image_B3HW), image_B3HW, rtol=0, atol=4e-2)
    for quarters in range(4):
        turned = moved("rotate90", quarters + 0.5, image_B3HW)
        fits = [turns for turns in range(4) if torch.allclose(turned, image_B3HW.rot90(turns, (2, 3)), atol=6e-2)]
        assert fits == [quarters]


def test_shifts_are_mirrored_at_the_border() -> None:
    image_B3HW = smooth_of()
    for name, number in (("xint", 0.1), ("xfrac", 3 / 32)):  # 3.2 pixels are rounded to 3
        shifted = moved(name, number, image_B3HW)
        torch.testing.assert_close(shifted[:, :, 3:, 3:], image_B3HW[:, :, :-3, :-3], rtol=0, atol=3e-2)
        torch.testing.assert_close(shifted[:, :, 3:, :3], image_B3HW[:, :, :-3, 1:4].flip(3), rtol=0, atol=3e-2)
    assert not torch.allclose(moved("xfrac", 0.1, image_B3HW), moved("xint", 0.1, image_B3HW), atol=1e-2)


def test_scale_and_stretch() -> None:
    image_B3HW = smooth_of(side=33)
    larger = moved("scale", 1.0, image_B3HW)  # an octave: the middle half fills the picture
    torch.testing.assert_close(larger[:, :, ::2, ::2], image_B3HW[:, :, 8:25, 8:25], rtol=0, atol=5e-2)
    stretched = moved("aniso", 1.0, image_B3HW)  # wider by two, lower by two
    torch.testing.assert_close(stretched[:, :, 10:23, ::2], image_B3HW[:, :, 4:29:2, 8:25], rtol=0, atol=5e-2)


def test_turns_by_any_angle_add_up() -> None:
    image_B3HW = smooth_of(side=64)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64, dtype=torch.float64)] * 2, indexing="ij")
    inside = (x**2 + y**2) < 0.7  # what never leaves the picture
    once = moved("rotate", math.pi / 3, image_B3HW)
    thrice = moved("rotate", math.pi / 3, moved("rotate", math.pi / 3, once))
    assert (thrice - image_B3HW.flip(2, 3))[:, :, inside].abs().max() < 0.1
    assert (once - image_B3HW)[:, :, inside].abs().max() > 0.3


def test_colours() -> None:
    image_B3HW = image_of()
    grey_B1HW = image_B3HW.mean(dim=1, keepdim=True)
    torch.testing.assert_close(recoloured("brightness", 0.3, image_B3HW), image_B3HW + 0.3)
    torch.testing.assert_close(recoloured("contrast", 1.0, image_B3HW), 2 * image_B3HW)
    torch.testing.assert_close(recoloured("saturation", 1.0, image_B3HW), grey_B1HW + 2 * (image_B3HW - grey_B1HW))
    torch.testing.assert_close(recoloured("lumaflip", 1.2, image_B3HW), image_B3HW - 2 * grey_B1HW)
    third = recoloured("hue", 2 * math.pi / 3, image_B3HW)  # a third of a turn moves each colour to the next
    torch.testing.assert_close(third, image_B3HW.roll(1, dims=1))


def test_operations_follow_in_their_order() -> None:
    """At one quantile, all together equal one after the other, moves as one matrix."""
    image_B3HW, quantile = image_of(side=12), 0.7
    found = AdaptiveAugment(["bgc"], probability=1.0)(image_B3HW, quantile=quantile)
    chance = Chance(image_B3HW, torch.ones(()), quantile)
    inverse_B33 = torch.eye(3, dtype=torch.float64)
    for _, operation in MOVES:
        inverse_B33 = inverse_B33 @ operation(chance)
    expected = move(image_B3HW, inverse_B33, low_pass().double())
    for _, operation in COLOURS:
        expected = recolour(expected, operation(chance))
    torch.testing.assert_close(found, expected)


def test_names() -> None:
    assert operations_of(["bgc"]) == NAMES == operations_of(list(reversed(NAMES)))
    assert operations_of(["hue", "b"]) == (*GROUPS["b"], "hue")
    assert operations_of([]) == ()
    image_B3HW = image_of()
    assert torch.equal(AdaptiveAugment([], probability=1.0)(image_B3HW), image_B3HW)
    with pytest.raises(InputError, match="there is no augmentation flip, expected some of xflip, "):
        AdaptiveAugment(["flip"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 0.8, "limit": 0.7}, "begins with a probability of 0.8 and is limited to 0.7"),
        ({"limit": 1.5}, "is limited to 1.5, expected two from 0 to 1"),
        ({"pictures": 0}, "at a pace of 0 pictures, expected at least 1"),
        ({"every": 0}, "moves every 0 observations"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptiveAugment(**settings)


def test_what_text_speaks_of_is_left_alone() -> None:
    """Neither colours nor left and right: an arrow still points where its caption says."""
    image_B3HW = torch.zeros(20, 3, 32, 32, dtype=torch.float64)
    image_B3HW[:, 0, :, :16] = 1.0  # red at the left
    torch.manual_seed(0)
    moved_B3HW = AdaptiveAugment(["text"], probability=1.0)(image_B3HW)
    assert not moved_B3HW[:, 1:].any()
    assert (moved_B3HW[:, 0, :, :16].sum(dim=(1, 2)) > moved_B3HW[:, 0, :, 16:].sum(dim=(1, 2))).all()


# ---- resampling and derivatives


def test_sizes_of_resampling() -> None:
    image_B3HW, taps_k = image_of(side=10), low_pass().double()
    double = double_size(image_B3HW, taps_k)
    assert double.shape == (2, 3, 20, 20)
    assert halve_size(double, taps_k).shape == (2, 3, 5, 5)
    flat = torch.ones(1, 1, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(double_size(flat, taps_k)[..., 12:-12, 12:-12], torch.ones(1, 1, 24, 24).double())


def test_matrices_of_the_plane() -> None:
    like = torch.empty(0, dtype=torch.float64)
    point = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert (translation(3, -1, like) @ point).tolist() == [5, 0, 1]
    assert (scaling(2, 5, like) @ point).tolist() == [4, 5, 1]
    turned = rotation(torch.tensor([math.pi / 2], dtype=torch.float64), like) @ point
    torch.testing.assert_close(turned, torch.tensor([[-1.0, 2.0, 1.0]], dtype=torch.float64))


def test_derivatives_of_two_orders() -> None:
    """Through every operation, in float64 against finite differences, as R1 takes them."""
    image_B3HW = image_of(side=6).requires_grad_()
    augment = AdaptiveAugment(["bgc"], probability=1.0)

    def changed(image_B3HW: Tensor) -> Tensor:
        torch.manual_seed(4)
        return augment(image_B3HW)

    assert torch.autograd.gradcheck(changed, image_B3HW, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: changed(x).square(), image_B3HW, fast_mode=True)


def test_r1_sees_through_the_augmentation() -> None:
    """Its gradient in the weights of a discriminator behind the augmentation."""
    image_B3HW = image_of(side=6).requires_grad_()
    augment = AdaptiveAugment(["bgc"], probability=1.0)
    weight = torch.randn(3 * 36, 2, dtype=torch.float64, requires_grad=True)

    def penalty(weight: Tensor) -> Tensor:
        torch.manual_seed(4)
        logits = torch.tanh(augment(image_B3HW).flatten(1) @ weight)
        return r1_penalty(logits, image_B3HW)

    assert torch.autograd.gradcheck(penalty, weight, fast_mode=True)
    plain = r1_penalty(torch.tanh(image_B3HW.flatten(1) @ weight), image_B3HW)
    assert not torch.allclose(plain, penalty(weight))
