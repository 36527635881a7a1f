"""Names of picture files: the words of a prompt, and the first number that is free."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

LONGEST_NAME = 100  # bytes of a file name that come from the prompt


def slug(prompt: str) -> str:
    """The words of a prompt, in any script, as part of a file name."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt).lower())
    name = "-".join(words).encode()[:LONGEST_NAME].decode(errors="ignore").rstrip("-")
    return name or ("picture" if prompt.strip() else "unconditional")


def numbered(stems: Iterable[str]) -> list[str]:
    """File names of a list of pictures: stem.png, and stem-2.png, ... from the second of a stem on.

    A function of the list alone, so whoever draws a part of it, and whenever, gives each picture its own name.
    """
    used: set[str] = set()
    names = []
    for stem in stems:
        candidates = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        name = next(name for name in candidates if name not in used)
        used.add(name)
        names.append(f"{name}.png")
    return names


def put(partial: Path, folder: Path, stem: str, suffix: str = ".png") -> Path:
    """Gives a finished file the first free name of stem.png, stem-2.png, ... in the folder, and returns its path.

    A name is taken and filled in one step, which fails if it is taken already: two processes that draw into one folder
    never write over each other's pictures.
    """
    for number in itertools.count(1):
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        try:
            os.link(partial, path)
        except FileExistsError:
            continue
        except OSError:  # no hard links there: the name first, then the file
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            partial.replace(path)
        return path
    raise AssertionError("numbers do not end")
