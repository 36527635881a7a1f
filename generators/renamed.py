"""Names that earlier versions wrote, translated where they are read, and refused where somebody types them.

Light on purpose: the command line imports it, and its help must be instant.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NoReturn

from star.data.errors import InputError

# Fields of star.generators.protocol.SampleOptions. `guidance` was the t of (1 + t) cond - t uncond, 0 was off.
OPTIONS = {"guidance": "guidance_scale", "ramp": "guidance_ramp", "cooling": "temperature_decay"}
# Fields of training configs, whatever part of the config they stand in.
FIELDS = {
    "reborn_below": "restart_below",
    "reborn_fraction": "restart_fraction",
    "anchor": "align_to",
    "anchor_weight": "align_weight",
}
# Shipped weights that have another name now, by the field that named them. What an earlier version called clip-emoji is
# guide-emoji where it guides, is looked through or reads prompts; clip-emoji, which scores, has other towers.
WEIGHTS = {(name, "clip-emoji"): "guide-emoji" for name in ("clip", "features", "text_encoder")}
# The same for text towers that model directories refer to, by the digest that they ask for.
TEXT_TOWERS = {"7479b3adb2acf072a95cc99d7f1c80616780449be2443bdd0877796e36f5350b": ("clip-emoji", "guide-emoji")}


def translate_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded options of drawing under the names and in the units of today; those of today stay as they are.

    A value that is no number is passed on as it is, for the reader of the options to refuse. Raises InputError if an
    option is given under both of its names.
    """
    translated: dict[str, Any] = {}
    for name, value in values.items():
        new = OPTIONS.get(name, name)
        if new != name and new in values:
            raise InputError(f"{name} and {new} were both given, expected {new} alone: remove {name}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        translated[new] = value + 1 if name == "guidance" and number else value
    return translated


def translate_config(values: Any) -> Any:
    """A recorded training config (plain values) under the names of today, at any depth."""
    if isinstance(values, Mapping):
        told = {FIELDS.get(name, name): translate_config(value) for name, value in values.items()}
        if isinstance(told.get("sample_options"), dict):
            told["sample_options"] = translate_options(told["sample_options"])
        return told
    return [translate_config(value) for value in values] if isinstance(values, list) else values


def same_weights(path: str, recorded: object, now: object) -> bool:
    """Whether a field (dotted) of a recorded config names by an old name the weights that `now` names."""
    named = (path.rsplit(".", 1)[-1], recorded)
    return isinstance(recorded, str) and named in WEIGHTS and WEIGHTS[named] == now


def moved_to(location: str, digest: str) -> str:
    """The shipped weights that have the text tower of this digest now, where this was its place; "" for others."""
    before, now = TEXT_TOWERS.get(digest, ("", ""))
    return now if before and PurePath(location).name == before else ""


def now_called(name: str, value: object) -> str:
    """One sentence for an option of drawing that was given as `--name value` or `name=value` under its old name."""
    new = OPTIONS[name.lstrip("-")].replace("_", "-") if name.startswith("-") else OPTIONS[name]
    prefix, join = ("--", " ") if name.startswith("-") else ("", "=")
    if name.lstrip("-") != "guidance":
        return f"{name}{join}{value} is {prefix}{new}{join}{value} now: give that"
    try:
        shown = f"{float(value) + 1:g}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return f"{name} is {prefix}{new} now, which is larger by 1 (1 is off): give that"
    return f"{name}{join}{value} is {prefix}{new}{join}{shown} now, where 1 is off: give that"


def refuse_old_fields(overrides: Sequence[str]) -> None:
    """Refuses `--dotted.name=value` of a training whose field has another name now; raises InputError that names it."""
    for override in overrides:
        path, _, value = override.removeprefix("--").replace("-", "_").partition("=")
        parent, _, name = path.rpartition(".")
        if parent == "sample_options" and name in OPTIONS:
            raise InputError(f"{override}: {now_called(name, value)}")
        if name in FIELDS and override.startswith("--"):
            raise InputError(f"{override} was given, but {name} is {FIELDS[name]} now: give that")


class _Refuse(argparse.Action):
    def __call__(
        self, _parser: object, _namespace: object, values: str | Sequence[Any] | None, option: str | None = None
    ) -> NoReturn:
        raise InputError(now_called(str(option), values))


def refuse_old_options(parser: argparse.ArgumentParser) -> None:
    """The old options, which help does not show, raise InputError that names the new option and its value."""
    for name in OPTIONS:
        parser.add_argument(f"--{name}", action=_Refuse, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
