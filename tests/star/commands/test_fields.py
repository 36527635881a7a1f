"""Fields of a config as options of the command line."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest

from star.commands.fields import change, fields, words
from star.commands.train import TRAINERS, presets
from star.data.errors import InputError


@dataclasses.dataclass(frozen=True)
class Book:
    width: int = 4  # of a code, 50% of it used


@dataclasses.dataclass(frozen=True)
class Bits:
    bits: int = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Inner:
    # two lines
    # above
    rate: float = 0.5
    book: Book | Bits = Book()
    maybe: Bits | None = None

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise InputError(f"inner.rate is {self.rate}, expected at most 1: correct it")


@dataclasses.dataclass(frozen=True)
class Base:
    inherited: int = 1  # from the base


@dataclasses.dataclass(frozen=True)
class Outer(Base):
    steps: int = 3

    # far above
    # see # this

    flag: bool = False
    cache: bool | Literal["auto"] = "auto"
    clamp: float | None = 256.0
    name: str | None = "none so far"
    kind: Literal["", "a", "b"] = "a"
    switch: Literal[True, "on"] = "on"
    place: Path = Path("here")
    sizes: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.9, 0.99)
    trackers: tuple[Literal["x", "y"], ...] = (  # beside
        "x",
    )
    kernels: tuple[tuple[int, ...], ...] = ((3, 5), (7,))
    long_name: str = "# no comment"
    inner: Inner = Inner()
    made: int = dataclasses.field(default=0, init=False)


def changed(*overrides: str) -> Outer:
    return change(Outer(), overrides, "prog")


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "-7", -7),
        ("inherited", "5", 5),
        ("inner.rate", "1", 1.0),
        ("flag", "true", True),
        ("flag", "False", False),
        ("cache", "true", True),
        ("cache", "False", False),
        ("cache", "auto", "auto"),
        ("clamp", "None", None),
        ("clamp", "none", None),
        ("clamp", "1e-3", 1e-3),
        ("clamp", "-1e-3", -1e-3),
        ("clamp", "-.5E+2", -50.0),
        ("name", "None", None),
        ("name", "3", "3"),
        ("kind", "", ""),
        ("switch", "true", True),
        ("place", "a/b", Path("a/b")),
        ("long_name", "x=y_z-1", "x=y_z-1"),
        ("long-name", "", ""),
        ("inner.book.width", "9", 9),
        ("inner.maybe", "None", None),
    ],
)
def test_scalars(path: str, text: str, value: object, joined: bool) -> None:
    found: Any = changed(f"--{path}={text}") if joined else changed(f"--{path}", text)
    for name in path.replace("-", "_").split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


def test_tuples() -> None:
    assert changed("--sizes", "1", "2", "-3").sizes == (1, 2, -3)
    assert changed("--sizes").sizes == ()
    assert changed("--sizes=4", "5", "--steps=1").sizes == (4, 5)
    assert changed("--betas", "0.5", "0.6").betas == (0.5, 0.6)
    assert changed("--trackers=y").trackers == ("y",)
    assert changed("--kernels", "3,7", "5").kernels == ((3, 7), (5,))


def test_only_given_fields_change() -> None:
    assert changed() == Outer()
    assert changed("--inner.book.width=1", "--steps=9") == Outer(steps=9, inner=Inner(book=Book(width=1)))
    assert change(Outer(inner=Inner(book=Bits())), ["--inner.book.bits=2"], "prog").inner.book == Bits(2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--stpes=3"], "unknown field --stpes; did you mean --steps"),
        (["--qqqq"], "unknown field --qqqq;"),
        (["--step=3"], "unknown field --step; did you mean --steps"),  # no abbreviations
        (["stray"], "unknown argument stray"),
        (["-s"], "unknown argument -s"),
        (["--steps=many"], "argument --steps: 'many' was given, expected INT"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--flag=1"], "'1' was given, expected {true,false}"),
        (["--flag"], "expected one argument"),
        (["--cache=maybe"], "'maybe' was given, expected {true,false}|{auto}"),
        (["--clamp=x"], "'x' was given, expected None|FLOAT"),
        (["--kind=c"], "'c' was given, expected {'',a,b}"),
        (["--trackers", "x", "z"], "'z' was given, expected {x,y}"),
        (["--betas", "0.5"], "argument --betas: expected 2 arguments"),
        (["--kernels", "3,x"], "'3,x' was given, expected INT,..."),
        (["--inner.maybe=3"], "'3' was given, expected None"),
        (["--inner.maybe.bits=3"], "unknown field --inner.maybe.bits; did you mean --inner.maybe"),
        (["--inner=3"], "unknown field --inner;"),
        (["--made=3"], "unknown field --made"),
        (["--inner.rate=2"], "inner.rate is 2.0, expected at most 1: correct it"),
    ],
)
def test_errors_are_one_line(overrides: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        changed(*overrides)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("prog: ")
    assert captured.err.endswith("; `prog --help` tells more\n")
    assert message in captured.err


def test_help_lists_fields_with_their_comments(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        changed("--help")
    assert end.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    told = " ".join(lines)
    for text in (
        "--inherited INT from the base (default: 1)",
        "--steps INT (default: 3)",
        "--flag {true,false} (default: False)",
        "--betas FLOAT FLOAT",
        "--long-name STR (default: '# no comment')",
        "fields of inner.book:",
        "of a code, 50% of it used (default: 4)",
        "--inner.maybe None (default: None)",
    ):
        assert text in told
    assert told.count("two lines above (default: 0.5)") == 1
    assert told.count("beside (default: x)") == 1
    assert "far above" not in told  # a blank line parts them
    assert lines.index("fields:") < lines.index("fields of inner:") < lines.index("fields of inner.book:")
    assert not any("made" in line for line in lines)


@pytest.mark.parametrize("network", TRAINERS)
def test_every_preset_takes_its_own_values(network: str, capsys: pytest.CaptureFixture) -> None:
    for name, preset in presets(network).items():
        known = list(fields(preset))
        assert len(known) > 20
        separate = [word for field in known for word in (field.option, *words(field.default))]
        assert change(preset, separate, name) == preset
        joined = [f"{field.option}={field.default}" for field in known if not isinstance(field.default, tuple)]
        assert change(preset, joined, name) == preset
        with pytest.raises(SystemExit) as end:
            change(preset, ["--help"], name)
        assert end.value.code == 0
        told = capsys.readouterr().out
        assert all(f"\n  {field.option} " in told for field in known)
