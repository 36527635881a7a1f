"""The worked example of a GAN in docs/extending.md, installed as a package of its own: it trains, resumes and draws."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from star.data.synthetic import write

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## A GAN that trains", 1)[1].split("\n## ", 1)[0]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of site-packages with dots and its metadata, as pip leaves them."""
    root = tmp_path_factory.mktemp("site")
    (root / "dots.py").write_text(block("python"))
    info = root / "dots-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dots\nVersion: 1.0\n")
    points = block("toml").replace('[project.entry-points."star.generators"]', "[star.generators]").replace('"', "")
    (info / "entry_points.txt").write_text(points)
    return root


def star(package: Path, *arguments: object, code: int = 0) -> str:
    path = os.pathsep.join([str(package), str(ROOT)])
    command = [sys.executable, "-m", "star.cli", *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_example_is_short() -> None:
    assert len(block("python").splitlines()) < 60


def test_a_family_of_another_package_trains_resumes_and_draws(package: Path, tmp_path: Path) -> None:
    write(tmp_path / "shards", count=16, size=16, test=0)
    data, out = tmp_path / "shards" / "train", tmp_path / "run"
    assert '"latent_width": 64' in star(
        package, "train", "dots", "--preset", "test", "--network.latent-width=64", "--show"
    )
    star(package, "train", "dots", "--preset", "test", "--data", data, "--out", out, "--run.keep=9")
    (out / "checkpoints" / "step-00000004").rename(tmp_path / "last")
    again = star(package, "train", "dots", "--preset", "test", "--data", data, "--out", out, "--run.keep=9", "--resume")
    assert "continued from step 2" in again
    star(package, "sample", "", "--model", out / "model", "--out", tmp_path / "drawn")
    assert list((tmp_path / "drawn").rglob("*.png"))
    assert "registers no converter" in star(package, "convert", "dots", data, tmp_path / "converted", code=2)
