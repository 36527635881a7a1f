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
    """pixels_3HW of pictures (3, H, W) in rows of so many; smaller where the sheet would be wider than `WIDEST`.

    Where they differ in size, each cell is as large as the largest, and what is smaller is in the middle of white.
    """
    import torch

    from star.data.images import WHITE, grid, resize_pixels

    rows = -(-len(pictures) // columns)
    height, width = (max(int(picture.shape[axis]) for picture in pictures) for axis in (1, 2))
    scale = min(1.0, WIDEST / max(rows * height, columns * width))
    cell_3HW = torch.full((3, max(1, int(scale * height)), max(1, int(scale * width))), WHITE, dtype=torch.uint8)
    cells = []
    for pixels_3HW in pictures:
        if scale < 1:
            size = (max(1, int(scale * pixels_3HW.shape[1])), max(1, int(scale * pixels_3HW.shape[2])))
            pixels_3HW = resize_pixels(pixels_3HW, size)
        _, h, w = pixels_3HW.shape
        top, left = (cell_3HW.shape[1] - h) // 2, (cell_3HW.shape[2] - w) // 2
        cells.append(cell_3HW.clone())
        cells[-1][:, top : top + h, left : left + w] = pixels_3HW
    return grid(torch.stack(cells), columns)
