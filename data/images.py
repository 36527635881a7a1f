"""Pictures in and out: bytes, PIL, `pixels` (uint8) and `image` (float in [-1, 1]); the only place that rounds.

Shapes: B batch, H W pixels, 3 RGB. `image` is float32 in [-1, 1], `pixels` is uint8 in [0, 255].
"""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from star.data.decoding import WHITE, decode
from star.data.disk import refusal
from star.data.errors import InputError
from star.data.files import shorten

Crop = Literal["center", "squash", "pad"]
CROPS: tuple[Crop, ...] = ("center", "squash", "pad")


def resize(picture: Image.Image, size: tuple[int, int], crop: Crop = "center") -> Image.Image:
    """Resizes to (H, W) with a Lanczos filter.

    "center" keeps the aspect and cuts what overhangs, equally on both sides; "pad" keeps the aspect and fills up with
    white; "squash" ignores the aspect. A picture that already has the size comes back untouched.
    """
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"Cannot resize to {height} x {width} pixels; give a height and width of at least 1.")
    if crop not in CROPS:
        raise InputError(f"Unknown crop {crop!r}; choose one of {', '.join(CROPS)}.")
    if picture.size == (width, height):
        return picture
    if crop == "squash":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    if crop == "pad":
        return _padded(picture, width, height)
    scale = max(width / picture.width, height / picture.height)
    cut_width, cut_height = min(width / scale, picture.width), min(height / scale, picture.height)
    left, top = (picture.width - cut_width) / 2, (picture.height - cut_height) / 2
    box = (left, top, left + cut_width, top + cut_height)
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def pil_to_pixels(picture: Image.Image) -> Tensor:
    """RGB PIL picture -> pixels_3HW."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def resize_pixels(pixels_3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """pixels_3HW uint8 -> pixels_3HW of (H, W), on the CPU, as `resize` does with what overhangs cut."""
    return pil_to_pixels(resize(pixels_to_pil(pixels_3HW), size))


def pixels_to_pil(pixels_3HW: Tensor) -> Image.Image:
    """pixels_3HW -> RGB PIL picture."""
    _check_pixels(pixels_3HW, 3)
    return Image.fromarray(pixels_3HW.permute(1, 2, 0).contiguous().cpu().numpy())


def pil_to_image(picture: Image.Image) -> Tensor:
    """RGB PIL picture -> image_3HW."""
    return pixels_to_image(pil_to_pixels(picture))


def pixels_to_image(pixels: Tensor) -> Tensor:
    """uint8 pixels of any shape -> float32 image in [-1, 1]; 0 becomes -1 and 255 becomes 1."""
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels are {pixels.dtype}, expected torch.uint8")
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def _padded(picture: Image.Image, width: int, height: int) -> Image.Image:
    """As ImageOps.pad, which before Pillow 13 fails where a side would shrink to nothing."""
    inside = [width, height]
    if picture.width * height > picture.height * width:
        inside[1] = max(1, round(picture.height / picture.width * width))
    else:
        inside[0] = max(1, round(picture.width / picture.height * height))
    canvas = Image.new(picture.mode, (width, height), (WHITE, WHITE, WHITE))
    place = (round((width - inside[0]) * 0.5), round((height - inside[1]) * 0.5))
    canvas.paste(picture.resize((inside[0], inside[1]), Image.Resampling.LANCZOS), place)
    return canvas


def image_to_pixels(image: Tensor) -> Tensor:
    """float image of any shape -> uint8 pixels, rounded to nearest and clamped; the inverse of pixels_to_image."""
    if not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}, expected a floating-point tensor in [-1, 1]")
    if not bool(torch.isfinite(image).all()):
        raise ValueError("image holds NaN or infinite values; look for the cause in the network that made it")
    return rounded(image)


def rounded(image: Tensor) -> Tensor:
    """`image_to_pixels` of an image that is known to be finite, so that nobody waits for the device to say so."""
    return image.detach().to(torch.float32).add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def _check_pixels(pixels: Tensor, dimensions: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != dimensions or pixels.shape[-3] != 3:
        wanted = "(3, H, W)" if dimensions == 3 else "(B, 3, H, W)"
        raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}, expected torch.uint8 {wanted}")


def save_png(pixels_3HW: Tensor, path: str | Path, text: Mapping[str, str] | None = None) -> None:
    """Writes a PNG, whole or not at all, with `text` as its metadata; creates missing folders.

    Raises InputError if the place cannot be written.
    """
    path = Path(path)
    info = PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, value)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels_to_pil(pixels_3HW).save(partial, format="PNG", pnginfo=info)
        partial.replace(path)
    except OSError as error:
        raise refusal(error, path) or InputError(
            f"Cannot write {path} ({error.strerror or error}); give a folder you can write to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_png(path: str | Path) -> Tensor:
    """Reads a picture file (PNG or any format `decode` knows) as pixels_3HW."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path} ({error.strerror or error}); give the path of a picture.") from error
    return pil_to_pixels(decode(data))


def read_text(path: str | Path) -> dict[str, str]:
    """The metadata of a picture file, as `save_png` writes it. Raises InputError for what is no picture, or damaged."""
    try:
        with Image.open(path) as picture:
            return {str(name): str(value) for name, value in picture.info.items() if isinstance(value, str)}
    except OSError as error:  # also what Pillow cannot identify
        reason = error.strerror or "it is no picture"
        raise InputError(f"{path} cannot be read ({reason}): give the path of a PNG") from error
    except Exception as error:  # Pillow's decoders raise whatever broken bytes provoke
        raise InputError(f"{path} cannot be read ({shorten(error, 100)}): give a whole PNG") from error


def grid(pixels_B3HW: Tensor, columns: int, pad: int = 2) -> Tensor:
    """Lays B pictures of one size out in rows of `columns`, `pad` white pixels apart -> pixels_3HW."""
    _check_pixels(pixels_B3HW, 4)
    B, _, H, W = pixels_B3HW.shape
    if B < 1 or columns < 1:
        raise ValueError(f"a grid of {B} pictures in {columns} columns; expected at least one of each")
    columns = min(columns, B)
    rows = -(-B // columns)
    canvas_3HW = pixels_B3HW.new_full((3, rows * (H + pad) - pad, columns * (W + pad) - pad), WHITE)
    for index in range(B):
        top, left = (index // columns) * (H + pad), (index % columns) * (W + pad)
        canvas_3HW[:, top : top + H, left : left + W] = pixels_B3HW[index]
    return canvas_3HW


def labelled_grid(
    rows: Sequence[Sequence[Tensor]], row_labels: Sequence[str], column_labels: Sequence[str], pad: int = 4
) -> Tensor:
    """A contact sheet -> pixels_3HW: rows of pixels_3HW with a label left of each row and above each column.

    Pictures may differ in size (each cell is as large as the largest); labels are wrapped to their place. Rows may be
    short. Raises ValueError if labels and rows differ in number.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0 or len(row_labels) != len(rows) or len(column_labels) != columns:
        raise ValueError(
            f"{len(rows)} rows of up to {columns} pictures with {len(row_labels)} row and {len(column_labels)} "
            "column labels; expected one label for each row and each column"
        )
    for row in rows:
        for pixels_3HW in row:
            _check_pixels(pixels_3HW, 3)
    height = max(int(picture.shape[1]) for row in rows for picture in row)
    width = max(int(picture.shape[2]) for row in rows for picture in row)
    font = ImageFont.load_default(size=11)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    longest = max(draw.textlength(" ".join(label.split()), font=font) for label in row_labels)
    label_width = min(160, math.ceil(longest) + pad) if longest else 0
    left_texts = [_wrap(draw, label, font, label_width - pad) for label in row_labels]
    top_texts = [_wrap(draw, label, font, width) for label in column_labels]
    top = max(_text_height(draw, text, font) for text in top_texts) + pad
    heights = [max(height, _text_height(draw, text, font)) for text in left_texts]
    sheet = Image.new("RGB", (label_width + columns * (width + pad), top + sum(heights) + pad * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(top_texts):
        draw.multiline_text((label_width + column * (width + pad), 0), text, fill="black", font=font)
    for row, text, row_height in zip(rows, left_texts, heights, strict=True):
        draw.multiline_text((0, top), text, fill="black", font=font)
        for column, pixels_3HW in enumerate(row):
            sheet.paste(pixels_to_pil(pixels_3HW), (label_width + column * (width + pad), top))
        top += row_height + pad
    return pil_to_pixels(sheet)


def _text_height(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(draw.multiline_textbbox((0, 0), text, font=font)[3]) + 1 if text else 0


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def thumbnail_features(pixels_B3HW: Tensor, side: int = 16) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, D): means over side x side equal areas in 0..1, and their differences
    downwards and to the right. D is 3 side^2 + 6 side (side - 1)."""
    small_B3SS = F.adaptive_avg_pool2d(pixels_B3HW.float() / 255, side)
    parts = (small_B3SS, small_B3SS.diff(dim=2), small_B3SS.diff(dim=3))
    return torch.cat([part.flatten(1) for part in parts], dim=1)
