"""Colours by name."""

import pytest
import torch

from star.clip.colours import shares


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 20, 30), "red"),
        ((250, 150, 20), "orange"),
        ((250, 220, 40), "yellow"),
        ((40, 160, 60), "green"),
        ((40, 90, 220), "blue"),
        ((130, 50, 200), "purple"),
        ((240, 100, 180), "pink"),
        ((120, 70, 30), "brown"),
        ((20, 20, 25), "black"),
        ((128, 128, 130), "gray"),
        ((225, 225, 225), "white"),
    ],
)
def test_a_square_on_white_has_its_colour_alone(rgb: tuple[int, int, int], name: str) -> None:
    pixels = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    pixels[0, :, 4:12, 4:12] = torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
    assert shares(pixels) == [{name: 1.0}]


def test_shares_are_of_what_is_not_background() -> None:
    pixels = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    pixels[0, 1:, :8, :8] = 0  # red, a quarter of the picture
    pixels[0, :2, 8:, :8] = 0  # blue, as much
    pixels[1, :, 0, 0] = 0  # one black pixel says nothing
    both, empty = shares(pixels)
    assert both == pytest.approx({"red": 0.5, "blue": 0.5})
    assert empty == {}
