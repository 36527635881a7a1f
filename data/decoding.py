"""Encoded pictures of every format that Pillow reads become upright 8-bit RGB on white, in sRGB."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from star.data import formats
from star.data.colour import ProfileError, lab_to_srgb, to_srgb
from star.data.errors import InputError
from star.data.shards.faults import Reason
from star.data.whole import check_sane

WHITE = 255
Notes = list[tuple[Reason, str]]
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """A picture, upright 8-bit RGB on white; its format as Pillow names it; what was passed over (reason, detail)."""

    picture: Image.Image
    format: str
    notes: tuple[tuple[Reason, str], ...]


def decode(data: bytes) -> Image.Image:
    """Decodes an encoded picture to upright 8-bit RGB on white.

    Transparency is put on white, palettes, CMYK, L*a*b* and grey are converted, 16-bit grey is scaled to 8 bits, an ICC
    profile is applied (the result is sRGB), the EXIF orientation too. Of several frames or pages the first is taken.
    Raises InputError for anything that is not a whole, readable picture of sane size, and for grey of 32 bits or
    floating point, which has no fixed range.
    """
    return _decode(data, []).picture


def decode_noting(data: bytes) -> Decoded:
    """`decode`, and what was passed over: further frames, a damaged colour profile or EXIF."""
    notes: Notes = []
    decoded = _decode(data, notes)
    frames = False
    with contextlib.suppress(Exception), _only_bombs():  # a damaged second frame does not hurt the first
        frames = decoded.format != "PSD" and getattr(_open(data), "is_animated", False)  # layers of PSD are no frames
    if frames:
        notes.append(("first frame only", "it has several frames or pages"))
    return decoded._replace(notes=tuple(notes))


def _decode(data: bytes, notes: Notes) -> Decoded:
    try:
        with _only_bombs():
            picture = _open(data)
            check_sane(picture, data)
            format, profile = picture.format or "", picture.info.get("icc_profile")
            picture.load()
            orientation = _orientation(picture)
            if orientation is None:
                notes.append(("damaged EXIF", "it may not be upright"))
            rgb = _to_rgb(picture, profile, notes)
            if orientation in UPRIGHT:
                rgb = rgb.transpose(UPRIGHT[orientation])
            rgb.info = {}  # profile and transparency were applied, and are not to be saved with it
    except Exception as error:  # PIL's decoders raise whatever broken bytes provoke
        raise _unreadable(data, error) from error
    return Decoded(rgb, format, ())


def upright_size(data: bytes) -> tuple[int, int]:
    """(H, W) that an encoded picture will have when decoded, from its header alone. Raises InputError as `decode`."""
    try:
        with _only_bombs():
            picture = _open(data)
            check_sane(picture, data)
            width, height = picture.size
            turned = _orientation(picture) in (5, 6, 7, 8)
    except Exception as error:
        raise _unreadable(data, error) from error
    return (width, height) if turned else (height, width)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_formats())


@contextlib.contextmanager
def _only_bombs() -> Iterator[None]:
    """Of what PIL warns of, only a picture of absurd size is an error; the rest is not for the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow and the installed plugins read."""
    for module in formats.PLUGINS.values():
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            plugin = importlib.import_module(module)
            if hasattr(plugin, "register_heif_opener"):  # the other registers when it is imported
                plugin.register_heif_opener()
    Image.init()
    return tuple(name for name in formats.FORMATS if name in Image.OPEN)


def _orientation(picture: Image.Image) -> int | None:
    """The EXIF orientation that is still to be applied, 1 (upright) if none is, None if it is unknown."""
    # Without any of these a PNG would be decoded in search of it.
    hints = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & picture.info.keys()
    if not hints or picture.format == "TIFF":  # which PIL turns by itself
        return 1
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        try:
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # as above
            return None
    if orientation is None and not complaints:
        return 1
    return orientation if isinstance(orientation, int) else None


def _unreadable(data: bytes, error: Exception) -> InputError:
    extra = formats.extra_for(data[:16]) if isinstance(error, UnidentifiedImageError) else None
    if extra is not None:
        return InputError(
            f"This is a picture that {formats.PLUGINS[extra]} reads, which is not installed or does not know it; run "
            f"`pip install 'star-t2i[{extra}]'`, or give a JPEG, PNG or WebP file."
        )
    reason = "no known format" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
    return InputError(
        f"These {len(data)} bytes are not a readable picture ({reason}); give a whole JPEG, PNG or WebP file."
    )


def _to_rgb(picture: Image.Image, profile: object, notes: Notes) -> Image.Image:
    if picture.mode[0] in "IF":
        picture = _scaled_grey(picture)
    if picture.mode == "LAB":
        return lab_to_srgb(picture)
    if isinstance(clear := picture.info.get("transparency"), tuple) and max(clear) > 255:
        picture.info["transparency"] = tuple(value >> 8 for value in clear)  # of 16 bits, as PIL cuts the pixels
    if not picture.has_transparency_data:
        return _managed(picture.convert("RGB") if picture.mode not in ("L", "CMYK") else picture, profile, notes)
    rgba = picture.convert("RGBA")
    if profile:
        managed = _managed(rgba.convert("RGB"), profile, notes)
        managed.putalpha(rgba.getchannel("A"))
        rgba = managed
    white = Image.new("RGBA", rgba.size, (WHITE, WHITE, WHITE, WHITE))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _managed(picture: Image.Image, profile: object, notes: Notes) -> Image.Image:
    if isinstance(profile, bytes) and profile:
        try:
            picture = to_srgb(picture, profile)
        except ProfileError as error:
            notes.append(("colour profile not applied", str(error)))
    return picture.convert("RGB")


def _scaled_grey(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits, which PIL's own conversion would clip instead of scale."""
    if picture.mode == "F":
        raise ValueError("floating-point pictures have no fixed range")
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # these two have 16 bits at most, or are scaled
        raise ValueError("32-bit pictures have no fixed range")
    values = np.asarray(picture).astype(np.float64)
    grey = np.rint(values.clip(0, 65535) / 257).astype(np.uint8)
    if isinstance(clear := picture.info.get("transparency"), int):
        grey[values == clear] = WHITE
    return Image.fromarray(grey)
