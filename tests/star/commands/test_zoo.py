"""The page of models is what the registry says today."""

from pathlib import Path

import pytest

from star.cli import main
from star.generators import registry

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8"), "run `make models`"


def test_every_model_is_on_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, entry in registry.entries().items():
        assert (f"| [{name}](" if entry.weights.folder() else f"| {name} |") in text
    for part in ("tokenizer-emoji", "clip-emoji", "judge-emoji"):
        assert f"| [{part}](" in text
