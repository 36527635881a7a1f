"""Pictures of benchmarks and external images, within bounds: bytes before they are read, pixels before decoding.

Many threads decode at a time; a picture that is large is decoded alone, so that memory stays bounded.
H W pixels, 3 RGB.
"""

import threading
from importlib.resources.abc import Traversable

from PIL import Image
from torch import Tensor

from star.data.decoding import upright_size
from star.data.errors import InputError
from star.data.files import MIB, read_bytes, size_of
from star.data.images import decode, pil_to_pixels

MAX_BYTES = 128 * MIB
MAX_PIXELS = 2**25  # 5792 x 5792; a decoder's copies take some 16 bytes for each
LARGE = 2**23  # pixels or bytes from which a picture is decoded alone
_ALONE = threading.Lock()


def read_encoded(file: Traversable) -> bytes:
    """The bytes of a picture file. Raises OSError, or what a damaged zip provokes; see `star.data.files.read_bytes`."""
    if size_of(file) > LARGE:
        with _ALONE:
            return read_bytes(file, MAX_BYTES)
    return read_bytes(file, MAX_BYTES)


def decode_bounded(data: bytes) -> Image.Image:
    """As `star.data.images.decode`. Raises InputError, also for a picture of more than MAX_PIXELS."""
    height, width = upright_size(data)
    if height * width > MAX_PIXELS:
        raise InputError(f"it has {height} x {width} pixels, at most {MAX_PIXELS:,} are decoded: make it smaller")
    if max(height * width, len(data)) > LARGE:
        with _ALONE:
            return decode(data)
    return decode(data)


def read_pixels(file: Traversable) -> Tensor:
    """pixels_3HW of a picture file. Raises as the two above."""
    return pil_to_pixels(decode_bounded(read_encoded(file)))
