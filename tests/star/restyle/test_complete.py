"""Made pictures fill what a style lacks, say what they were made of, and repeat nothing that is there."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from star.cli import main
from star.data.errors import InputError
from star.data.images import pil_to_pixels
from star.data.shards.check import check
from star.data.shards.tar import read_shard
from star.restyle.complete import complete
from star.restyle.model import Restyler, RestylerConfig
from star.restyle.network import RestyleConfig, RestyleNetwork
from tests.star.restyle.drawings import PAIR, SIDE, draw, sample, write

STYLES = ("colour", "negative", "pale")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("restyler") / "model"
    torch.manual_seed(0)
    network = RestyleConfig(styles=STYLES, widths=(8, 8), blocks=(1, 1), style_width=8)
    config = RestylerConfig(pairs=(PAIR,), network=network, resolution=SIDE)
    Restyler(config, RestyleNetwork(network)).save(path, card="")
    return path


def made(out: Path) -> dict[str, tuple[dict[str, Any], torch.Tensor]]:
    """Records and pixels by key."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        for group in read_shard(str(path), []):
            assert list(group.members) == ["webp", "json"]
            picture, described = (group.members[name] for name in ("webp", "json"))
            assert isinstance(picture, bytes)
            assert isinstance(described, bytes)
            found[group.key] = json.loads(described), pil_to_pixels(Image.open(io.BytesIO(picture)))
    return found


def test_what_is_missing_is_made_once_and_says_of_what(model: Path, tmp_path: Path) -> None:
    there = [sample("sun", style) for style in STYLES]
    several = [sample("tree", "pale"), sample("tree", "colour"), sample("moon", "pale")]
    data = write(tmp_path / "data", "train", [*there, *several])
    report = complete([str(data)], model, tmp_path / "out")
    assert report.written == {"negative": 2}
    assert report.held_out == {"negative": 0}
    found = made(tmp_path / "out")
    assert list(found) == ["negative-of-colour-tree", "negative-of-pale-moon"], "the first source style goes first"
    restyler = Restyler.from_directory(model)
    described, pixels_3HW = found["negative-of-colour-tree"]
    assert described == {
        "caption": "a tree, negative emoji style",
        "captions": ["a tree, negative emoji style", "tree, tag, negative emoji style"],
        "subject": "tree",
        "style": "negative",
        "category": "things",
        "tags": ["tag"],
        "codepoints": "TREE",
        "license": "CC0-1.0",
        "source": "the colour set",
        "made_from": "colour-tree",
        "made_by": f"restyle {restyler.digest} sharpness 2",
    }
    assert torch.equal(pixels_3HW, restyler.redraw(draw("tree", "colour")[None], ["colour"], "negative")[0])
    assert check([str(tmp_path / "out")]).ok
    with pytest.raises(InputError, match="nothing is missing"):
        complete([str(data), str(tmp_path / "out")], model, tmp_path / "again")


def test_held_out_pictures_are_not_redrawn_and_their_combinations_are_told(model: Path, tmp_path: Path) -> None:
    known = [sample(name, "colour") for name in ("sun", "tree", "moon")] + [sample("moon", "pale")]
    data = write(tmp_path / "data", "train", [*known, sample("moon", "negative")])
    write(data, "test", [sample("sun", "negative"), sample("comet", "colour")])
    report = complete([str(data)], model, tmp_path / "out")
    assert {record["subject"] for record, _ in made(tmp_path / "out").values()} == {"sun", "tree"}
    assert report.held_out == {"negative": 1}
    assert "1 of negative are of subjects whose picture in that style is held out" in report.text()
    report = complete([str(data)], model, tmp_path / "less", without_held_out=True)
    assert {record["subject"] for record, _ in made(tmp_path / "less").values()} == {"tree"}
    assert report.written == {"negative": 1}
    assert "held out" not in report.text()


def test_pictures_without_a_skin_tone_are_preferred(model: Path, tmp_path: Path) -> None:
    both = [sample("hand", "colour", "dark"), sample("hand", "pale"), sample("sun", "negative")]
    toned = [sample("face", "colour", "dark"), sample("face", "pale", "light")]
    data = write(tmp_path / "data", "train", [*both, *toned])
    assert complete([str(data)], model, tmp_path / "out").written == {"negative": 1}
    assert list(made(tmp_path / "out")) == ["negative-of-pale-hand"]
    toned_target = write(tmp_path / "toned", "train", [*both, *toned, sample("foot", "negative", "dark")])
    assert complete([str(toned_target)], model, tmp_path / "more").written == {"negative": 2}
    found = made(tmp_path / "more")
    assert list(found) == ["negative-of-pale-hand", "negative-of-colour-face-dark"]
    assert found["negative-of-colour-face-dark"][0]["skin_tone"] == "dark"


def test_captions_without_the_words_of_a_style_are_left_out(model: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {"caption": "a moon on white", "captions": ["a moon on white", "moon, pale style"]}
    none: dict[str, Any] = {"caption": "a comet", "captions": ["a comet"]}
    there = [sample("sun", style) for style in STYLES] + [sample("tree", "colour"), sample("hill", "colour")]
    data = write(
        tmp_path / "data", "train", [*there, sample("moon", "pale", **plain), sample("comet", "colour", **none)]
    )
    report = complete([str(data)], model, tmp_path / "out")
    found = {record["subject"]: record["captions"] for record, _ in made(tmp_path / "out").values()}
    assert found["moon"] == ["moon, negative emoji style"]
    assert "comet" not in found
    assert report.without_caption == 1
    assert "1 subjects left out" in report.text()
    wordless = [sample("sun", style, **none) for style in STYLES]
    data = write(tmp_path / "wordless", "train", [*wordless, sample("tree", "colour", **none)])
    with pytest.raises(InputError, match="no first caption of style negative ends in words for it"):
        complete([str(data)], model, tmp_path / "never")


def test_keys_are_none_of_the_originals(model: Path, tmp_path: Path) -> None:
    _, members = sample("sun", "colour")
    there = [sample("sun", "negative"), sample("tree", "pale"), ("negative-of-pale-tree", members)]
    data = write(tmp_path / "data", "train", there)
    complete([str(data)], model, tmp_path / "out")
    assert list(made(tmp_path / "out")) == ["negative-of-pale-tree-2"]


def test_the_command_says_how_many_and_that_they_are_made(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = write(tmp_path / "data", "train", [sample("sun", style) for style in STYLES] + [sample("tree", "colour")])
    command = ["data", "complete", str(data), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "1 of style negative, made and not drawn, in 1 shards" in capsys.readouterr().out
    assert main(command) == 2, "the folder is not empty"
    assert main([*command, "--overwrite"]) == 0
    lacking = write(tmp_path / "lacking", "train", [sample("tree", "colour")])
    assert main(["data", "complete", str(lacking), *command[3:-1], str(tmp_path / "never")]) == 2
    assert "the pairs name negative, pale, of which" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main(["data", "complete", "--help"])
    assert "not drawn by the artist" in " ".join(capsys.readouterr().out.split())
