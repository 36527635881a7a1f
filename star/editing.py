"""What a next-scale model can do with a picture: which of its codes stay when it is drawn again.

    codes = encode_picture(generator, to_pixels("cat.png"))
    given = given_coarse(codes, 4, pictures=6)           # six variations of the picture's broad shape
    given = given_outside(codes, schedule, covered_HW, pictures=1)  # inpainting
    pixels = generator.generate([prompt] * 6, seeds=range(6), given=given)

A picture is K grids of codes, coarse to fine. Those of the coarse scales say what it is and roughly how it looks; to
keep them and to draw the rest anew gives its variations (Tian et al. 2024, §5.4, fill in masks the same way).

B pictures, l tokens of one scale, H W pixels, 3 RGB, K scales, k scale index.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from star.data.errors import InputError
from star.data.images import WHITE, pil_to_pixels, pixels_to_image, read_png, resize_pixels
from star.generator import StarGenerator
from star.sampling.sampler import GivenCodes
from star.tokenizer.scales import ScaleSchedule


def to_pixels(picture: Image.Image | Tensor | str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """pixels_3HW, uint8, of a PIL picture, uint8 pixels or a file; cut and resized to `size` (H, W) where given.

    Raises InputError for anything that is no picture.
    """
    if isinstance(picture, (str, Path)):
        pixels_3HW = read_png(picture)
    elif isinstance(picture, Image.Image):
        pixels_3HW = pil_to_pixels(picture.convert("RGB"))
    elif isinstance(picture, Tensor) and picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[0] == 3:
        pixels_3HW = picture
    else:
        raise InputError(
            f"a picture was given as {type(picture).__name__}, expected a file, a PIL picture or uint8 pixels (3, H, W)"
        )
    if size is None or tuple(pixels_3HW.shape[1:]) == size:
        return pixels_3HW
    return resize_pixels(pixels_3HW, size)


def encode_picture(generator: StarGenerator, pixels_3HW: Tensor, size: tuple[int, int] | None = None) -> list[Tensor]:
    """Tokens of every scale of one picture, brought to `size` (H, W) or to the model's: K tensors (1, l, ...).

    Raises InputError for a size that the model cannot draw.
    """
    pixels_3HW = to_pixels(pixels_3HW, size or generator.resolution)
    return generator.tokenizer.encode(pixels_to_image(pixels_3HW[None]).to(generator.device))


def scales_of(schedule: ScaleSchedule, keep: int | str | None, strength: float | None) -> int:
    """How many scales stay. keep: their number, or "4x4" for those up to that grid. strength: 0 keeps all, 1 none.

    Raises InputError if both are given or one is out of range; half of the scales where neither is.
    """
    if keep is not None and strength is not None:
        raise InputError(f"keep {keep} and strength {strength} were both given, expected one of them: leave one out")
    if strength is not None:
        if not 0 <= strength <= 1:
            raise InputError(f"strength is {strength}, expected 0, which keeps the picture, to 1: correct it")
        return round((1 - strength) * schedule.count)
    if keep is None:
        return schedule.count // 2
    grids = [f"{size}x{size}" for size in schedule.sizes]
    if isinstance(keep, str) and not re.fullmatch(r"\d+", keep):
        if keep not in grids:
            raise InputError(f"keep is {keep!r}, expected a grid of this model: one of {', '.join(grids)}")
        return grids.index(keep) + 1
    if not 0 <= int(keep) <= schedule.count:
        raise InputError(f"keep is {keep}, expected 0 to {schedule.count} scales, or a grid: one of {', '.join(grids)}")
    return int(keep)


def given_coarse(codes: Sequence[Tensor], count: int, pictures: int) -> GivenCodes:
    """The first `count` scales stay, for so many pictures."""
    rows = [code.expand(pictures, *code.shape[1:]) for code in codes]
    return GivenCodes(rows, [torch.full(row.shape[:2], k < count) for k, row in enumerate(rows)])


def given_outside(codes: Sequence[Tensor], schedule: ScaleSchedule, covered_HW: Tensor, pictures: int) -> GivenCodes:
    """What a mask (bool, True: to be drawn) does not cover stays.

    A place of a coarse scale is drawn anew where at least half of it is covered, one of the finest where any of it is:
    so the whole keeps its colours, and no old code reaches into what is drawn.
    """
    known = []
    for k, grid in enumerate(schedule.grids):
        share_hw = F.adaptive_avg_pool2d(covered_HW.float()[None, None], grid)[0, 0]
        drawn_hw = share_hw > 0 if k == schedule.count - 1 else share_hw >= 0.5
        known.append(~drawn_hw.flatten().expand(pictures, -1))
    return GivenCodes([code.expand(pictures, *code.shape[1:]) for code in codes], known)


def paste(drawn_B3HW: Tensor, pixels_3HW: Tensor, covered_HW: Tensor) -> Tensor:
    """Drawn pixels where the mask covers, the picture's own elsewhere: uint8 (B, 3, H, W)."""
    return torch.where(covered_HW, drawn_B3HW, pixels_3HW)


def on_canvas(pixels_3HW: Tensor, size: tuple[int, int], margin: float | None) -> tuple[Tensor, Tensor]:
    """A picture in the middle of a white one of `size`, and the mask (H, W) of what is around it.

    margin: share of the side that is left on each side; None: the picture keeps its shape, as large as it fits in.
    Raises InputError if it leaves nothing.
    """
    H, W = size
    if margin is None:
        scale = min(H / pixels_3HW.shape[1], W / pixels_3HW.shape[2])
        return _placed(
            pixels_3HW, size, *((s - round(scale * p)) // 2 for s, p in zip(size, pixels_3HW.shape[1:], strict=True))
        )
    if not 0 < margin < 0.5 or min(round(H * (1 - 2 * margin)), round(W * (1 - 2 * margin))) < 1:
        raise InputError(f"margin is {margin}, expected a share of the side above 0 and below 0.5: correct it")
    return _placed(pixels_3HW, size, round(H * margin), round(W * margin))


def _placed(pixels_3HW: Tensor, size: tuple[int, int], top: int, left: int) -> tuple[Tensor, Tensor]:
    """See on_canvas: the picture with so many rows above and below, and so many columns beside it."""
    H, W = size
    small_3hw = to_pixels(pixels_3HW, (H - 2 * top, W - 2 * left))
    canvas_3HW = torch.full((3, H, W), WHITE, dtype=torch.uint8)
    canvas_3HW[:, top : H - top, left : W - left] = small_3hw
    covered_HW = torch.ones(H, W, dtype=torch.bool)
    covered_HW[top : H - top, left : W - left] = False
    return canvas_3HW, covered_HW
