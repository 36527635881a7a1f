"""Half a picture is no picture, and a small file that would take minutes or gigabytes is none either."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star.data.decoding import upright_size
from star.data.errors import InputError
from star.data.images import decode
from star.data.shards.check import check
from star.data.whole import PIXELS, ends_early

MakeShard = Callable[..., Path]
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG"},
    "progressive": {"format": "JPEG", "progressive": True},
    "webp": {"format": "WEBP"},
    "lossless webp": {"format": "WEBP", "lossless": True},
    "gif": {"format": "GIF"},
    "interlaced gif": {"format": "GIF", "interlace": 1},
    "tiff": {"format": "TIFF"},
    "lzw tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "jpeg tiff": {"format": "TIFF", "compression": "jpeg"},
    "bmp": {"format": "BMP"},
    "jp2": {"format": "JPEG2000"},
}


def encoded(size: tuple[int, int] = (80, 60), **options: Any) -> bytes:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = np.arange(size[0]) % 256
    pixels[..., 1] = np.arange(size[1])[:, None] % 256
    pixels[size[1] // 3 :, size[0] // 3 :] += np.random.default_rng(0).integers(
        0, 60, pixels[size[1] // 3 :, size[0] // 3 :].shape, dtype=np.uint8
    )
    target = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.quantize(64) if options["format"] == "GIF" else picture).save(target, **options)
    return target.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_cut_anywhere_is_refused(kind: str) -> None:
    data = encoded(**FORMATS[kind])
    whole = decode(data).tobytes()
    for part in np.linspace(0.05, 0.95, 10):
        with pytest.raises(InputError):
            decode(data[: int(len(data) * part)])
    with contextlib.suppress(InputError):  # without its last byte, which may be none of the pixels
        assert decode(data[:-1]).tobytes() == whole


@pytest.mark.parametrize("kind", ["png", "jpg", "progressive", "webp", "lossless webp", "gif", "jp2"])
def test_a_picture_whose_rest_is_zero_is_refused(kind: str) -> None:
    data = encoded((200, 160), **FORMATS[kind])
    assert decode(data).size == (200, 160)
    for part in (0.4, 0.6, 0.8):
        cut = int(len(data) * part)
        with pytest.raises(InputError):
            decode(data[:cut] + bytes(len(data) - cut))


@pytest.mark.parametrize("kind", ["jpg", "progressive"])
def test_a_jpeg_that_was_cut_and_closed_is_found_by_check(make_shard: MakeShard, kind: str) -> None:
    data = encoded(**FORMATS[kind])
    half = data[: int(len(data) * 0.7)] + b"\xff\xd9"
    assert not ends_early(data)
    assert ends_early(half)
    assert not ends_early(encoded(format="PNG"))
    blank = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(blank, "JPEG")
    assert not ends_early(blank.getvalue())
    shard = make_shard("s.tar", range(3), {"k000.png": data, "k001.png": half, "k002.png": blank.getvalue()})
    report = check(shard)
    assert [(fault.reason, fault.key) for fault in report.faults] == [("broken picture", "k001")]


def test_pictures_that_swell_are_refused_by_their_header() -> None:
    side = int(PIXELS**0.5)
    for mode, size in (("1", (side + 1, side)), ("I;16", (6000, 6000)), ("F", (6000, 6000)), ("L", (70000, 1000))):
        target = io.BytesIO()
        Image.new(mode, size).save(target, "TIFF" if mode == "F" else "PNG", compress_level=1)
        for reader in (decode, upright_size):
            with pytest.raises(InputError, match="at most"):
                reader(target.getvalue())


def test_a_jpeg_of_endless_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.data.whole.SCAN_PIXELS", 10**6)
    data = encoded((200, 160), format="JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * 1000 + data[-2:]
    with pytest.raises(InputError, match="scans"):
        decode(bomb)
    assert decode(data).size == (200, 160)
