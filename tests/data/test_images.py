"""Pictures in and out: every kind of file becomes upright RGB on white, and only image_to_pixels rounds."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from star.data.decoding import decode_noting, upright_size
from star.data.errors import InputError
from star.data.images import (
    decode,
    grid,
    image_to_pixels,
    labelled_grid,
    pil_to_image,
    pil_to_pixels,
    pixels_to_image,
    pixels_to_pil,
    read_png,
    resize,
    save_png,
)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, format, **options)
    return target.getvalue()


def test_every_pixel_value_survives_the_way_to_float_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    image = pixels_to_image(pixels)
    assert image.dtype == torch.float32
    assert image.min() == -1
    assert image.max() == 1
    assert torch.equal(image_to_pixels(image), pixels)


def test_image_to_pixels_rounds_to_nearest_and_clamps() -> None:
    steps = torch.tensor([-7.0, -1.0, -1 + 0.9 / 127.5 / 2, -1 + 1.1 / 127.5 / 2, 1.0, 7.0])
    assert image_to_pixels(steps).tolist() == [0, 0, 0, 1, 255, 255]


def test_conversions_refuse_the_other_kind_and_nan() -> None:
    with pytest.raises(ValueError, match=r"expected torch\.uint8"):
        pixels_to_image(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="floating-point"):
        image_to_pixels(torch.zeros(3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="NaN"):
        image_to_pixels(torch.full((3, 2, 2), float("nan")))


def test_transparency_is_put_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 2, 4))
    for format in ("PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        picture = decode(encoded(half, format, **options))
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == (255, 0, 0)
        assert picture.getpixel((3, 3)) == (255, 255, 255)
    grey = decode(encoded(Image.new("LA", (2, 2), (0, 128))))
    assert grey.getpixel((0, 0)) == (127, 127, 127)


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 255, 255, 10, 200, 30, 0, 0, 255])
    palette.paste(2, (0, 0, 2, 4))
    assert decode(encoded(palette)).getpixel((3, 0)) == (10, 200, 30)
    assert decode(encoded(palette, transparency=2)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(palette, transparency=bytes([255, 128, 0]))).getpixel((3, 0)) == (132, 227, 142)
    assert decode(encoded(palette, "GIF")).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb_of_the_same_look(mode: str) -> None:
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("before version 13 Pillow cannot read the YCbCr TIFF that it writes")
    grey = Image.new("L", (6, 4), 255)
    grey.paste(0, (0, 0, 3, 4))
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    assert picture.mode == mode
    format = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    decoded = np.asarray(decode(encoded(picture, format)))
    assert decoded.shape == (4, 6, 3)
    assert np.abs(decoded.astype(int) - np.asarray(grey)[..., None]).max() <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(values))))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_turns_the_picture_upright() -> None:
    picture = Image.new("RGB", (4, 2), "white")
    picture.paste("black", (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    decoded = decode(encoded(picture, exif=exif))
    assert decoded.size == (2, 4)
    assert decoded.getpixel((0, 0)) == (0, 0, 0)
    assert decoded.getpixel((0, 3)) == (255, 255, 255)


@pytest.mark.parametrize("cut", [0, 10, 60, -100])
def test_broken_bytes_are_an_input_error(cut: int, picture: Callable[..., bytes]) -> None:
    with pytest.raises(InputError, match="not a readable picture"):
        decode(picture(0, (32, 32))[:cut])


def swapped_profile(colour_space: str = "RGB") -> bytes:
    """sRGB with its red and green primaries exchanged, by exchanging the names of their tags."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[place : place + 4]): place for place in range(132, 132 + 12 * 30, 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    if colour_space != "RGB":
        profile[16:20] = colour_space.ljust(4).encode()
    return bytes(profile)


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_colour_profiles_are_applied(format: str, options: dict[str, Any]) -> None:
    red = Image.new("RGB", (16, 16), (250, 20, 20))
    managed = decode(encoded(red, format, icc_profile=swapped_profile(), **options))
    assert near(np.asarray(managed), (20, 250, 20))
    assert near(np.asarray(decode(encoded(managed))), (20, 250, 20))  # the profile is not saved with it again
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = decode(encoded(red, format, **options))
    assert decode(encoded(red, format, icc_profile=same, **options)).tobytes() == plain.tobytes()


def test_colour_profiles_leave_transparency_and_palettes_as_they_are() -> None:
    half = Image.new("RGBA", (4, 4), (250, 20, 20, 0))
    half.paste((250, 20, 20, 255), (0, 0, 2, 4))
    for picture in (half, half.quantize(4)):
        pixels = np.asarray(decode(encoded(picture, icc_profile=swapped_profile())))
        assert near(pixels[:, :2], (20, 250, 20))
        assert (pixels[:, 2:] == 255).all()
    grey = np.asarray(decode(encoded(Image.new("L", (4, 4), 128), icc_profile=swapped_profile())))
    assert np.ptp(grey.astype(int)) <= 2


@pytest.mark.parametrize(
    "profile", [b"x", b"\0" * 4000, swapped_profile()[:200], swapped_profile("CMYK"), swapped_profile("GRAY")]
)
def test_profiles_that_are_damaged_or_foreign_are_noted(profile: bytes) -> None:
    red = Image.new("RGB", (16, 16), (250, 20, 20))
    picture, format, notes = decode_noting(encoded(red, icc_profile=profile))
    assert (picture.tobytes(), format) == (red.tobytes(), "PNG")
    assert [reason for reason, _ in notes] == ["colour profile not applied"]


def test_lab_becomes_rgb() -> None:
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    picture = ImageCms.applyTransform(Image.new("RGB", (4, 4), (200, 40, 80)), lab)
    assert picture is not None
    assert np.abs(np.asarray(decode(encoded(picture, "TIFF"))).astype(int) - (200, 40, 80)).max() <= 4


def test_grey_of_32_bits_is_refused_and_of_16_bits_scaled_in_every_format() -> None:
    values = np.array([[0, 257, 32896, 65535]])
    wide = Image.fromarray(values.astype(np.int32))
    with pytest.raises(InputError, match="32-bit pictures have no fixed range"):
        decode(encoded(wide, "TIFF"))
    for format in ("PNG", "TIFF", "PPM"):
        picture = Image.fromarray(values.astype(np.uint16))
        assert np.asarray(decode(encoded(picture, format)))[0, :, 0].tolist() == [0, 1, 128, 255]
    clear = encoded(Image.fromarray(values.astype(np.uint16)), transparency=257)
    assert np.asarray(decode(clear))[0, :, 0].tolist() == [0, 255, 128, 255]


def test_a_transparent_colour_of_16_bits_is_put_on_white() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + struct.pack(">6H", 1000, 2000, 3000, 60000, 0, 0)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    clear = chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))
    body = chunk(b"IHDR", header) + clear + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    decoded = decode(b"\x89PNG\r\n\x1a\n" + body)
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (234, 0, 0)]


def test_drawings_that_would_start_an_interpreter_are_not_opened() -> None:
    postscript = encoded(Image.new("RGB", (8, 8), "red"), "EPS")
    with pytest.raises(InputError, match="no known format"):
        decode(postscript)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_picture_agree_on_what_is_upright(orientation: int) -> None:
    picture = Image.new("RGB", (6, 4), "white")
    picture.paste("black", (0, 0, 3, 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        data = encoded(picture, format, exif=exif)
        decoded = decode(data)
        assert upright_size(data) == decoded.size[::-1]
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        assert np.array_equal(np.asarray(decoded), expected)


def test_floating_point_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="no fixed range"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


def test_a_picture_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = encoded(Image.new("1", (10000, 10000)))
    assert len(bomb) < 20000
    with pytest.raises(InputError, match="decompression bomb"):
        decode(bomb)


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels.astype(int) - colour) <= 16).all())


def test_crops_do_what_they_say() -> None:
    wide = Image.new("RGB", (40, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (0, 0, 10, 20))  # the left quarter
    center = np.asarray(resize(wide, (10, 10), "center"))
    squash = np.asarray(resize(wide, (10, 10), "squash"))
    pad = np.asarray(resize(wide, (10, 10), "pad"))
    assert center.shape == squash.shape == pad.shape == (10, 10, 3)
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    assert near(center, blue)  # the middle half of the width has no red, but for the filter's edge
    for picture in (squash, pad[3:7]):
        assert near(picture[:, :2], red)
        assert near(picture[:, 3:], blue)
    assert near(pad[:2], white)
    assert near(pad[8:], white)


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("size", [(7, 13), (16, 4), (1, 1)])
def test_resize_gives_the_size_asked_for(crop: Any, size: tuple[int, int]) -> None:
    for source in ((3, 50), (50, 3), (9, 9)):
        assert resize(Image.new("RGB", source), size, crop).size == size[::-1]


def test_resize_leaves_a_fitting_picture_alone_and_refuses_nonsense() -> None:
    picture = Image.new("RGB", (5, 3))
    assert resize(picture, (3, 5)) is picture
    with pytest.raises(InputError, match="Unknown crop 'middle'"):
        resize(picture, (2, 2), "middle")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 x 2 pixels"):
        resize(picture, (0, 2))


def test_png_keeps_pixels_and_text_in_any_script(tmp_path: Path) -> None:
    pixels_3HW = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    path = tmp_path / "new" / "picture.png"
    text = {"prompt": "苹果 🍎 تفاحة", "seed": "3"}
    save_png(pixels_3HW, path, text)
    assert torch.equal(read_png(path), pixels_3HW)
    with Image.open(path) as picture:
        assert picture.info == text
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_unwritable_and_unreadable_places_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "file" / "picture.png")
    with pytest.raises(InputError, match="Cannot read"):
        read_png(tmp_path / "missing.png")


def test_pil_and_pixels_agree_on_where_height_is() -> None:
    picture = Image.new("RGB", (7, 5))
    picture.putpixel((6, 0), (1, 2, 3))
    pixels_3HW = pil_to_pixels(picture)
    assert pixels_3HW.shape == (3, 5, 7)
    assert pixels_3HW[:, 0, 6].tolist() == [1, 2, 3]
    assert pixels_to_pil(pixels_3HW).tobytes() == picture.tobytes()
    assert torch.equal(pil_to_image(picture), pixels_to_image(pixels_3HW))


def test_grid_places_each_picture_and_pads_with_white() -> None:
    pixels_B3HW = torch.randint(0, 250, (5, 3, 4, 6), dtype=torch.uint8)
    sheet_3HW = grid(pixels_B3HW, columns=3, pad=2)
    assert sheet_3HW.shape == (3, 2 * 4 + 2, 3 * 6 + 4)
    assert torch.equal(sheet_3HW[:, 6:10, 8:14], pixels_B3HW[4])
    assert int((sheet_3HW != 255).sum()) == pixels_B3HW.numel()
    assert grid(pixels_B3HW[:2], columns=9).shape == (3, 4, 14)
    with pytest.raises(ValueError, match="at least one"):
        grid(pixels_B3HW[:0], columns=3)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        grid(pixels_B3HW[0], columns=3)


def test_labelled_grid_shows_every_picture_and_its_labels() -> None:
    rows = [
        [torch.full((3, 20, 20), value, dtype=torch.uint8) for value in (10, 20)],
        [torch.full((3, 20, 20), 30, dtype=torch.uint8)],
    ]
    labels = ["a label that is longer than the room at the left of its row", "صورة"]
    sheet_3HW = labelled_grid(rows, labels, ["one", "two"])
    bare_3HW = labelled_grid(rows, ["", ""], ["", ""])
    for value in (10, 20, 30):
        for sheet in (sheet_3HW, bare_3HW):
            assert int((sheet == value).all(0).sum()) >= 400
    assert sheet_3HW.shape[2] > bare_3HW.shape[2]
    assert bare_3HW.shape == (3, 2 * 24 + 4, 2 * 24)
    with pytest.raises(ValueError, match="one label for each"):
        labelled_grid(rows, ["one"], ["one", "two"])
