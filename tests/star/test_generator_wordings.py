"""A model with wordings draws what a prompt means, where it is asked to."""

from pathlib import Path

import pytest
import torch

from star.attention_maps import attention
from star.brought_along import WORDINGS
from star.cli import main
from star.clip.wordings import Expansion, Subject
from star.data.errors import InputError
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.pictures.record import Record
from star.pipeline import Pipeline

EXPANSION = Expansion(
    ("noto emoji style",),
    {"automobile": Subject(caption="an automobile", style="noto emoji style", names={"car": 8}, colours={"red": 0.6})},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = StarGenerator.for_test()
    model.expansion = EXPANSION
    place = tmp_path_factory.mktemp("model") / "m"
    model.save_pretrained(place, about={"options": {"expand_prompt": True, "guidance_scale": 2.0}})
    return place


def test_prompts_are_drawn_as_the_captions_that_they_mean(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    caption = pipe("an automobile, noto emoji style", seed=3).pixels
    assert torch.equal(pipe("a red car", seed=3).pixels, caption)
    plain = pipe("a red car", seed=3, expand_prompt=False).pixels
    assert not torch.equal(plain, caption)
    assert torch.equal(StarGenerator.for_test().generate(["a red car"], seeds=[3], options=pipe.options), plain)
    assert len(pipe.grow("a red car", seed=3)) > 1
    star = pipe.generator
    assert isinstance(star, StarGenerator)
    maps = attention(star, "a red car", seed=3, options=SampleOptions(expand_prompt=True))
    assert maps.prompt == "an automobile, noto emoji style"
    assert maps.of_word("automobile")


def test_wordings_travel_with_the_model_and_must_be_its_own(folder: Path, tmp_path: Path) -> None:
    again = StarGenerator.from_directory(folder)
    assert again.expansion == EXPANSION
    again.save_pretrained(tmp_path / "copy")
    assert StarGenerator.from_directory(tmp_path / "copy").expansion == EXPANSION
    text = (tmp_path / "copy" / WORDINGS).read_text()
    (tmp_path / "copy" / WORDINGS).write_text(text.replace("an automobile", "a bicycle"))
    with pytest.raises(InputError, match="not the one"):
        StarGenerator.from_directory(tmp_path / "copy")
    (tmp_path / "copy" / WORDINGS).unlink()
    with pytest.raises(InputError, match="wordings"):
        StarGenerator.from_directory(tmp_path / "copy")


def test_the_command_line_expands_as_the_model_recommends_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "a red car", "--model", str(folder), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    drawn = Path(capsys.readouterr().out.split()[0])
    assert Record.read(drawn).options["expand_prompt"] is True
    assert main([*command, "--no-expand-prompt", "--out", str(tmp_path / "b")]) == 0
    other = Path(capsys.readouterr().out.split()[0])
    assert Record.read(other).options["expand_prompt"] is False
    assert drawn.read_bytes() != other.read_bytes()
    assert main(["sample", "--like", str(drawn), "--device", "cpu", "--out", str(tmp_path / "c")]) == 0
