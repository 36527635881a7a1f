"""Augmentations with a gradient: what each does to a pixel, what is drawn, and gradients against finite differences."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.gan.augment.diffaugment import AugmentDraws, augment

ALL = "color,translation,cutout"


def image_of(batch: int = 2, side: int = 16) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(batch, 3, side, side, dtype=torch.float64) * 2 - 1


def neutral(batch: int = 2) -> AugmentDraws:
    """Draws under which colour and translation change nothing."""
    half, none = torch.full((batch,), 0.5), torch.zeros(batch, dtype=torch.int64)
    return AugmentDraws(
        brightness_B=half,
        saturation_B=half,
        contrast_B=half,
        shift_down_B=none,
        shift_right_B=none,
        hole_row_B=none + 8,
        hole_column_B=none + 8,
    )


def test_colour() -> None:
    image_B3HW = image_of()
    torch.testing.assert_close(augment(image_B3HW, "color", neutral()), image_B3HW)
    brighter = augment(image_B3HW, "color", replace(neutral(), brightness_B=torch.tensor([0.5, 1.0])))
    torch.testing.assert_close(brighter[0], image_B3HW[0])
    torch.testing.assert_close(brighter[1], image_B3HW[1] + 0.5)
    grey = augment(image_B3HW, "color", replace(neutral(), saturation_B=torch.zeros(2)))
    torch.testing.assert_close(grey, image_B3HW.mean(dim=1, keepdim=True).expand_as(image_B3HW))
    flat = augment(image_B3HW, "color", replace(neutral(), contrast_B=torch.zeros(2)))
    torch.testing.assert_close(flat.mean(dim=(1, 2, 3)), image_B3HW.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(flat.std(dim=(1, 2, 3)), 0.5 * image_B3HW.std(dim=(1, 2, 3)))


def test_translation_moves_each_picture_by_its_own_way() -> None:
    image_B3HW = image_of()
    draws = replace(neutral(), shift_down_B=torch.tensor([2, 0]), shift_right_B=torch.tensor([-1, 3]))
    moved = augment(image_B3HW, "translation", draws)
    assert torch.equal(moved[0, :, 2:, :-1], image_B3HW[0, :, :-2, 1:])
    assert not moved[0, :, :2].any()
    assert not moved[0, :, :, -1].any()
    assert torch.equal(moved[1, :, :, 3:], image_B3HW[1, :, :, :-3])
    assert not moved[1, :, :, :3].any()


def test_cutout() -> None:
    image_B3HW = torch.ones(3, 3, 16, 20)
    # 16 pixels give a hole of 3, 20 one of 4; the third lies on the corner.
    draws = replace(neutral(3), hole_row_B=torch.tensor([8, 5, 0]), hole_column_B=torch.tensor([8, 2, 20]))
    holes = augment(image_B3HW, "cutout", draws) == 0
    for hole, rows, columns in zip(holes, [(7, 10), (4, 7), (0, 2)], [(6, 10), (0, 4), (18, 20)], strict=True):
        expected = torch.zeros(3, 16, 20, dtype=torch.bool)
        expected[:, slice(*rows), slice(*columns)] = True
        assert torch.equal(hole, expected)


def test_what_is_drawn() -> None:
    torch.manual_seed(0)
    draws = AugmentDraws.of(torch.empty(4000, 3, 16, 20))
    for uniform in (draws.brightness_B, draws.saturation_B, draws.contrast_B):
        assert uniform.min() >= 0
        assert uniform.max() < 1
        assert abs(float(uniform.mean()) - 0.5) < 0.03
    assert draws.shift_down_B.unique().tolist() == list(range(-2, 3))
    assert draws.shift_right_B.unique().tolist() == list(range(-3, 4))  # 2.5 is rounded up
    assert draws.hole_row_B.unique().tolist() == list(range(16))  # a hole of 3 has its middle in a pixel
    assert draws.hole_column_B.unique().tolist() == list(range(21))  # one of 4 between two


def test_randomness_is_that_of_torch() -> None:
    image_B3HW = image_of()
    torch.manual_seed(5)
    one = augment(image_B3HW, ALL)
    other = augment(image_B3HW, ALL)
    torch.manual_seed(5)
    assert torch.equal(one, augment(image_B3HW, ALL))
    assert not torch.equal(one, other)


def test_pictures_are_independent() -> None:
    image_B3HW = image_of(4)
    draws = AugmentDraws.of(image_B3HW)
    together = augment(image_B3HW, ALL, draws)
    for row in range(4):
        names = AugmentDraws.__dataclass_fields__
        own = AugmentDraws(**{name: getattr(draws, name)[row : row + 1] for name in names})
        assert torch.equal(augment(image_B3HW[row : row + 1], ALL, own)[0], together[row])


def test_policies() -> None:
    image_B3HW = image_of()
    assert augment(image_B3HW, "") is image_B3HW
    draws = AugmentDraws.of(image_B3HW)
    assert torch.equal(
        augment(image_B3HW, "translation, cutout", draws),
        augment(augment(image_B3HW, "translation", draws), "cutout", draws),
    )
    with pytest.raises(InputError, match="the augmentation 'colour' was given, expected some of color, translation, "):
        augment(image_B3HW, "colour,cutout")


def test_gradients() -> None:
    image_B3HW = image_of(2, 6).requires_grad_(True)
    draws = AugmentDraws.of(image_B3HW)
    assert torch.autograd.gradcheck(lambda image_B3HW: augment(image_B3HW, ALL, draws), image_B3HW)
