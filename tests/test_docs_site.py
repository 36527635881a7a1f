"""The site of the documentation: built without a warning, its links turned to where things are there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("mkdocs-material and mkdocstrings are of the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("star.load", "star.pipeline.Pipeline.vary", "star.training.finetune.finetune"):
        assert f'id="{name}"' in api
    assert "cards/star-emoji.html" in (tmp_path / "site" / "models.html").read_text(encoding="utf-8")
    assert "googleapis" not in api


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="mkdocs is of the extra docs")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "on_site"),
    [
        ("docs/training.md", "training.md"),
        ("EXPERIMENTS.md", "EXPERIMENTS.md"),
        ("README.md", "index.md"),
        ("star/weights/star-emoji/README.md", "cards/star-emoji.md"),
        ("star/cli.py", None),
    ],
)
def test_places_on_the_site(hooks: ModuleType, path: str, on_site: str | None) -> None:
    assert hooks.place(path) == on_site
    if on_site is not None and on_site != "index.md":
        assert hooks.origin(on_site) == path
