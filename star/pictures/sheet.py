"""Many pictures on one: rows and columns about as many, whatever their number.

B pictures, H W pixels, 3 RGB.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1024  # pictures; more are not looked at side by side
WIDEST = 4096  # pixels of a sheet's longer side; above it pictures are made smaller
OBLONG = 2.5  # the longer side of a sheet over the shorter, up to which rows are kept whole


def columns_of(pictures: int, each: int = 1) -> int:
    """Columns of a sheet that is about square.

    each: pictures of one prompt; a row holds a whole number of prompts, or a prompt a whole number of rows, where that
    leaves the sheet at most `OBLONG` times as long as the other way.
    """
    side = math.ceil(math.sqrt(pictures))
    whole = [n for n in range(1, pictures + 1) if n % each == 0 or each % n == 0] if each > 1 else []

    def oblong(columns: int) -> float:
        rows = -(-pictures // columns)
        return max(rows / columns, columns / rows)

    best = min(whole, key=lambda n: (oblong(n), -n), default=side)
    return best if oblong(best) <= OBLONG else side


def sheet(pictures: "Sequence[Tensor]", columns: int) -> "Tensor":
    """pixels_3HW of pictures (3, H, W) in rows of so many; smaller where the sheet would be wider than `WIDEST`."""
    import torch

    from star.data.images import grid, pil_to_pixels, pixels_to_pil, resize

    rows = -(-len(pictures) // columns)
    height, width = pictures[0].shape[1:]
    scale = WIDEST / max(rows * height, columns * width)
    if scale < 1:
        size = (max(1, int(scale * height)), max(1, int(scale * width)))
        pictures = [pil_to_pixels(resize(pixels_to_pil(picture), size)) for picture in pictures]
    return grid(torch.stack(list(pictures)), columns)
