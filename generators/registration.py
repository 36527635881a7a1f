"""What a family of generators brings, each part named as "module:attribute" and imported on first use.

    FAMILY = Registration(
        generator="their_package.dots:DotsGenerator",  # the class that draws, see `protocol.Family`
        presets="their_package.dots:PRESETS",          # recipes by name: the family can be trained
    )

The entry-point group `star.generators` names either such an object or the class alone, which then can only be drawn
with. docs/extending.md has a worked example.
"""

import importlib
import re
from dataclasses import dataclass
from typing import Any

TARGET = re.compile(r"[\w.]+:\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """One family. Raises ValueError for a part that is no "module:attribute"."""

    generator: str  # the class, see `protocol.Family`
    presets: str = ""  # a mapping of names to recipes, frozen dataclasses, for `star train`; "": it cannot be trained
    # called as train(recipe, data=shards, out=folder, resume=bool), returns the model directory it wrote
    trainer: str = "star.generators.gan.train:train"
    converter: str = ""  # called with a released file and a folder, returns the ModelDirectory; "": there is none
    converter_options: tuple[str, ...] = ()  # options of `star convert` that it takes as keywords
    summary: str = ""  # what it is, in one phrase, for `star train --help`

    def __post_init__(self) -> None:
        for name in ("generator", "presets", "trainer", "converter"):
            target = getattr(self, name)
            if not TARGET.fullmatch(target) and (target or name in ("generator", "trainer")):
                raise ValueError(f"{name} is given as {target!r}, expected 'module:attribute'")


def load(target: str) -> Any:
    """The object that a "module:attribute" names, imported now."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
