"""The commands that work with a picture or with several: what they write, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import star
from star.cli import main
from star.data.images import read_png
from star.generators.registry import build
from star.pictures.record import Record
from star.pipeline import Pipeline

STAR, GAN = ("--model", "star-test"), ("--model", "styleformer-test")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """A picture that `star sample` drew, in the folder that the test works in."""
    monkeypatch.chdir(tmp_path)
    assert run("sample", "a dog", *STAR, "--seed", 3, "--out", ".") == 0
    capsys.readouterr()
    return "a-dog-3.png"


def cells(path: str | Path, size: int = 8) -> list[list[torch.Tensor]]:
    """The pictures of a sheet, row by row."""
    pixels_3HW = read_png(path)
    rows, columns = ((side + 2) // (size + 2) for side in pixels_3HW.shape[1:])
    step = size + 2
    return [
        [pixels_3HW[:, r * step : r * step + size, c * step : c * step + size] for c in range(columns)]
        for r in range(rows)
    ]


def test_variations_are_a_row_for_each_level(picture: str, capsys: pytest.CaptureFixture) -> None:
    assert run("vary", picture, *STAR, "--keep", "0", "2x2", "4", "--count", 2, "--seed", 5, "--out", "sheet.png") == 0
    assert capsys.readouterr().out == "sheet.png\n"
    sheet = cells("sheet.png")
    pipe = star.load("star-test")
    for row, keep in zip(sheet, ("0", "2x2", "4"), strict=True):
        wanted = pipe.vary(picture, "a dog", keep=keep, num_images=2, seed=5).pixels  # the picture's own prompt
        assert torch.equal(torch.stack(row), wanted)
    assert torch.equal(sheet[2][0], sheet[2][1])  # all scales stay
    record = Record.read("sheet.png")
    assert (record.made_by, record.prompt, record.more["keep"]) == ("vary", "a dog", ["0", "2x2", "4"])
    assert run("sample", "--like", "sheet.png") == 2
    assert "was made by `star vary`" in capsys.readouterr().err


def test_all_levels_are_a_row_each(picture: str) -> None:
    assert run("vary", picture, *STAR, "--keep", "all", "--out", "all.png") == 0
    assert [len(row) for row in cells("all.png")] == [1, 1, 1, 1]


def test_without_a_name_nothing_is_written_over(picture: str, capsys: pytest.CaptureFixture) -> None:
    for name in ("variation.png", "variation-2.png"):
        assert run("vary", picture, "a cat", *STAR, "--strength", 0.5) == 0
        assert capsys.readouterr().out == f"pictures/{name}\n"
    assert torch.equal(read_png("pictures/variation.png"), read_png("pictures/variation-2.png"))


def test_inpainting_by_a_mask_and_by_a_box_is_the_same(picture: str, capsys: pytest.CaptureFixture) -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[0:4, 2:8] = 255
    Image.fromarray(mask).save("mask.png")
    assert run("inpaint", picture, "a cat", *STAR, "--mask", "mask.png", "--out", "by-mask.png") == 0
    assert run("inpaint", picture, "a cat", *STAR, "--box", "2,0,6,4", "--out", "by-box.png", "--count", 2) == 0
    drawn, before = read_png("by-mask.png"), read_png(picture)
    assert torch.equal(cells("by-box.png")[0][0], drawn)
    assert torch.equal(drawn[:, mask == 0], before[:, mask == 0])
    assert not torch.equal(drawn, before)


def test_outpainting(picture: str, capsys: pytest.CaptureFixture) -> None:
    assert run("outpaint", picture, *STAR, "--margin", 0.25, "--zoom", 2, "--out", "around.png") == 0
    assert read_png("around.png").shape == (3, 16, 16)
    wanted = star.load("star-test").outpaint(picture, "a dog", margin=0.25, seed=0).pixels[0]
    assert torch.equal(read_png("around.png")[:, ::2, ::2], wanted)


@pytest.mark.parametrize("model", [STAR, GAN], ids=str)
def test_a_morph_is_a_strip_and_a_film(
    model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("morph", "a dog", "a cat", "--seeds", 1, 7, "--frames", 4, *model, "--back") == 0
    assert capsys.readouterr().out == "pictures/morph.png\npictures/morph.gif\n"
    frames = Pipeline(build(model[1])).morph(["a dog", "a cat"], seeds=[1, 7], frames=4)
    strip = cells("pictures/morph.png", frames[0].width)[0]
    assert len(strip) == 6
    for cell, frame in zip(strip, frames, strict=False):
        assert np.array_equal(cell.permute(1, 2, 0).numpy(), np.asarray(frame))
    with Image.open("pictures/morph.gif") as film:
        assert film.n_frames == 6  # type: ignore[attr-defined]
        assert film.size == frames[0].size
        assert film.info["loop"] == 0
        close = np.asarray(film.convert("RGB")).astype(int) - np.asarray(frames[0])
        assert abs(close).mean() < 12


def test_a_film_of_growth(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("grow", "a dog", *STAR, "--seed", 3, "--out", tmp_path / "g.png", tmp_path / "g.gif", "--zoom", 3) == 0
    assert read_png(tmp_path / "g.png").shape == (3, 24, 4 * 26 - 2)
    assert torch.equal(read_png(tmp_path / "g.png")[:, ::3, -24::3], star.load("star-test")("a dog", seed=3).pixels[0])


def test_attention_is_a_row_for_each_word(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ("attend", "a red dog", *STAR, "--out", tmp_path / "a.png", "--word")
    assert run(*command, "red", "dog") == 0
    assert [len(row) for row in cells(tmp_path / "a.png")] == [4, 4, 4]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("red: at most 1x1 0.")
    assert told[1].startswith("dog: at most")
    assert run(*command, "cat") == 2
    assert "the word 'cat' was asked for, expected one of the prompt: a, red, dog" in capsys.readouterr().err


def test_a_sheet_of_mixed_styles(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "mix.png"
    assert run("mix", "a dog", *GAN, "--coarse", 1, 2, "--fine", 3, 4, 5, "--slot", 2, "--out", out) == 0
    sheet, pipe = cells(out, 16), Pipeline(build("styleformer-test"))
    assert [len(row) for row in sheet] == [4, 4, 4]
    for column, seed in enumerate((3, 4, 5), 1):
        assert torch.equal(sheet[0][column], pipe("a dog", seed=seed).pixels[0])
    for row, seed in enumerate((1, 2), 1):
        assert torch.equal(sheet[row][0], pipe("a dog", seed=seed).pixels[0])
    inner = pipe.mix("a dog", coarse_seed=2, fine_seed=5, slot=2)
    assert np.array_equal(sheet[2][3].permute(1, 2, 0).numpy(), np.asarray(inner))


@pytest.mark.parametrize("method", ["pca", "sefa"])
def test_directions(method: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ("directions", "a dog", *GAN, "--method", method, "--seed", 3, "--out", tmp_path / "d.png")
    plain = Pipeline(build("styleformer-test"))("a dog", seed=3).pixels[0]
    assert run(*command, "--count", 2, "--steps", 5) == 0
    sheet = cells(tmp_path / "d.png", 16)
    assert [len(row) for row in sheet] == [5, 5]
    assert torch.equal(sheet[1][2], plain)  # the middle is not moved
    assert capsys.readouterr().out.startswith("direction 0: ")
    assert run(*command, "--direction", 1, "--strength", 0) == 0
    assert torch.equal(read_png(tmp_path / "d.png"), plain)
    assert run(*command, "--direction", 1, "--strength", 3, "--slots", "0:2") == 0
    assert not torch.equal(read_png(tmp_path / "d.png"), plain)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pipes that the package leaves open
def test_mp4_where_ffmpeg_is_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    assert run("grow", "a dog", *STAR, "--zoom", 3, "--seconds", 0.1, "--out", tmp_path / "g.mp4") == 0
    reader = ffmpeg.read_frames(str(tmp_path / "g.mp4"))
    about = next(reader)
    reader.close()
    assert about["size"] == (24, 24)
    assert about["fps"] == 10


def test_mp4_without_ffmpeg_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert run("grow", "a dog", *STAR, "--out", tmp_path / "g.mp4") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install imageio-ffmpeg" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vary", "nowhere.png"), "Cannot read nowhere.png"),
        (("vary", "a-dog-3.png", "--keep", "5x5"), "expected a grid of this model"),
        (("vary", "a-dog-3.png", "--keep", "1", "--strength", "0.5"), "both given"),
        (("vary", "a-dog-3.png", "--truncation", "0.5"), "truncation was given to a model that has no use for it"),
        (("vary", "a-dog-3.png", "--out", "x.jpg"), "expected a name that ends with .png"),
        (("vary", "a-dog-3.png", "--out", "x.gif"), "expected a name that ends with .png"),
        (("vary", "a-dog-3.png", "--model", "stylenat-test"), "no next-scale model"),
        (("inpaint", "a-dog-3.png"), "one of the arguments --mask --box is required"),
        (("inpaint", "a-dog-3.png", "--box", "1,2,3"), "--box is '1,2,3', expected left, top, width and height"),
        (("inpaint", "a-dog-3.png", "--box", "9,0,3,3"), "of a picture of 8 x 8"),
        (("outpaint", "a-dog-3.png", "--margin", "0.5"), "margin is 0.5"),
        (("morph", "a dog"), "1 prompts and 1 seeds were given"),
        (("morph", "a", "b", "--frames", "1"), "--frames is 1"),
        (("morph", "1", "2", "--model", "var-test"), "expected a STAR model or a style-based GAN"),
        (("grow", "a dog", "--seconds", "0"), "--seconds is 0.0"),
        (("grow", "a dog", "--model", "styleformer-test"), "no next-scale model"),
        (("mix", "a dog"), "no style-based GAN"),
        (("mix", "a dog", "--model", "stylenat-test", "--slot", "99"), "the slot is 99"),
        (("directions", "a dog"), "no style-based GAN"),
        (("directions", "a dog", "--model", "stylenat-test", "--slots", "x"), "--slots is 'x'"),
        (("directions", "a dog", "--strength", "nan"), "--strength is nan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], message: str, picture: str, capsys: pytest.CaptureFixture
) -> None:
    model = () if "--model" in arguments else STAR
    try:
        code = run(*arguments, *model)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("pictures").exists()
