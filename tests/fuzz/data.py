"""Mutates shards, pictures, indexes, lists and captions and feeds them to their readers.

    python -m tests.fuzz.data --seconds 600 --seed 0 --out found

Prints every failure, and writes its file to --out. Exit code 1 if there are any. For shards it is also a failure if
what is read by place differs from what is streamed.
"""

import argparse
import contextlib
import gzip
import io
import json
import logging
import random
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from star.data.captions import captions_of, text_repaired
from star.data.decoding import upright_size
from star.data.errors import InputError
from star.data.images import decode
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.check import check
from star.data.shards.faults import Fault, SampleError
from star.data.shards.listing import list_shards
from star.data.shards.remote import read_json
from star.data.shards.tar import fetch, index_shard, is_seekable, read_shard
from star.data.shards.write import read_index
from star.data.whole import ends_early
from tests.fuzz.harness import Failure, run

PER_TURN = 20  # mutations of one kind, in one process
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "JPEG2000", "PPM", "TGA")
WORDS: tuple[bytes, ...] = (
    *(b"\0" * 512, b"\xff" * 16, b"{" * 2000, b"[" * 2000, b"\\ud83c", b"\xef\xbb\xbf", b"pipe:", b"::", b"../"),
    *(b"ustar", b"\x80\0\0\0\xff\xff\xff\xff", b"77777777777", b"x", b"L", b"S", b"GNU.sparse.major=1", b"size=-1"),
    *(b"{0..99999999}", b"9" * 400, b"NaN", b"*", b"\r\n", b"file:///etc/", b"\xff\xda", b"\xff\xd9", b"IDAT"),
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats, exchanges, puts in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, how = rng.randrange(len(changed) + 1), rng.randrange(7)
        if how == 0 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif how == 1:
            del changed[at:]
        elif how == 2:
            del changed[at : at + rng.choice((1, 16, 512))]
        elif how == 3:
            changed[at:at] = changed[at : at + rng.choice((4, 512, 4096))] * rng.choice((1, 3))
        elif how == 4:
            changed[at:at] = rng.choice(WORDS)
        elif how == 5:
            word = rng.choice(WORDS)
            changed[at : at + len(word)] = word
        else:
            changed[at:at] = rng.randbytes(rng.choice((1, 8, 600)))
    return bytes(changed)


def mend_sums(data: bytes) -> bytes:
    """A tar with the sums of its headers made right, so that what was changed in them is believed."""
    changed = bytearray(data)
    for at in range(0, len(changed) - 511, 512):
        block = changed[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            changed[at + 148 : at + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(changed)


def pictures() -> list[tuple[str, bytes]]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    found = []
    for kind in FORMATS:
        target = io.BytesIO()
        Image.fromarray(noise).save(target, kind)
        found.append((f"picture.{kind.lower()}", target.getvalue()))
    for options in ({"format": "PNG"}, {"format": "TIFF"}):
        target = io.BytesIO()
        Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(target, **options)
        found.append(("picture.bin", target.getvalue()))
    target = io.BytesIO()
    Image.fromarray(noise).save(target, "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    return [*found, ("picture.jpg", target.getvalue())]


def tar(format: int) -> bytes:
    target = io.BytesIO()
    png = pictures()[0][1]
    with tarfile.open(fileobj=target, mode="w", format=format) as file:
        for number in range(4):
            stem = f"{'long' * 40 if number == 2 else 'k'}{number}"
            record = json.dumps({"caption": "a", "captions": ["b \ud83c\udf4e"]}).encode()
            for name, data in ((f"{stem}.png", png), (f"{stem}.json", record), (f"{stem}.txt", b"c")):
                header = tarfile.TarInfo(name)
                header.size = len(data)
                file.addfile(header, io.BytesIO(data))
    return target.getvalue()


def seeds() -> dict[str, list[tuple[str, bytes]]]:
    """Sound files by kind."""
    tars = [tar(tarfile.PAX_FORMAT), tar(tarfile.GNU_FORMAT)]
    index = {"format": 1, "samples": 2, "bytes": 9, "shards": {"a.tar": {"samples": 2, "sha256": "0", "bytes": 9}}}
    record = {"caption": ["a", "b"], "captions": ["c \ud83c"], "n": {"x": [1, 2.5, None, {"y": []}]}}
    return {
        "tar": [("s.tar", data) for data in (*tars, tars[0] + tars[1])],
        "tgz": [("s.tgz", gzip.compress(data)) for data in (*tars, tars[0] + tars[1])],
        "picture": pictures(),
        "index": [("index.json", json.dumps(index).encode())],
        "list": [("list.txt", b"# shards\na.tar\nb-{000..002}.tar  # more\n*.tar\nhttp://127.0.0.1:9/c.tar\n")],
        "captions": [("k.json", json.dumps(record).encode())],
    }


def read_tar(path: Path) -> None:
    """By stream and by place, as check and as training read it."""
    faults: list[Fault] = []
    streamed = [(group.key, _shown(group.members)) for group in read_shard(str(path), faults)]
    if is_seekable(str(path)):
        placed: list[Fault] = []
        by_place = [fetch(str(path), group) for group in index_shard(str(path), placed)]
        assert [(group.key, _shown(group.members)) for group in by_place] == streamed, "place and stream differ"
        assert [fault[:3] for fault in placed] == [fault[:3] for fault in faults], "faults differ"
    report = check(path)
    assert report.samples == len(streamed)
    report.text().encode()
    pipeline = Pipeline(DataConfig(shards=(str(path),), resolution=8), batch_size=4)
    used = 0
    try:
        for batch in pipeline.one_pass():
            used += len(batch)
            "".join((*batch.keys, *batch.prompts)).encode()
    finally:
        pipeline.report.text().encode()
    assert used == report.usable, f"training uses {used}, check says {report.usable}"


def _shown(members: Mapping[str, object]) -> dict[str, object]:
    return {name: str(value) if isinstance(value, SampleError) else value for name, value in members.items()}


def read_picture(path: Path) -> None:
    data = path.read_bytes()
    ends_early(data)
    for reader in (upright_size, decode):
        reader(data)


def read_index_file(path: Path) -> None:
    with contextlib.suppress(ValueError):
        read_json(f"file://{path}")
    read_index(path.parent)


def read_list(path: Path) -> None:
    list_shards([str(path)])


def read_captions(path: Path) -> None:
    members = {"json": path.read_bytes()}
    text_repaired(members)
    captions, info = captions_of(members)
    json.dumps([captions, info], ensure_ascii=False).encode()


READERS: dict[str, Callable[[Path], None]] = {
    "tar": read_tar,
    "tgz": read_tar,
    "picture": read_picture,
    "index": read_index_file,
    "list": read_list,
    "captions": read_captions,
}


def cases(kind: str, sound: list[tuple[str, bytes]], rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Mutations of one kind; compressed tars are changed within or as they are."""
    for _ in range(PER_TURN):
        name, data = rng.choice(sound)
        if kind == "tar":
            data = mutated(data, rng)
            yield name, mend_sums(data) if rng.random() < 0.7 else data
        elif kind == "tgz" and rng.random() < 0.5:
            yield name, gzip.compress(mend_sums(mutated(gzip.decompress(data), rng)), 1)
        else:
            yield name, mutated(data, rng)


def fuzz(seconds: float, seed: int) -> Iterator[tuple[str, list[Failure]]]:
    """Turns of one kind after the other until the time is up: the kind and its failures."""
    rng, sound, ends = random.Random(seed), seeds(), time.monotonic() + seconds
    while time.monotonic() < ends:
        for kind, reader in READERS.items():
            yield kind, run(cases(kind, sound[kind], rng), reader, (InputError, SampleError))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()  # what is skipped is not what is looked for
    done, found = dict.fromkeys(READERS, 0), 0
    for kind, failures in fuzz(args.seconds, args.seed):
        done[kind] += PER_TURN
        for failure in failures:
            found += 1
            print(f"{kind}: {failure}", flush=True)
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                (args.out / f"{kind}-{found:03d}-{failure.name}").write_bytes(failure.data)
    print(f"{done}: {found} failures")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
