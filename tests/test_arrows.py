"""The arrows between rooms: which room may import which, held against the imports of every file."""

import ast
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
# The command alone may use every room; nobody uses it.
DOORS = {"star/cli.py"}
# Folders of one GAN family: whoever deletes one breaks no other.
FAMILIES = ("stylegan_t", "stylenat", "styleformer")
# Never imported by the core: see the notes on packages in CONTRIBUTING, and guard optional ones on real import success.
FORBIDDEN = {"torchvision", "timm", "lpips", "ImageReward", "sentence_transformers"}

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if not any((ROOT / room / part).is_symlink() for part in path.relative_to(ROOT / room).parts[:1])
)


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


def room_of(name: str) -> str | None:
    """The room of a module's dotted name, None if it is not ours: star.data.text lies in data, star.model in star."""
    parts = name.split(".")
    if parts[0] != "star" or len(parts) == 1:
        return None
    return parts[1] if parts[1] in ROOMS else "star"


def offences(file: str, source: str) -> list[str]:
    """What a file at this place may not import."""
    room = file.split("/")[0]
    allowed = set(ROOMS) if file in DOORS else ARROWS[room] | {room}
    doors = {f"star.{Path(door).stem}" for door in DOORS - {file}}
    family = next((name for name in FAMILIES if file.startswith(f"generators/{name}/")), None)
    found = []
    for name in imports(source):
        parts = name.split(".")
        if (to := room_of(name)) is not None and to not in allowed:
            found.append(f"{room} may not import {name}")
        if parts[0] in ROOMS and parts[0] != "star":
            found.append(f"{name} is no module of ours: import star.{name}")
        if name in doors:
            found.append(f"nobody may import {name}")
        other = parts[2] if parts[:2] == ["star", "generators"] and len(parts) > 2 else None
        if other in FAMILIES and room == "generators" and other != family:
            found.append(f"{file} may not import the family {name}")
        if parts[0] in FORBIDDEN and room != "eval":
            found.append(f"{name} stays out of the core")
    return found


def test_rooms_have_files() -> None:
    assert {file.split("/")[0] for file in FILES} == set(ROOMS)


@pytest.mark.parametrize("file", FILES)
def test_file_keeps_the_arrows(file: str) -> None:
    assert offences(file, (ROOT / file).read_text(encoding="utf-8")) == []


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
        ("data/text.py", "from star.generators.training import run", "data may not import star.generators"),
        ("generators/gan/layers.py", "def f():\n    import star.model.rope", "generators may not import star.model"),
        ("star/training/train.py", "import star.eval.extractors", "star may not import star.eval"),
        ("star/commands/draw.py", "from star.eval import run", "star may not import star.eval"),
        ("tokenizer/train.py", "from star import cli", "tokenizer may not import star.cli"),
        ("star/training/train.py", "from star.cli import main", "nobody may import star.cli"),
        ("generators/gan/losses.py", "import torchvision.ops", "stays out of the core"),
        ("eval/run/record.py", "from data.errors import InputError", "import star.data.errors"),
        ("generators/stylenat/model.py", "import star.generators.styleformer.model", "may not import the family"),
        ("generators/gan/trainer.py", "import star.generators.styleformer.model", "may not import the family"),
    ],
)
def test_offences_are_noticed(file: str, source: str, message: str) -> None:
    assert any(message in offence for offence in offences(file, source))


def test_allowed_imports_pass() -> None:
    assert offences("star/cli.py", "import star.eval.report\nfrom star.generators import registry") == []
    assert offences("star/training/train.py", "import torch, star.tokenizer.scales\nfrom star import __version__") == []
    assert offences("generators/styleformer/presets.py", "import star.generators.styleformer.model") == []


def test_the_links_lead_to_the_rooms() -> None:
    for room in ROOMS[:3] + ROOMS[4:]:
        assert (ROOT / "star" / room).resolve() == (ROOT / room).resolve()
