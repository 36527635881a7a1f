"""Frozen dataclass configs to plain JSON values and back, strictly, and where two of them differ.

values = to_dict(config)                  # nested dicts and lists
config = from_dict(ModelConfig, values)   # unknown, missing or wrongly typed fields raise InputError
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from star.data.errors import InputError
from star.data.files import shorten

Config = TypeVar("Config")
UNLESS_DEFAULT = {"unless_default": True}
LONGEST = 64  # numbers in a row that a network's config holds: scales, levels, blocks that are tapped


def to_dict(config: Any) -> Any:
    """A dataclass, or any nesting of them, as dicts, lists and scalars that JSON can hold.

    A field made by `field(default=..., metadata=UNLESS_DEFAULT)` is left out where it is as by default: one that came
    later, so that what was written before, and its digests, stay as they are.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            field.name: to_dict(getattr(config, field.name))
            for field in dataclasses.fields(config)
            if not (field.metadata.get("unless_default") and getattr(config, field.name) == field.default)
        }
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    if isinstance(config, Path):
        return str(config)
    raise TypeError(f"a config may hold dataclasses, mappings, sequences and scalars, not {type(config).__name__}")


def from_dict(kind: type[Config], values: Mapping[str, Any], where: str = "config") -> Config:
    """Builds the dataclass `kind` from plain values; its static method `translate`, if any, renames old fields first.

    Raises InputError that names the field if one is unknown, missing without a default, of the wrong type, or refused
    by the dataclass itself.
    """
    if not isinstance(values, Mapping):
        raise InputError(
            f"{where} is {shorten(repr(values), 60)}, expected the fields of a {kind.__name__}: correct it"
        )
    if translate := getattr(kind, "translate", None):
        values = translate(values)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [shorten(name, 60) for name in sorted(set(values) - set(fields))[:8]]
    if unknown:
        raise InputError(
            f"{where} has the unknown field {', '.join(unknown)}; {kind.__name__} knows {', '.join(fields)}: "
            "remove it, or use the version of this program that wrote it"
        )
    hints = get_type_hints(kind)
    given = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in given
    ]
    if required:
        raise InputError(f"{where} lacks {', '.join(required)}, which {kind.__name__} needs: add it")
    try:
        return kind(**given)
    except InputError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{where} is no valid {kind.__name__}: {shorten(error, 400)}") from error


def check_stages(widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    """Raises InputError unless a network has at least one stage, and each a width and blocks of 1 or more."""
    if len(widths) != len(blocks) or not widths or min(*widths, *blocks) < 1:
        raise InputError(f"The widths are {widths} and the blocks {blocks}; give as many of both.")


def check_ranges(config: Any, **ranges: tuple[float, float]) -> None:
    """Raises InputError unless each named field, or every number of its tuple, lies within (least, most).

    A field that is None is not looked at; NaN lies nowhere; a tuple has at most `LONGEST` numbers.
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > LONGEST:
            raise InputError(f"{name} has {len(numbers)} numbers, expected at most {LONGEST}: correct it")
        for number in numbers:
            if type(number) not in (int, float) or not number >= least:
                expected = "a number" if math.isinf(least) else f"at least {least}"
                raise InputError(f"{name} is {shorten(_told(value))}, expected {expected}: correct it")
            if number > most:
                raise InputError(f"{name} is {shorten(_told(value))}, expected at most {most}: correct it")


def check_choices(config: Any, *names: str) -> None:
    """Raises ValueError unless each of these fields has one of the values that its Literal names."""
    hints = get_type_hints(type(config))
    for name in names:
        if getattr(config, name) not in (allowed := get_args(hints[name])):
            raise ValueError(f"{name} is '{getattr(config, name)}'; choose one of {', '.join(allowed)}")


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every leaf in which two plain configs differ; absent counts as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys((*old, *new)):
            found += differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
        return found
    return [] if old == new else [(where, old, new)]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_dict(hint, value, where)
    if origin in (Union, types.UnionType):
        # dataclasses in a union are told apart by their fields
        for argument in arguments:
            try:
                return _convert(argument, value, where)
            except InputError:
                continue
        if isinstance(value, Mapping) and len(meant := [kind for kind in arguments if _may_be(kind, value)]) == 1:
            return from_dict(meant[0], value, where)  # for what it says
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            pairs = enumerate(zip(arguments, value, strict=True))
            return tuple(_convert(argument, item, f"{where}[{i}]") for i, (argument, item) in pairs)
    elif origin in (list, Sequence) and isinstance(value, (list, tuple)):
        return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint in (None, type(None)):
        if value is None:
            return None
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    elif hint in (bool, int, str) and type(value) is hint:  # True is no int here
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise InputError(f"{where} is {shorten(_told(value))}, expected {expected}: correct it")


def _may_be(kind: Any, value: Mapping[str, Any]) -> bool:
    """Whether plain values have the names of a dataclass's fields."""
    return dataclasses.is_dataclass(kind) and {field.name for field in dataclasses.fields(kind)} >= set(value)


def _told(value: Any) -> str:
    """For people; a whole number of thousands of digits cannot be written."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to write"
