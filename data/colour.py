"""Colour profiles: pictures that say what their numbers mean become sRGB."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# A difference that rounding in tables makes between two makers' sRGB.
SAME = 2


class ProfileError(ValueError):
    """A colour profile that is damaged, or of another kind of picture."""


def to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """The picture (RGB, L, CMYK or LAB, 8 bits, no transparency) as RGB in sRGB by its ICC profile.

    Perceptual intent, as browsers do. A picture whose profile is sRGB comes back as it is. Raises ProfileError if the
    profile is damaged or does not fit the kind of picture.
    """
    try:
        space = _space(profile)
        if space == "RGB" and picture.mode in ("L", "RGB"):
            picture = picture.convert("RGB")  # grey under a profile of colours: the same for all three
        elif space == "GRAY" and picture.mode == "RGB" and _is_grey(picture):
            picture = picture.getchannel(0)
        if MODES.get(space) != picture.mode:
            raise ProfileError(f"it is for {space}, the picture is {picture.mode}")
        transform = _transform(profile, picture.mode)
        return picture if transform is None else ImageCms.applyTransform(picture, transform) or picture
    except ImportError as error:
        raise ProfileError("Pillow was built without littlecms2") from error
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise ProfileError(str(error)) from error


def lab_to_srgb(picture: Image.Image) -> Image.Image:
    """A CIE L*a*b* picture as RGB."""
    lab = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    managed = ImageCms.applyTransform(picture, lab)
    assert managed is not None  # it is not done in place
    return managed


MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by colour space of the profile


@lru_cache(maxsize=16)
def _space(profile: bytes) -> str:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """To sRGB; None if that changes nothing."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "RGB":
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    managed = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
    return None if np.abs(managed.astype(int) - cube).max() <= SAME else transform


def _is_grey(picture: Image.Image) -> bool:
    red, green, blue = (channel.tobytes() for channel in picture.split())
    return red == green == blue
