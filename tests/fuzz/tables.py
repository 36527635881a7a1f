"""Broken pictures, captions and tables, packed: `python -m tests.fuzz.tables [--minutes 5] [--seed 0] [--keep DIR]`.

Sound files of every format are changed at random and read as `star data pack` reads them. What escapes as anything but
a sentence or a named fault, hangs or swells is printed, and kept in DIR. Exit code 1 if there is any.
"""

import argparse
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from star.data.decoding import decode_noting, upright_size
from star.data.errors import InputError
from star.data.formats import FORMATS
from star.data.packing.pack import pack
from star.data.shards.check import check
from tests.fuzz.harness import Reader, run

PER_TURN = 20  # changes of one kind, in one process
# What people and programs leave in text where it does not belong.
STRAY = (
    *(b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x1a"),
    *(b"\\ud83d", b"\\udc00", b"\xed\xa0\xbd", b"\xe9", b"{", b"}", b"[", b"]", b"[[" * 3000, b'{"a":' * 3000),
    *(b"null", b"NaN", b"1e999", b"9" * 5000, b"-", b"~/", b"~nobody/", b"../", b"/dev/zero", b"\\", b"'", b"captions"),
    *(b"a" * 140_000, b",," * 5000, "\u2028".encode(), "🍎".encode(), b"image", b"caption"),
)


def changed(data: bytes, chance: random.Random, text: bool) -> bytes:
    """Bytes flipped, set, cut out, doubled, moved; in text also what strays into it."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 6, 20))):
        at, length = chance.randrange(len(result) + 1), chance.choice((1, 1, 2, 4, 16, 100, 1000))
        way = chance.randrange(10 if text else 7)
        if way == 0 and result:
            result[at % len(result)] ^= 1 << chance.randrange(8)
        elif way == 1 and result:
            result[at % len(result)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        elif way == 2:
            del result[at : at + length]
        elif way == 3:
            result[at:at] = result[at : at + length]
        elif way == 4:
            result[at : at + 4] = chance.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
            )
        elif way == 5:
            del result[at if chance.random() < 0.3 else len(result) :]
        elif way == 6:
            source = chance.randrange(len(result) + 1)
            result[at : at + length] = result[source : source + length]
        else:
            result[at:at] = chance.choice(STRAY)
    return bytes(result)


def pictures() -> dict[str, bytes]:
    """A small picture of every format that Pillow writes, in several modes, some with profile and EXIF."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = {}
    for format in FORMATS:
        for mode in ("RGB", "RGBA", "P", "L", "1", "CMYK", "LAB", "I;16"):
            target = io.BytesIO()
            extra = {"exif": exif, "icc_profile": profile} if format in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}
            try:
                noise.convert(mode).save(target, format, **extra)
            except (KeyError, OSError, ValueError):  # not written by this Pillow, or not in this mode
                continue
            found[f"{mode.replace(';', '')}.{format.lower()}"] = target.getvalue()
    for format, frames in (("GIF", 3), ("WEBP", 2), ("PNG", 2), ("TIFF", 2), ("AVIF", 2)):
        target = io.BytesIO()
        noise.save(target, format, save_all=True, append_images=[noise.rotate(90 * n) for n in range(1, frames)])
        found[f"frames.{format.lower()}"] = target.getvalue()
    return found


def texts(folder: Path) -> dict[str, bytes]:
    """Tables and captions by their names, over pictures 0.png and 1.png."""
    rows = [{"image": f"{n % 2}.png", "caption": f'a "red", {n} apple', "by": "é"} for n in range(4)]
    lines = ["\t".join(map(str, row.values())) for row in rows]
    found = {
        "t.csv": "image,caption,by\n" + "".join(f'{row["image"]},"a ""red"", apple",é\n' for row in rows),
        "t.tsv": "\n".join(["image\tcaption\tby", *lines]),
        "t.jsonl": "".join(json.dumps(row | {"captions": ["a", "b"]}) + "\n" for row in rows),
        "meta_data.json": json.dumps({f"{n}": {"category": "food", "prompt": f"a pie {n}"} for n in range(3)}),
        "0.txt": "a red apple\n",
        "0.json": json.dumps({"caption": "a", "captions": ["b", "c"], "n": {"m": [1]}}),
    }
    encoded = {name: text.encode() for name, text in found.items()}
    encoded["wide.csv"] = found["t.csv"].encode("utf-16")
    try:
        import pyarrow
        from pyarrow.parquet import write_table
    except ImportError:
        return encoded
    cells = [row | {"image": {"bytes": b"x" * 20, "path": row["image"]}} for row in rows]
    for name, compression in (("t.parquet", "snappy"), ("plain.parquet", "none")):
        write_table(pyarrow.Table.from_pylist(cells), folder / name, row_group_size=2, compression=compression)
        encoded[name] = (folder / name).read_bytes()
    return encoded


def read_picture(path: Path) -> None:
    """As packing and training read it: both say the same size."""
    data = path.read_bytes()
    picture = decode_noting(data).picture
    assert picture.mode == "RGB"
    assert upright_size(data) == picture.size[::-1]


def read_profile(path: Path) -> None:
    """A colour profile in a picture, where neither compression nor sums hide that it was changed."""
    for mode in ("RGB", "L", "CMYK"):
        target = io.BytesIO()
        Image.new(mode, (8, 8)).save(target, "TIFF", icc_profile=path.read_bytes())
        decode_noting(target.getvalue())


def packing(sound: Path) -> Reader:
    """Packs the folder in which the file lies among sound pictures; what comes of it passes the check."""

    def read(path: Path) -> None:
        folder = path.parent
        for name in ("0.png", "1.png", "food/0.png", "food/1.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(sound.read_bytes())
        table = path.suffix in (".csv", ".tsv", ".jsonl", ".parquet")
        kind = "table" if table else "mjhq" if path.name == "meta_data.json" else "folder"
        try:
            report = pack(path if table else folder, folder / "out", kind=kind)  # type: ignore[arg-type]
            report.text().encode()
            faults = [fault for fault in check(folder / "out").faults if fault.reason != "duplicate picture"]
            assert not faults, faults
        finally:
            shutil.rmtree(folder / "out", ignore_errors=True)

    return read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what was found")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    chance, found, tried = random.Random(args.seed), 0, 0
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as place:
        sound = Path(place) / "sound.png"
        Image.new("RGB", (8, 8), "red").save(sound)
        kinds = [(name, data, False, read_picture) for name, data in pictures().items()]
        tables = [
            (name, data, not name.endswith("parquet"), packing(sound)) for name, data in texts(Path(place)).items()
        ]
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        kinds += [("profile.icc", profile, False, read_profile)] * 9
        decode_noting(sound.read_bytes())  # loads all plugins once
        while time.monotonic() < until:
            name, data, text, reader = chance.choice(kinds if chance.random() < 0.5 else tables)
            broken = [(name, changed(data, chance, text)) for _ in range(PER_TURN)]
            tried += len(broken)
            for failure in run(broken, reader, (InputError,)):
                found += 1
                print(str(failure)[-2000:], flush=True)
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    (args.keep / f"{found:04d}-{name}").write_bytes(failure.data)
    print(f"{tried} files of {len(kinds) + len(tables)} kinds, {found} failures")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
