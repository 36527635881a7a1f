"""The arrows between rooms: which room may import which, held against the imports of every file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "generators", "tokenizer", "star", "eval")
ARROWS: dict[str, set[str]] = {
    "data": set(),
    "generators": {"data"},
    "tokenizer": {"data", "generators"},
    "star": {"data", "generators", "tokenizer"},
    "eval": {"data", "generators"},
}
# The command and the web page alone may use every room; nobody uses them.
DOORS = {"star/cli.py", "star/demo.py"}
# Never imported by the core: see the notes on packages in CONTRIBUTING, and guard optional ones on real import success.
FORBIDDEN = {"torchvision", "timm", "lpips", "ImageReward", "sentence_transformers"}

FILES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(source: str) -> Iterator[str]:
    """Dotted names of all modules a source imports, wherever in the file; for `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide arrows: import by the full name"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(file: str, source: str) -> list[str]:
    """What a file at this place may not import."""
    room = file.split("/")[0]
    allowed = set(ROOMS) if file in DOORS else ARROWS[room] | {room}
    doors = {door.removesuffix(".py").replace("/", ".") for door in DOORS - {file}}
    found = []
    for name in imports(source):
        top = name.split(".")[0]
        if top in ROOMS and top not in allowed:
            found.append(f"{room} may not import {name}")
        if name in doors:
            found.append(f"nobody may import {name}")
        if top in FORBIDDEN and room != "eval":
            found.append(f"{name} stays out of the core")
    return found


def test_rooms_have_files() -> None:
    assert {file.split("/")[0] for file in FILES} == set(ROOMS)


@pytest.mark.parametrize("file", FILES)
def test_file_keeps_the_arrows(file: str) -> None:
    assert offences(file, (ROOT / file).read_text()) == []


def test_arrows_have_no_cycle() -> None:
    left = dict(ARROWS)
    while left:
        free = [room for room, needs in left.items() if not needs & left.keys()]
        assert free, f"a cycle among {sorted(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("data/text.py", "from generators import run", "data may not import generators"),
        ("generators/layers.py", "def f():\n    import star.rope", "generators may not import star.rope"),
        ("star/train.py", "import eval.features", "star may not import eval.features"),
        ("star/commands/draw.py", "from eval import benchmark", "star may not import eval"),
        ("tokenizer/train.py", "from star import cli", "tokenizer may not import star"),
        ("star/train.py", "from star.cli import main", "nobody may import star.cli"),
        ("generators/losses.py", "import torchvision.ops", "stays out of the core"),
    ],
)
def test_offences_are_noticed(file: str, source: str, message: str) -> None:
    assert any(message in offence for offence in offences(file, source))


def test_allowed_imports_pass() -> None:
    assert offences("star/cli.py", "import eval.compare\nfrom generators import registry") == []
    assert offences("star/train.py", "import torch, tokenizer.scales\nfrom data.errors import InputError") == []


def test_no_room_shadows_the_standard_library() -> None:
    assert not set(ROOMS) & sys.stdlib_module_names
