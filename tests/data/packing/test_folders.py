"""Folders of captioned pictures as people have them: every file is packed, or counted and named."""

import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star.data import decoding
from star.data.errors import InputError
from star.data.images import decode
from star.data.packing.pack import PackReport, pack
from star.data.packing.sources import kind_of
from star.data.shards.tar import image_bytes, read_shard


def packed(out: Path) -> dict[str, dict[str, Any]]:
    """Records by key."""
    found = {}
    for shard in sorted(out.glob("*.tar")):
        for group in read_shard(str(shard), []):
            content = group.members["json"]
            assert isinstance(content, bytes)
            found[group.key] = json.loads(content)
    return found


def named(report: PackReport) -> dict[str, str]:
    return {fault.key: fault.reason for fault in report.skipped.named}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


@pytest.fixture
def add(folder: Path, picture: Callable[..., bytes]) -> Callable[..., None]:
    """add("a.png", "a caption") writes a picture and its caption, each unless None."""

    def write(name: str, caption: str | bytes | None = "a caption", data: bytes | None = None) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(len(name)) if data is None else data)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption.encode() if isinstance(caption, str) else caption)

    return write


# A still, lossless picture by ending; what has no place for colour is grey or black and white.
FORMATS = {
    **dict.fromkeys(("png", "PNG", "apng"), "PNG"),
    **dict.fromkeys(("JPG", "Jpeg", "jpe", "jfif"), "JPEG"),
    **dict.fromkeys(("jp2", "JP2", "j2k"), "JPEG2000"),
    **dict.fromkeys(("ppm", "pnm"), "PPM"),
    **dict.fromkeys(("tga", "TGA"), "TGA"),
    **dict.fromkeys(("tif", "TIFF"), "TIFF"),
    "avif": "AVIF",
    "bmp": "BMP",
    "dib": "DIB",
    "gif": "GIF",
    "ico": "ICO",
    "pcx": "PCX",
    "qoi": "QOI",
    "sgi": "SGI",
    "webp": "WEBP",
    "dds": "DDS",
    "mpo": "MPO",
}


def test_every_ending_that_pillow_reads_is_packed(folder: Path, add: Callable[..., None], tmp_path: Path) -> None:
    flat = Image.new("RGB", (32, 32), (200, 40, 80))
    written = []
    for number, (suffix, format) in enumerate(FORMATS.items()):
        target = io.BytesIO()
        try:
            flat.save(target, format)
        except (KeyError, OSError):  # this Pillow was built without it
            continue
        add(f"{number:02d}.{suffix}", f"as {suffix}", target.getvalue())
        written.append(suffix)
    assert len(written) > 20
    report = pack(folder, tmp_path / "out")
    assert (report.samples, report.skipped.total) == (len(written), 0)
    assert [record["caption"] for record in packed(tmp_path / "out").values()] == [f"as {end}" for end in written]
    for group in read_shard(str(tmp_path / "out" / "shard-00000.tar"), []):
        pixels = np.asarray(decode(image_bytes(group.members)[1])).astype(int)
        assert np.abs(pixels - (200, 40, 80)).max() <= 24  # of lossy ones, and of palettes


def test_files_that_are_no_samples_are_named(folder: Path, add: Callable[..., None], tmp_path: Path) -> None:
    add("good.png")
    add("unknown.img", "a picture by its content")
    add("bare", "without an ending")
    add("text.dat", "missing picture", b"words")
    add("lonely.png", None)
    add(".hidden.png")
    (folder / "left.txt").write_text("a caption without a picture")
    (folder / "left.json").write_text("{}")
    (folder / "README.md").write_text("about")
    (folder / "good.npz").write_bytes(b"beside a picture")
    (folder / "loud.PNG").write_bytes((folder / "good.png").read_bytes())
    (folder / "loud.TXT").write_text("loud")
    report = pack(folder, tmp_path / "out")
    assert list(packed(tmp_path / "out")) == ["bare", "good", "loud", "unknown"]
    assert named(report) == {
        "text.dat: text": "broken picture",
        "lonely.png: lonely": "missing caption",
        ".hidden.png": "not a picture",
        ".hidden.txt": "not a picture",
        "left.txt": "missing picture",
        "left.json": "missing picture",
        "README.md": "not a picture",
        "good.npz": "not a picture",
    }
    assert report.skipped.total == 4
    assert "1 x broken picture" in report.text()


def test_several_pictures_and_captions_of_one_name_are_told(
    folder: Path, add: Callable[..., None], tmp_path: Path
) -> None:
    add("a.png", "shared")
    add("a.jpg", None)
    (folder / "a.TXT").write_text("another")
    report = pack(folder, tmp_path / "out")
    assert [record["caption"] for record in packed(tmp_path / "out").values()] == ["shared", "shared"]
    assert named(report) == {
        "a.jpg: a": "caption shared by several pictures",
        "a.png: a": "caption shared by several pictures",
        "a.TXT": "missing picture",
    }
    assert report.skipped.total == 1


def test_links_are_followed_once_and_broken_ones_named(
    folder: Path, add: Callable[..., None], tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    add("real/a.png")
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("b", "deep/c"):
        (outside / f"{name}.png").write_bytes(picture(3))
        (outside / f"{name}.txt").write_text(name)
    (outside / "back").symlink_to(folder)
    (outside / "deep" / "round").symlink_to(outside)
    (folder / "again").symlink_to(outside)
    (folder / "elsewhere").symlink_to(outside)
    (folder / "one.png").symlink_to(folder / "real" / "a.png")
    (folder / "one.txt").write_text("one")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "gone.txt").write_text("gone")
    (folder / "self").symlink_to(folder / "self")
    (folder / "twice").symlink_to(folder / "real")
    report = pack(folder, tmp_path / "out")
    assert list(packed(tmp_path / "out")) == ["again__b", "again__deep__c", "one", "real__a"]
    assert named(report) == {
        "again/back": "folder already read",
        "again/deep/round": "folder already read",
        "elsewhere": "folder already read",
        "gone.png": "cannot be opened",
        "gone.txt": "missing picture",
        "self": "cannot be opened",
        "twice": "folder already read",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes by name there")
def test_pipes_are_named_and_not_opened(folder: Path, add: Callable[..., None], tmp_path: Path) -> None:
    add("good.png")
    os.mkfifo(folder / "pipe.png")
    assert named(pack(folder, tmp_path / "out")) == {"pipe.png": "not a regular file"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
def test_names_that_are_not_utf8_are_packed_and_can_be_told(
    folder: Path, add: Callable[..., None], tmp_path: Path
) -> None:
    add(os.fsdecode(b"caf\xe9.png"))
    add(os.fsdecode(b"bar\xe9.png"), None)
    report = pack(folder, tmp_path / "out")
    assert list(packed(tmp_path / "out")) == ["caf"]
    assert named(report) == {"bar\\udce9.png: bar\\udce9": "missing caption"}
    report.text().encode()


@pytest.mark.parametrize(
    "encoded",
    [
        codecs.BOM_UTF8 + "eine Blüte".encode(),
        "eine Blüte\r\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "eine Blüte".encode("utf-16-be"),
        "eine Blüte".encode("utf-16-le"),
        "\ufeff\n eine Blüte \ufeff".encode(),
        "\r\n\teine Blüte\r\n".encode(),
    ],
)
def test_captions_are_the_same_however_they_were_saved(
    encoded: bytes, folder: Path, add: Callable[..., None], tmp_path: Path
) -> None:
    add("a.png", encoded)
    pack(folder, tmp_path / "out")
    assert packed(tmp_path / "out") == {"a": {"caption": "eine Blüte"}}


@pytest.mark.parametrize(
    ("ending", "content", "reason"),
    [
        ("txt", b"", "empty caption"),
        ("txt", codecs.BOM_UTF8 + b" \r\n", "empty caption"),
        ("txt", "Blüte".encode("latin-1"), "broken text"),
        ("txt", codecs.BOM_UTF16_LE + b"a", "broken text"),
        ("json", b"{", "broken json"),
        ("json", b"[1]", "broken json"),
        ("json", b'{"caption": 3}', "missing caption"),
        ("json", b'{"caption": "a", "b": ' + b"[" * 5000 + b"]" * 5000 + b"}", "broken json"),
    ],
)
def test_bad_captions_cost_only_themselves(
    ending: str, content: bytes, reason: str, folder: Path, add: Callable[..., None], tmp_path: Path
) -> None:
    add("bad.png", None)
    (folder / f"bad.{ending}").write_bytes(content)
    add("good.png")
    report = pack(folder, tmp_path / "out")
    assert list(packed(tmp_path / "out")) == ["good"]
    assert named(report) == {"bad.png: bad": reason}


def test_half_an_emoji_is_repaired_and_said(folder: Path, add: Callable[..., None], tmp_path: Path) -> None:
    add("a.png", None)
    (folder / "a.json").write_text('{"caption": "half \\ud83d of \\ud83c\\udf4e", "by": "\\udc00"}')
    report = pack(folder, tmp_path / "out")
    assert packed(tmp_path / "out") == {"a": {"caption": "half \ufffd of 🍎", "by": "\ufffd"}}
    assert named(report) == {"a.png: a": "repaired text"}


def test_shards_among_pictures_are_asked_about(
    folder: Path, add: Callable[..., None], tmp_path: Path, make_shard: Callable[..., Path]
) -> None:
    make_shard("pictures/s.tar", range(2))
    (folder / "preview.png").write_bytes(b"")
    assert kind_of(str(folder)) == "shards"
    add("a.png")
    with pytest.raises(InputError, match=r"shards as well as pictures with captions \(a.png\)"):
        kind_of(str(folder))
    assert named(pack(folder, tmp_path / "out", kind="folder"))["s.tar"] == "not a picture"


def test_shards_written_among_the_pictures_are_not_read(folder: Path, add: Callable[..., None]) -> None:
    add("a.png")
    for _ in range(2):
        report = pack(folder, folder / "shards", overwrite=True)
        assert (report.samples, report.skipped.named) == (1, [])


def test_what_was_passed_over_in_a_picture_is_said(folder: Path, add: Callable[..., None], tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix, options in (("gif", {}), ("webp", {"lossless": True}), ("tif", {}), ("png", {})):
        target = io.BytesIO()
        format = {"tif": "TIFF"}.get(suffix, suffix.upper())
        frames[0].save(target, format, save_all=True, append_images=frames[1:], **options)
        add(f"moving-{suffix}.{suffix}", data=target.getvalue())
    target = io.BytesIO()
    frames[0].save(target, "PNG", icc_profile=b"no profile")
    add("profile.png", data=target.getvalue())
    target = io.BytesIO()
    frames[0].save(target, "PNG", exif=b"Exif\0\0damaged")
    add("turned.png", data=target.getvalue())
    report = pack(folder, tmp_path / "out")
    assert (report.samples, report.skipped.total) == (6, 0)
    assert report.skipped.reasons == {
        "first frame only": 4,
        "colour profile not applied": 1,
        "damaged EXIF": 1,
    }
    for group in read_shard(str(tmp_path / "out" / "shard-00000.tar"), []):
        red, green, blue = np.asarray(decode(image_bytes(group.members)[1])).reshape(-1, 3).mean(axis=0)
        assert (red > 240, green < 16, blue < 16) == (True, True, True)


def test_a_picture_of_an_extra_that_is_missing_names_it(
    folder: Path, add: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    decoding._formats.cache_clear()
    add("good.png")
    add("phone.HEIC", data=b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    add("new.jxl", data=b"\xff\x0a and more")
    add("boxed.jxl", data=b"\0\0\0\x0cJXL \r\n\x87\n and more")
    report = pack(folder, tmp_path / "out")
    decoding._formats.cache_clear()
    assert report.skipped.reasons == {"unsupported format": 3}
    assert "pip install 'star-t2i[heic]'" in report.text()
    assert "pip install 'star-t2i[jxl]'" in report.text()


@pytest.mark.parametrize(
    ("module", "format", "suffix"), [("pillow_heif", "HEIF", "heic"), ("pillow_jxl", "JXL", "jxl")]
)
def test_pictures_of_extras_are_packed(
    module: str, format: str, suffix: str, folder: Path, add: Callable[..., None], tmp_path: Path
) -> None:
    pytest.importorskip(module)
    assert format in decoding._formats()
    target = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 200, 30)).save(target, format)
    add(f"a.{suffix}", data=target.getvalue())
    assert pack(folder, tmp_path / "out").samples == 1
    (group,) = read_shard(str(tmp_path / "out" / "shard-00000.tar"), [])
    extension, data = image_bytes(group.members)
    assert extension == "png"
    assert np.abs(np.asarray(decode(data)).astype(int) - (10, 200, 30)).max() <= 24
