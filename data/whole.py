"""Whether an encoded picture is all there and takes neither minutes nor gigabytes: what Pillow does not look at."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops

PIXELS = 2**26
COSTLY_PIXELS = 2**25  # of 16- and 32-bit grey and of L*a*b*, which take several times the memory
SCANS, SCAN_PIXELS = 16, 2**30  # a progressive JPEG decodes all its pixels again for each scan; ten are usual
TAIL = bytes(64)  # entropy-coded data do not end so, a file that was filled up with zeros does
FILL = bytes(range(1, 255)) * 4
SIGNATURE, TRAILER = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # how a whole PNG begins and ends (PNG 1.2, §3 and §4)


def is_whole_png(path: Path) -> bool:
    """Whether a PNG is there from its first byte to its last."""
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return False
        with path.open("rb") as file:
            start = file.read(len(SIGNATURE))
            file.seek(-len(TRAILER), 2)
            return start == SIGNATURE and file.read() == TRAILER
    except OSError:
        return False


def check_sane(picture: Image.Image, data: bytes) -> None:
    """Looks at a picture that was opened but not loaded. Raises ValueError if it would take too much, or is cut off."""
    pixels = picture.width * picture.height
    bound = COSTLY_PIXELS if picture.mode[0] in "IF" or picture.mode == "LAB" else PIXELS
    if pixels > bound:
        raise ValueError(f"{picture.width} x {picture.height} pixels of mode {picture.mode}, at most {bound} are read")
    if picture.format == "JPEG":
        scans = data.count(b"\xff\xda")
        if scans > SCANS and scans * pixels > SCAN_PIXELS:
            raise ValueError(f"a JPEG of {scans} scans of {pixels} pixels")
    if picture.format == "WEBP" and any(part.endswith(TAIL) for part in _webp_pictures(data)):
        raise ValueError("the rest of its data is zero")
    if picture.format == "AVIF" and data.endswith(TAIL):
        raise ValueError("the rest of its data is zero")


def ends_early(data: bytes) -> bool:
    """Whether a JPEG was cut and closed: its decoder makes grey of what is missing, without a word.

    Told by bytes put in before its end: a decoder that has all pixels passes over them. Takes two more decodings.
    """
    end = data.rfind(b"\xff\xd9")
    if not data.startswith(b"\xff\xd8") or end < data.rfind(b"\xff\xda"):
        return False
    try:
        pictures = [Image.open(io.BytesIO(part)) for part in (data, data[:end] + FILL + data[end:])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            left, right = (picture.convert("RGB") for picture in pictures)
    except Exception:  # PIL's decoders raise whatever broken bytes provoke
        return True
    return ImageChops.difference(left, right).getbbox() is not None


def _webp_pictures(data: bytes) -> Iterator[bytes]:
    """The contents of the chunks with pixels; those in frames of an animation are left to the decoder."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] in (b"VP8 ", b"VP8L") and size >= 2 * len(TAIL):
            yield data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
