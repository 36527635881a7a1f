"""Real and generated pictures side by side on one PNG: two pairs in a row, each under its prompt."""

from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from torch import Tensor

from star.data.images import labelled_grid, save_png
from star.eval.run.layout import Item
from star.eval.run.pictures import read_pixels
from star.eval.run.protocols import ResizeRule, resized

PAIRS = 2  # in a row
MAX_PIXELS = 2**26  # of a grid; pictures are made smaller to fit
LONGEST = 200  # characters of a prompt beside its picture


def write_grid(
    pairs: Sequence[tuple[Item, Traversable]], path: Path, size: tuple[int, int] | None, rule: ResizeRule
) -> None:
    """pairs: a prompt with its real picture, and the generated one. size: (H, W) of all; None: of the first generated.

    Raises InputError if a picture can no longer be read, or the place cannot be written.
    """
    if not pairs:
        return
    height, width = size or read_pixels(pairs[0][1]).shape[1:]
    scale = min(1.0, (MAX_PIXELS / (2 * len(pairs) * height * width)) ** 0.5)
    size = (max(1, int(scale * height)), max(1, int(scale * width)))
    rows, labels = [], []
    for first in range(0, len(pairs), PAIRS):
        row: list[Tensor] = []
        for item, generated in pairs[first : first + PAIRS]:
            row += [resized(read_pixels(file), size, rule) for file in (item.picture, generated)]
        rows.append(row)
        labels.append(" | ".join(_label(item.prompt) for item, _ in pairs[first : first + PAIRS]))
    save_png(labelled_grid(rows, labels, (["real", "drawn"] * PAIRS)[: len(rows[0])]), path)


def _label(prompt: str) -> str:
    """A prompt as it can be written: on one line, printable, and not longer than a person reads."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in prompt).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
