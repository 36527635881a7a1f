"""Laws of schedules of rectangles: squares are themselves, and other shapes have about as many tokens."""

from itertools import pairwise

import pytest
import torch

from star.data.errors import InputError
from star.tiny import tiny_tokenizer
from star.tokenizer.scales import ScaleSchedule, ratio

EMOJI = (1, 2, 3, 4, 5, 6, 8, 16)
# Finest grids (width, height) of Infinity as released (Han et al. 2024), for 16, 32 and 64 cells a side of the square.
INFINITY = {
    "5:4": ((20, 16), (35, 28), (70, 56)),
    "4:3": ((20, 15), (36, 27), (72, 54)),
    "3:2": ((21, 14), (39, 26), (78, 52)),
    "7:4": ((21, 12), (42, 24), (84, 48)),
    "2:1": ((22, 11), (46, 23), (90, 45)),
    "5:2": ((25, 10), (50, 20), (100, 40)),
    "3:1": ((27, 9), (54, 18), (111, 37)),
}
INFINITY_SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)


@pytest.mark.parametrize("sizes", [EMOJI, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (2, 3), (5,)])
def test_a_square_is_the_schedule_of_its_sides(sizes: tuple[int, ...]) -> None:
    schedule = ScaleSchedule(sizes)
    assert schedule.at(sizes[-1], sizes[-1]) == schedule.of_aspect("1:1") == schedule.of_aspect("7:7") == schedule
    assert schedule.grids == tuple((size, size) for size in sizes)
    assert schedule.lengths == tuple(size * size for size in sizes)
    assert schedule.grid == (sizes[-1], sizes[-1])


@pytest.mark.parametrize("aspect", list(INFINITY))
def test_finest_grids_are_those_of_the_released_infinity(aspect: str) -> None:
    for count, (width, height) in zip((7, 10, 13), INFINITY[aspect], strict=True):
        assert ScaleSchedule(INFINITY_SIDES[:count]).grid_of(aspect) == (height, width)


@pytest.mark.parametrize("aspect", ["1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "3:1", "4:1"])
@pytest.mark.parametrize("sizes", [EMOJI, INFINITY_SIDES], ids=["emoji", "infinity"])
def test_rectangles_grow_and_have_about_as_many_tokens(sizes: tuple[int, ...], aspect: str) -> None:
    square = ScaleSchedule(sizes)
    wide = square.of_aspect(aspect)
    assert wide.grids[0] == (sizes[0], sizes[0])
    assert wide.grids[-1] == wide.grid == square.grid_of(aspect)
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(wide.grids))
    assert 0.85 < wide.length / square.length < 1.3
    for (h, w), (most_h, most_w), size in zip(wide.grids[1:], [wide.grid] * 99, sizes[1:], strict=False):
        share = size / sizes[-1]
        assert abs(h - most_h * share) <= 0.5 or h == 1
        assert abs(w - most_w * share) <= 0.5 or w == 1
    width, _, height = aspect.partition(":")
    turned = square.of_aspect(f"{height}:{width}")
    assert turned.grids == tuple((w, h) for h, w in wide.grids)


@pytest.mark.parametrize("aspect", ["", "3", "3:", ":2", "0:1", "3:2:1", "-3:2", "1.5:1", "3x2", "99999999:1", "³:2"])
def test_what_is_no_aspect_is_refused(aspect: str) -> None:
    with pytest.raises(InputError, match="expected width:height"):
        ratio(aspect)
    assert ratio("6:4") == (3, 2)


@pytest.mark.parametrize("grid", [(8, 8), (4, 20), (8, 10), (40, 20), (0, 16), (17, 17)])
def test_grids_out_of_reach_are_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"expected 16 x 16, or a rectangle up to 4:1"):
        ScaleSchedule(EMOJI).at(*grid)


@pytest.mark.parametrize("aspect", ["3:2", "1:3"])
def test_a_rectangle_of_pixels_becomes_codes_and_pixels_again(aspect: str) -> None:
    tokenizer = tiny_tokenizer()
    schedule, cell = tokenizer.schedule.of_aspect(aspect), tokenizer.config.autoencoder.downsampling
    h, w = schedule.grid
    image_B3HW = torch.rand(2, 3, h * cell, w * cell, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pyramid = tokenizer.pyramid(image_B3HW)
    assert [codes.shape[1] for codes in pyramid.codes] == list(schedule.lengths)
    quantizer = tokenizer.quantizer
    torch.testing.assert_close(quantizer.decode(pyramid.codes, schedule=schedule), pyramid.latents[-1])
    assert tokenizer.decode(pyramid.codes, schedule=schedule).shape == image_B3HW.shape
    running, inputs = quantizer.empty_latent(2, schedule), []
    for k, codes_Bl in enumerate(pyramid.codes):
        running, following = quantizer.accumulate(running, codes_Bl, k)
        inputs.append(following)
    assert torch.equal(
        torch.cat([i for i in inputs if i is not None], 1), quantizer.teacher_input(pyramid.codes, schedule)
    )
    # what the codes say lies where the picture has it: the same picture, turned
    turned = tokenizer.schedule.at(w, h)
    codes = [c.view(2, *grid).mT.flatten(1) for c, grid in zip(pyramid.codes, schedule.grids, strict=True)]
    for phi in quantizer.phis:
        assert isinstance(phi, torch.nn.Conv2d)
        phi.weight.copy_((phi.weight + phi.weight.mT) / 2)
    there, back = quantizer.decode(pyramid.codes, schedule=schedule), quantizer.decode(codes, schedule=turned)
    torch.testing.assert_close(there.mT, back)


def test_a_picture_of_another_size_says_what_is_drawn() -> None:
    tokenizer = tiny_tokenizer()
    for size, message in (((9, 8), "multiples of 2"), ((4, 4), "a rectangle up to 4:1"), ((2, 20), "expected 8 x 8")):
        with pytest.raises(InputError, match=message):
            tokenizer.encode(torch.zeros(1, 3, *size))
