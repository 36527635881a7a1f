"""Frames as a strip (PNG), a GIF, or an MP4 where imageio-ffmpeg is installed.

write(frames, Path("morph.gif"), seconds=0.1)        # what the suffix says
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from star.data.disk import writing
from star.data.errors import InputError
from star.data.images import pil_to_pixels, save_png
from star.pictures.sheet import sheet

SUFFIXES = (".png", ".gif", ".mp4")
HOLD = 6  # times as long as the others are the first and the last frame of a film shown


def check_suffixes(paths: Sequence[str]) -> None:
    """Raises InputError for a file whose suffix says no kind of film, or whose kind cannot be written here."""
    for path in paths:
        suffix = Path(path).suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f"{path} was given to write, expected a name that ends with {', '.join(SUFFIXES)}: change")
        if suffix == ".mp4":
            _ffmpeg()


def enlarged(picture: Image.Image, zoom: int) -> Image.Image:
    """The picture so many times as large, each pixel a square."""
    if zoom == 1:
        return picture
    return picture.resize((zoom * picture.width, zoom * picture.height), Image.Resampling.NEAREST)


def write(
    frames: Sequence[Image.Image],
    path: Path,
    *,
    seconds: float,
    columns: int = 0,
    text: Mapping[str, str] | None = None,
) -> None:
    """Writes frames of one size, whole or not at all: .png side by side, .gif and .mp4 one after the other.

    seconds: that each is shown. columns: frames in a row of a strip; 0: all. text: metadata of a PNG. Raises InputError
    if the place cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        save_png(sheet([pil_to_pixels(frame) for frame in frames], columns or len(frames)), path, text)
        return
    partial = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            (_write_gif if suffix == ".gif" else _write_mp4)(frames, partial, seconds)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _write_gif(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """One palette for all frames, so that what stands still does not flicker."""
    wide = Image.new("RGB", (sum(frame.width for frame in frames), frames[0].height))
    for i, frame in enumerate(frames):
        wide.paste(frame, (i * frame.width, 0))
    palette = wide.quantize(255, dither=Image.Dither.NONE)
    indexed = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    shown = [round(1000 * seconds)] * len(frames)
    shown[0], shown[-1] = HOLD * shown[0], HOLD * shown[-1]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=shown, loop=0, optimize=False)


def _write_mp4(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """H.264; sides that are odd get a row or column of white."""
    ffmpeg = _ffmpeg()
    width, height = frames[0].size
    size = (width + width % 2, height + height % 2)
    writer = ffmpeg.write_frames(str(path), size, fps=1 / seconds, macro_block_size=1, quality=8)
    writer.send(None)
    for i, frame in enumerate(frames):
        even = Image.new("RGB", size, "white")
        even.paste(frame, (0, 0))
        for _ in range(HOLD if i in (0, len(frames) - 1) else 1):
            writer.send(np.ascontiguousarray(even))
    writer.close()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise InputError(
            "an MP4 needs imageio-ffmpeg, which is not installed: `pip install imageio-ffmpeg`, or write a .gif"
        ) from error
    return imageio_ffmpeg
