"""Real and drawn pictures side by side on one PNG: two pairs in a row, each under its prompt."""

from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from torch import Tensor

from data.images import decode, labelled_grid, pil_to_pixels, save_png
from eval.layout import Item
from eval.protocols import ResizeRule, resized

PAIRS = 2  # in a row


def write_sheet(
    pairs: Sequence[tuple[Item, Traversable]], path: Path, size: tuple[int, int] | None, rule: ResizeRule
) -> None:
    """pairs: a prompt with its real picture, and the drawn one. size: (H, W) of all; None: that of the first drawn."""
    rows, labels = [], []
    for first in range(0, len(pairs), PAIRS):
        row: list[Tensor] = []
        for item, drawn in pairs[first : first + PAIRS]:
            drawn_3HW = _read(drawn)
            size = size or (drawn_3HW.shape[1], drawn_3HW.shape[2])
            row += [resized(_read(item.picture), size, rule), resized(drawn_3HW, size, rule)]
        rows.append(row)
        labels.append(" | ".join(item.prompt for item, _ in pairs[first : first + PAIRS]))
    save_png(labelled_grid(rows, labels, (["real", "drawn"] * PAIRS)[: len(rows[0])]), path)


def _read(file: Traversable) -> Tensor:
    return pil_to_pixels(decode(file.read_bytes()))
