"""Every command and every line of Python on docs/working-with-pictures.md, run with tiny networks."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import star
from star.cli import main
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.stylegan_t.model import StyleGanT, StyleGanTConfig, StyleGanTGenerator
from star.tiny import tiny_tokenizer, tiny_transformer

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "working-with-pictures.md"


def blocks() -> list[list[str]]:
    """Runs of indented lines, the indentation taken off."""
    found: list[list[str]] = [[]]
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            found[-1].append(line.removeprefix("    "))
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Folders of tiny networks by the names on the page, and a working directory with what it reads."""
    monkeypatch.chdir(tmp_path)
    text = tiny_text_encoder(max_tokens=64)
    StarGenerator(tiny_transformer(), tiny_tokenizer(), text).save_pretrained("models/star")
    config = StyleGanTConfig(
        resolution=32, condition_width=32, latent_width=16, channel_max=16, residual_blocks=1, groups=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StyleGanTGenerator(StyleGanT(config), text).save_pretrained("models/gan")
    Path("docs").mkdir()
    shutil.copy(ROOT / "docs" / "everyday-prompts.txt", "docs")
    return {"star-emoji": "models/star", "stylegan-t-emoji": "models/gan"}


def test_the_page_runs(models: dict[str, str], capsys: pytest.CaptureFixture) -> None:
    names: dict[str, object] = {"mask": Image.new("L", (8, 8), 255)}
    commands = []
    for block in blocks():
        if not block[0].startswith("star "):
            code = "\n".join(block)
            for name, folder in models.items():
                code = code.replace(f'"{name}"', f'"{folder}"')
            exec(code, names | {"star": star}, names)
            continue
        for line in block:
            arguments = [models.get(argument, argument) for argument in shlex.split(line)[1:]]
            if "--model" not in arguments:
                arguments += ["--model", models["star-emoji"]]
            assert main(arguments) == 0, (line, capsys.readouterr().err)
            commands.append(line)
    assert len(commands) >= 12
    shown = {link.split(")")[0] for link in PAGE.read_text(encoding="utf-8").split("](working/")[1:]}
    made = {path.name for path in Path("docs/working").iterdir()}
    assert shown <= made  # each picture on the page is made by a command on it
    assert made == {path.name for path in (ROOT / "docs" / "working").iterdir()}


def test_its_pictures_are_small() -> None:
    for path in (ROOT / "docs" / "working").iterdir():
        assert path.stat().st_size < 150_000, path.name
