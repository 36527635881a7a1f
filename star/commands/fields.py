"""The fields of a config dataclass as options of a command line: `--run.steps=2000` changes `config.run.steps`.

    config = change(config, ["--run.steps=2000", "--betas", "0.9", "0.95"], prog="star train star")

An option is the dotted name of a field, `-` and `_` alike. What it takes follows the annotation: int, float, str, bool,
Path, Literal, None and unions of them; a tuple takes several words, and one in it takes a word with commas (`3,5 7,7`).
The class of a nested config is that of the value it has; where that is None, it stays None.
"""

import argparse
import dataclasses
import shlex
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from star.commands.comments import of_fields
from star.commands.parsing import Parser
from star.generators.registry import near

Config = TypeVar("Config")
BOOLEANS = {"true": True, "True": True, "false": False, "False": False}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field that holds no config of its own."""

    parent: str  # dotted name of the config it is in, "" for the outermost
    name: str
    annotation: Any
    default: Any  # its value in the config
    comment: str  # behind it, or else above it, in the source of its class

    @property
    def path(self) -> str:
        """Its dotted name."""
        return f"{self.parent}.{self.name}" if self.parent else self.name

    @property
    def option(self) -> str:
        """Its dotted name as the command line shows it."""
        return f"--{self.path.replace('_', '-')}"


def change(config: Config, overrides: Sequence[str], prog: str) -> Config:
    """A config (any dataclass) with the fields that the overrides name changed; the others are kept as they are.

    Raises SystemExit: with code 0 after the list of fields if `--help` is among the overrides; with code 2, after one
    line, for an unknown field, a value of the wrong type and one that a config refuses (ValueError).
    """
    known = {field.option: field for field in fields(config)}
    parser = _parser(known.values(), prog)
    given, rest = parser.parse_known_args([word for override in overrides for word in _spelt(override, known, parser)])
    if rest:
        parser.error(f"unknown argument {rest[0]}")
    try:
        return _replaced(config, vars(given))
    except ValueError as error:
        parser.error(str(error))


def fields(config: Any, parent: str = "") -> Iterator[Field]:
    """The fields of a config and of those nested in it, each config's own ones first."""
    annotations, comments = get_type_hints(type(config)), of_fields(type(config))
    nested = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((f"{parent}.{field.name}" if parent else field.name, value))
        elif field.init:
            yield Field(parent, field.name, annotations[field.name], value, comments.get(field.name, ""))
    for path, value in nested:
        yield from fields(value, path)


def words(value: Any) -> list[str]:
    """What the command line takes for a value, word by word."""
    return [_word(part) for part in value] if isinstance(value, tuple) else [_word(value)]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parser(known: Iterable[Field], prog: str) -> Parser:
    usage = f"{prog} [--FIELD VALUE ...]".replace("%", "%%")
    parser = Parser(prog=prog, usage=usage, argument_default=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    for field in known:
        if field.parent not in groups:
            groups[field.parent] = parser.add_argument_group(f"fields of {field.parent}" if field.parent else "fields")
        shown = " ".join(map(shlex.quote, words(field.default))) or "empty"
        text = f"{field.comment} (default: {shown})".strip().replace("%", "%%")
        kinds, many = _kinds(field.annotation)
        groups[field.parent].add_argument(
            field.option,
            dest=field.path,
            type=_reader(kinds[0] if many else field.annotation),
            nargs=many,
            metavar=tuple(map(_metavar, kinds)) if isinstance(many, int) else _metavar(kinds[0]),
            help=text,
        )
    return parser


def _kinds(annotation: Any) -> tuple[list[Any], int | str | None]:
    """The annotations of the words that an option takes, and how many of them argparse shall read."""
    if get_origin(annotation) is not tuple:
        return [annotation], None
    kinds = list(get_args(annotation))
    return ([kinds[0]], "*") if kinds[-1] is Ellipsis else (kinds, len(kinds))


def _spelt(word: str, known: Mapping[str, Field], parser: Parser) -> list[str]:
    """A word of the command line with the name of its option as the parser has it; an unknown one ends it all."""
    if not word.startswith("--") or word == "--help":
        return [word]
    name, equals, value = word.partition("=")
    option = f"--{name[2:].replace('_', '-')}"
    if option not in known:
        hint = near(option, known)
        parser.error(f"unknown field {name}{hint if 'did you mean' in hint else ''}")
    if equals and get_origin(known[option].annotation) is tuple and not value.startswith("-"):
        return [option, value]  # others may follow: --betas=0.9 0.95
    return [f"{option}{equals}{value}"]


def _choices(annotation: Any) -> Iterator[Any]:
    """What an annotation is a union of, None first: a str would take its word. Configs have options of their own."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if not dataclasses.is_dataclass(part)]
        yield from sorted(parts, key=lambda part: (part is not type(None), part is str))
    else:
        yield annotation


def _read(annotation: Any, text: str) -> Any:
    """Raises ValueError for a text that is none of the annotation."""
    for choice in _choices(annotation):
        try:
            return _read_one(choice, text)
        except ValueError:
            continue
    raise ValueError(text)


def _read_one(annotation: Any, text: str) -> Any:
    if get_origin(annotation) is Literal:
        for choice in get_args(annotation):
            if text == str(choice) or (isinstance(choice, bool) and BOOLEANS.get(text) is choice):
                return choice
    elif get_origin(annotation) is tuple:
        return tuple(_read(get_args(annotation)[0], part) for part in text.split(",") if text)
    elif annotation is bool and text in BOOLEANS:
        return BOOLEANS[text]
    elif annotation is type(None) and text in ("None", "none"):
        return None
    elif annotation in (int, float, str, Path):
        return annotation(text)
    raise ValueError(text)


def _reader(annotation: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return _read(annotation, text)
        except ValueError:
            expected = _metavar(annotation)
            raise argparse.ArgumentTypeError(f"{text!r} was given, expected {expected}") from None

    return read


def _metavar(annotation: Any) -> str:
    parts = []
    for choice in _choices(annotation):
        if choice is bool:
            parts.append("{true,false}")
        elif get_origin(choice) is Literal:
            parts.append("{" + ",".join(str(part) or "''" for part in get_args(choice)) + "}")
        elif get_origin(choice) is tuple:
            parts.append(f"{_metavar(get_args(choice)[0])},...")
        else:
            parts.append("None" if choice is type(None) else getattr(choice, "__name__", str(choice)).upper())
    return "|".join(parts)


def _replaced(config: Config, given: Mapping[str, Any], parent: str = "") -> Config:
    """From the inside out, so that a config checks itself with what is nested in it."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        path, value = f"{parent}{field.name}", getattr(config, field.name)
        if path in given:
            changes[field.name] = tuple(given[path]) if isinstance(given[path], list) else given[path]
        elif dataclasses.is_dataclass(value) and (inner := _replaced(value, given, f"{path}.")) is not value:
            changes[field.name] = inner
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]
