"""Configs go to plain values and back, strictly."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from star.data.errors import InputError
from star.generators.config import differences, from_dict, to_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("rate is below 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    size: int | tuple[int, int] = 8
    path: str | None = None
    inner: Inner = field(default_factory=Inner)
    flag: bool = False
    words: dict[str, float] = field(default_factory=dict)


FULL = Outer(name="x", kind="b", size=(4, 5), path="p", inner=Inner(sizes=(3,), rate=1), flag=True, words={"k": 2.0})


@pytest.mark.parametrize("config", [Outer(name="x"), FULL], ids=["defaults", "full"])
def test_there_and_back_through_json(config: Outer) -> None:
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "nmae": 1}, "unknown field nmae"),
        ({}, "lacks name"),
        ({"name": 3}, r"config\.name is 3, expected str"),
        ({"name": "x", "kind": "c"}, r"config\.kind is 'c'"),
        ({"name": "x", "size": [1, 2, 3]}, r"config\.size is"),
        ({"name": "x", "size": True}, r"config\.size is True"),
        ({"name": "x", "flag": 1}, r"config\.flag is 1, expected bool"),
        ({"name": "x", "inner": {"sizes": [1, 2.5]}}, r"config\.inner\.sizes\[1\] is 2\.5, expected int"),
        ({"name": "x", "inner": {"rate": -1.0}}, r"config\.inner is no valid Inner: rate is below 0"),
        ({"name": "x", "path": 5}, r"config\.path is 5"),
    ],
)
def test_wrong_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(Outer, values)


def test_differences_are_dotted_leaves() -> None:
    old = to_dict(Outer(name="x"))
    assert differences(old, old) == []
    new = to_dict(Outer(name="x", inner=Inner(rate=0.25)))
    assert differences(old, new) == [("inner.rate", 0.5, 0.25)]
    assert differences({"a": 1}, {"b": 2}) == [("a", 1, None), ("b", None, 2)]


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="not object"):
        to_dict({"a": object()})
