"""The ways through the code that CONTRIBUTING.md lists lead along files that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Three ways through the code", 1)[1]


def test_every_file_is_there() -> None:
    """A name without a folder lies in that of the name before it."""
    folder, found = "", 0
    for name in re.findall(r"`([\w/]+\.py)`", SECTION):
        folder = name.rpartition("/")[0] or folder
        path = ROOT / folder / name.rpartition("/")[2]
        assert path.is_file(), f"{name} is not in {folder}"
        found += 1
    assert found > 40
    assert len(re.findall(r"^\*\*", SECTION, re.MULTILINE)) == 3
