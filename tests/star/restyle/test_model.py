"""A restyler comes back from its folder as it was, and refuses what it was not taught."""

import json
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.generators.pretrained import write
from star.restyle.model import Restyler, RestylerConfig
from star.restyle.network import RestyleConfig, RestyleNetwork, restyle_loss
from tests.star.restyle.drawings import PAIR, SIDE, draw

NETWORK = RestyleConfig(styles=("colour", "negative", "pale"), widths=(8, 16), blocks=(1, 2), style_width=8)
CONFIG = RestylerConfig(pairs=(PAIR,), network=NETWORK, resolution=SIDE)


@pytest.fixture
def restyler() -> Restyler:
    """With weights that make every part of it count."""
    torch.manual_seed(0)
    network = RestyleNetwork(NETWORK).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Restyler(CONFIG, network)


def test_it_comes_back_with_the_same_pixels(restyler: Restyler, tmp_path: Path) -> None:
    pixels_B3HW = torch.stack([draw(name, "colour") for name in ("a", "b", "c")])
    given = ["colour", "pale", "colour"]
    restyler.save(tmp_path / "model", card="# A restyler\n")
    loaded = Restyler.from_directory(tmp_path / "model")
    drawn_B3HW = loaded.redraw(pixels_B3HW, given, "negative")
    assert drawn_B3HW.dtype == torch.uint8
    assert torch.equal(drawn_B3HW, restyler.redraw(pixels_B3HW, given, "negative"))
    assert loaded.digest == restyler.digest
    assert loaded.config == CONFIG
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    assert described["family"] == "restyler"
    assert described["config"]["pairs"] == [PAIR]
    assert described["config"]["network"]["styles"] == ["colour", "negative", "pale"]


def test_a_picture_is_the_same_in_any_company_and_the_styles_tell(restyler: Restyler) -> None:
    pixels_B3HW = torch.stack([draw(name, "colour") for name in ("a", "b", "c")])
    together = restyler.redraw(pixels_B3HW, ["colour"] * 3, "negative")
    for place in range(3):
        assert torch.equal(
            together[place : place + 1], restyler.redraw(pixels_B3HW[place, None], ["colour"], "negative")
        )
    assert not torch.equal(together, restyler.redraw(pixels_B3HW, ["pale"] * 3, "negative"))


def test_pictures_of_any_size_and_none_at_all(restyler: Restyler) -> None:
    large_B3HW = torch.full((2, 3, 40, 30), 200, dtype=torch.uint8)
    small_B3HW = torch.full((2, 3, SIDE, SIDE), 200, dtype=torch.uint8)
    drawn = [restyler.redraw(given, ["pale"] * 2, "negative") for given in (large_B3HW, small_B3HW)]
    assert torch.equal(*drawn)
    assert restyler.redraw(large_B3HW[:0], [], "negative").shape == (0, 3, SIDE, SIDE)


def test_styles_it_was_not_taught_are_refused(restyler: Restyler) -> None:
    pixels_B3HW = draw("a", "colour")[None]
    for given, wanted in (("negative", "colour"), ("negative", "negative"), ("noto", "negative"), ("colour", "noto")):
        with pytest.raises(InputError, match=f"of style {given} were to be redrawn in style {wanted}.*colour.pale>neg"):
            restyler.redraw(pixels_B3HW, [given], wanted)
    with pytest.raises(ValueError, match="2 styles of 1 pictures"):
        restyler.redraw(pixels_B3HW, ["colour"] * 2, "negative")
    with pytest.raises(ValueError, match=r"expected torch\.uint8"):
        restyler.redraw(pixels_B3HW.float(), ["colour"], "negative")


def test_configs_that_do_not_suit_are_refused() -> None:
    with pytest.raises(InputError, match="resolution is 15, expected a multiple of 2"):
        RestylerConfig(pairs=(PAIR,), network=NETWORK, resolution=15)
    with pytest.raises(InputError, match=r"network\.styles lacks noto"):
        RestylerConfig(pairs=("noto>negative",), network=NETWORK)
    for wrong, message in (
        ({"widths": (8, 12)}, "multiples of 8"),
        ({"widths": (8,)}, "1 widths and 2 numbers of blocks"),
        ({"blocks": (0, 1)}, "blocks is .*expected at least 1"),
        ({"styles": ("a", "a")}, "expected different names"),
    ):
        with pytest.raises((InputError, ValueError), match=message):
            RestyleConfig(**({"widths": (8, 8), "blocks": (1, 1)} | wrong))


def test_another_family_and_lost_weights_are_refused(restyler: Restyler, tmp_path: Path) -> None:
    write(tmp_path / "other", family="judge", config={}, tensors={}, card="")
    with pytest.raises(InputError, match="holds a judge, expected a restyler"):
        Restyler.from_directory(tmp_path / "other")
    restyler.save(tmp_path / "model", card="")
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    described["config"]["network"]["widths"] = [8, 24]
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"expected|shape"):
        Restyler.from_directory(tmp_path / "model")


def test_the_loss_is_least_at_the_true_picture() -> None:
    image_B3HW = torch.where(torch.rand(1, 3, 8, 8) < 0.5, -1.0, 1.0)
    true, half, wrong = (restyle_loss(scale * image_B3HW, image_B3HW) for scale in (20.0, 0.0, -20.0))
    assert true < 1e-6
    assert half == pytest.approx(0.6931 + 0.5, abs=1e-3)
    assert wrong > 20


def test_sharpness_decides_what_the_network_doubts(restyler: Restyler) -> None:
    pixels_B3HW = draw("tree", "colour")[None]
    grey, sharp, sharpest = (
        restyler.redraw(pixels_B3HW, ["colour"], "negative", sharpness=sharpness).float() - 127.5
        for sharpness in (0.5, 1, 100)
    )
    assert (grey.sign() == sharp.sign()).all()
    assert grey.abs().mean() < sharp.abs().mean() < sharpest.abs().mean()
    with pytest.raises(InputError, match="sharpness"):
        restyler.redraw(pixels_B3HW, ["colour"], "negative", sharpness=0)
