"""Style, outline and colour of drawn pictures against those of the real ones."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.images import save_png
from star.eval.metrics.similarity import SIDE, by_classifier, colours, main, measure, named, outlines, overlap, style


def square(left: int, colour: tuple[int, int, int], side: int = SIDE) -> Tensor:
    """Half of the height and a quarter of the width of a white picture."""
    pixels_3HW = torch.full((3, side, side), 255, dtype=torch.uint8)
    pixels_3HW[:, : side // 2, left : left + side // 4] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return pixels_3HW


def darkest(pixels_N3SS: Tensor) -> Tensor:
    """1 for pictures with something black."""
    return (pixels_N3SS.amax(dim=1).amin(dim=(1, 2)) < 20).long()


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Three pictures of one style in three places, and one of another style."""
    meta = {}
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]):
        meta[f"p{number}"] = {
            "category": "things",
            "prompt": f"thing {number}, {'plain' if number < 3 else 'dark'} style",
        }
        save_png(square(16 * number, colour, 2 * SIDE), tmp_path / "real" / "things" / f"p{number}.png")
    (tmp_path / "real" / "meta_data.json").write_text(json.dumps(meta))
    return tmp_path / "real"


def test_outlines_are_what_is_not_white() -> None:
    pictures = torch.stack([square(0, (250, 0, 250)), square(8, (0, 0, 0)), torch.full((3, SIDE, SIDE), 255).byte()])
    shapes_NSS = outlines(pictures)
    assert shapes_NSS.sum(dim=(1, 2)).tolist() == [SIDE * SIDE // 8] * 2 + [0]
    assert overlap(shapes_NSS, shapes_NSS).tolist() == [1, 1, 0]
    assert overlap(shapes_NSS[:1], shapes_NSS[1:2]).item() == pytest.approx(1 / 3)
    torch.testing.assert_close(colours(pictures) * 255, torch.tensor([[250.0, 0, 250], [0, 0, 0], [0, 0, 0]]))


def test_the_style_is_behind_the_last_comma() -> None:
    assert style("a red, round apple, noto emoji style") == "noto emoji style"
    assert style("an apple") == "an apple"


def test_a_style_is_named_as_most_of_its_real_pictures_are() -> None:
    styles = ["plain", "dark", "plain", "plain", "dark"]
    found = named(torch.tensor([4, 4, 7]), torch.tensor([4, 7, 4, 5, 7]), [0, 1, 3], styles)
    assert found["style named"].tolist() == [1, 0, 0]
    assert found["style named, real ones"].tolist() == [1, 1, 0]


def test_only_a_judge_names_styles() -> None:
    with pytest.raises(InputError, match="clip-emoji names no styles"):
        by_classifier("clip-emoji")
    assert by_classifier("judge-emoji")(square(0, (9, 9, 9)).expand(70, -1, -1, -1)).shape == (70,)


def test_the_real_pictures_themselves_are_nearest(benchmark: Path, tmp_path: Path) -> None:
    for number in range(3):
        drawn = square(8 * number, [(255, 0, 0), (0, 255, 0), (0, 0, 255)][number])
        save_png(drawn, tmp_path / "record" / "pictures" / f"p{number}.png")
    found = measure(tmp_path / "record.json", benchmark, darkest)
    assert {len(values_N) for values_N in found.values()} == {3}  # the fourth has no other of its style
    assert found["style named"].tolist() == [1, 1, 1]
    assert found["outline overlap"].min() > 0.9
    assert found["outline overlap, others of the style"].max() < 0.5
    assert found["outline overlap, nearer than those"].tolist() == [1, 1, 1]
    assert found["colour difference"].max() < 0.05
    assert found["colour difference, nearer than those"].tolist() == [1, 1, 1]


def test_the_wrong_picture_is_not_the_nearest(benchmark: Path, tmp_path: Path) -> None:
    for number in range(3):
        save_png(square(8, (0, 255 * (number != 2), 0)), tmp_path / "record" / "pictures" / f"p{number}.png")
    found = measure(tmp_path / "record.json", benchmark, darkest)
    assert found["style named"].tolist() == [1, 1, 0]
    assert found["outline overlap, nearer than those"][1] == 1
    assert found["outline overlap, nearer than those"][[0, 2]].max() < 1
    assert found["colour difference"][0] > 0.3


def test_the_command_prints_means_with_intervals(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        save_png(square(8 * number, (0, 0, 0)), tmp_path / "record" / "pictures" / f"p{number}.png")
    assert main([str(tmp_path / "record.json"), "--benchmark", str(benchmark)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 pictures\n")
    assert "outline overlap, nearer than those         1.000 (no interval)" in said


def test_a_record_without_pictures_is_refused(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "record.json"), "--benchmark", str(benchmark)]) == 2
    assert "holds no two pictures of one style" in capsys.readouterr().err
