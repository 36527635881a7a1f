"""`star rank`: which pictures of a prompt fit it best, by a CLIP that reads both."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.cli import main
from star.data.errors import InputError
from star.data.images import save_png
from star.eval.extractors.extractor import extractor
from star.eval.run.ranking import pictures_in, prompt_of, rank, scorer

DISC, FLAG = "a red circle, twemoji style", "a blue square button, noto emoji style"


def disc(radius: float) -> Tensor:
    """A red disc on white."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    inside_HW = (x - 31.5).square() + (y - 31.5).square() <= radius**2
    colour_311 = torch.tensor([221, 46, 68])[:, None, None]
    return torch.where(inside_HW, colour_311, torch.tensor(255)).to(torch.uint8)


def noise(seed: int) -> Tensor:
    return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of one prompt, of which one fits, two of another, and one that says nothing."""
    told = {
        "a-0": (noise(0), DISC),
        "a-1": (disc(28), DISC),
        "a-2": (noise(1), DISC),
        "b-0": (noise(2), FLAG),
        "b-1": (disc(28)[[2, 1, 0]], FLAG),
    }
    for name, (pixels_3HW, prompt) in told.items():
        save_png(pixels_3HW, tmp_path / "drawn" / f"{name}.png", {"prompt": prompt, "seed": "1"})
    save_png(disc(5), tmp_path / "drawn" / "grid.png")
    return tmp_path / "drawn"


def test_scores_are_the_cosines_and_the_best_comes_first(folder: Path) -> None:
    pictures = [(path, prompt) for path in pictures_in([folder]) if (prompt := prompt_of(path))]
    found = rank(pictures, scorer("clip-emoji"), batch=2)
    assert [(one.prompt, one.rank) for one in found] == [(DISC, 1), (DISC, 2), (DISC, 3), (FLAG, 1), (FLAG, 2)]
    assert found[0].path.name == "a-1.png"
    assert all(one.score >= other.score for one, other in pairwise(found) if other.rank > 1)
    clip = extractor("clip-emoji")
    cosine = (clip(disc(28)[None]) @ clip.texts([DISC]).T).item()  # type: ignore[attr-defined]
    assert found[0].score == pytest.approx(cosine, abs=1e-5)


def test_pictures_of_several_sizes_and_equal_ones_keep_their_order(tmp_path: Path) -> None:
    for name, pixels_3HW in (("a", disc(28)), ("b", disc(28)[:, 8:56]), ("c", disc(28)), ("d", disc(28))):
        save_png(pixels_3HW, tmp_path / f"{name}.png", {"prompt": DISC})
    found = rank([(path, DISC) for path in pictures_in([tmp_path])], scorer("clip-emoji"), batch=3)
    assert [one.path.stem for one in found if one.path.stem != "b"] == ["a", "c", "d"]
    assert [one.rank for one in found] == [1, 2, 3, 4]


def test_the_best_of_each_prompt_are_copied_as_they_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best"
    assert main(["rank", str(folder), "--keep", "1", "--out", str(out), "--json"]) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [(line["prompt"], line["rank"]) for line in lines] == [(DISC, 1), (FLAG, 1)]
    assert lines[0]["path"] == str(out / "a-1.png")
    assert sorted(path.name for path in out.iterdir()) == sorted(Path(line["path"]).name for line in lines)
    for path in out.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert "left out 1 that do not say what they were drawn from" in told.err

    assert main(["rank", str(folder), "--keep", "1", "--out", str(out)]) == 2
    assert "would be written twice" in capsys.readouterr().err


def test_a_prompt_may_be_given_for_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", str(folder), "--prompt", DISC]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    scores = [float(line.split("  ")[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert lines[0].endswith("a-1.png")


def test_what_cannot_be_ranked_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="judge-emoji reads no prompts, expected a CLIP"):
        scorer("judge-emoji")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    save_png(disc(5), tmp_path / "empty-too" / "grid.png")
    for arguments, told in (
        ([str(tmp_path / "nowhere")], "is missing, expected a PNG or a folder of them"),
        ([str(tmp_path / "empty")], "there are no PNGs"),
        ([str(tmp_path / "empty-too")], "none of the pictures says what it was drawn from"),
        ([str(folder / "grid.png")], "does not say what it was drawn from: give that by --prompt"),
        ([str(tmp_path / "text.png")], "cannot be read"),
        ([str(folder), "--keep", "0"], "--keep is 0, expected at least 1"),
        ([str(folder), "--by", "clip-emojo"], "there is no network 'clip-emojo'"),
    ):
        assert main(["rank", *arguments]) == 2
        assert told in capsys.readouterr().err


def test_a_picture_given_twice_counts_once(folder: Path) -> None:
    assert pictures_in([folder, folder / "a-0.png"]) == sorted(folder.glob("*.png"))
