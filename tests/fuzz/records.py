"""Broken records, features and benchmark folders: `python -m tests.fuzz.records [--minutes 5] [--keep DIR]`.

Sound files are changed at random, by bytes and by the sense of their JSON, and read as `star compare` and `star eval`
read them. What escapes as anything but a sentence, hangs or swells is printed, and kept in DIR.
"""

import argparse
import copy
import io
import json
import random
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from star.data.errors import InputError
from star.eval.extractors.classifier import ClassifierConfig, ClassifierNetwork, read_classifier
from star.eval.extractors.inception import _tensors
from star.eval.extractors.train_classifier import save_classifier
from star.eval.report.comparison import gather
from star.eval.report.report import html, markdown
from star.eval.run.audit import audit
from star.eval.run.feature_cache import FeatureCache
from star.eval.run.generation import manifest_of
from star.eval.run.layout import survey
from star.eval.run.processes import Processes
from star.eval.run.record import folder_of
from tests.eval.painting import make_benchmark
from tests.eval.records import record, save
from tests.fuzz.harness import Reader, run

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**63, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf")),
    *("", "x" * 5000, "../../x", "/etc/passwd", "\0", "\n", "\ud83d", "<script>", "NaN", "overall", "fd/judge-emoji"),
    *([], {}, [[[]]], {"a": {}}, [1] * 1000, {str(number): number for number in range(500)}),
)


def changed_json(text: str, chance: random.Random) -> bytes:
    """One to four values somewhere in a JSON text become others, or their keys go, come or change."""
    values = json.loads(text)
    for _ in range(chance.randint(1, 4)):
        holder, place = chance.choice(list(_places(values)) or [({}, "")])
        way = chance.random()
        if way < 0.7:
            holder[place] = copy.deepcopy(chance.choice(ODD))
        elif way < 0.85 and isinstance(holder, dict):
            holder[chance.choice([str(one) for one in ODD])[:6000]] = holder.pop(place, None)
        elif holder:
            del holder[place]
    return json.dumps(values).encode()


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    places = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for place, value in list(places):
        yield values, place
        yield from _places(value)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped, a part cut out, doubled, or put in from elsewhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randrange(len(changed) + 1), chance.choice((1, 2, 8, 64, 1024))
        way = chance.randrange(5)
        if way == 0 and changed:
            changed[at % len(changed)] ^= 1 << chance.randrange(8)
        elif way == 1:
            del changed[at : at + length]
        elif way == 2:
            changed[at:at] = changed[at : at + length]
        elif way == 3:
            changed[at : at + length] = chance.choice((b"\xff", b"\0", b"[", b"{", b'"', b"9")) * length
        else:
            changed[at:at] = chance.randbytes(min(length, 64))
    return bytes(changed)


def gathered(path: Path) -> None:
    """As `star compare` reads a record, without its page."""
    gather([path])


def compare(path: Path) -> None:
    """As `star compare` reads a record."""
    comparison = gather([path])
    html(comparison, 2)
    markdown(comparison)


def _with_pictures(sound: Path, name: str) -> Reader:
    def read(path: Path) -> None:
        folder = path.parent / "record"
        (path.parent / "record.json").write_bytes(sound.read_bytes())
        folder.mkdir()
        path.rename(folder / name)
        gathered(path.parent / "record.json")
        manifest_of(folder)

    return read


def _benchmark(path: Path) -> None:
    """A zip, or the meta_data.json of a folder with sound pictures."""
    if path.suffix == ".json":
        (path.parent / "food").mkdir()
        (path.parent / "food/0001.png").write_bytes(b"")
        survey(path.parent)
        return
    items = survey(path).items
    audit([i.key for i in items], [i.picture for i in items], path.parent / "notes", Processes(), "references")


def _features(path: Path) -> None:
    if path.name == "rows.npy":
        np.save(path.parent / "done.npy", np.ones(2, np.uint8))
    else:
        np.save(path.parent / "rows.npy", np.ones((40, 3), np.float32))
    rows = FeatureCache(path.parent, (40, 3), np.float32)
    rows.features()[0:40].sum()
    rows.put(0, np.ones((32, 3), np.float32))


def _judge(sound: Path) -> Reader:
    def read(path: Path) -> None:
        for file in sound.iterdir():
            if file.name != path.name:
                (path.parent / file.name).write_bytes(file.read_bytes())
        read_classifier(path.parent)

    return read


Change = Callable[[random.Random], bytes]


def subjects(folder: Path) -> dict[str, tuple[str, list[Change], Reader]]:
    """name -> (name of the file, ways to break it, its reader)."""
    import torch

    (sound,) = save(folder, record())
    lines = folder_of(sound) / "pictures.jsonl"
    benchmark = make_benchmark(folder / "made", 4)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as whole:
        for file in sorted(benchmark.rglob("*.*")):
            whole.write(file, file.relative_to(benchmark).as_posix())
    config = ClassifierConfig(
        image_size=16, widths=(8, 8), blocks=(1, 1), subjects=("a",), styles=("b",), categories=("c",)
    )
    save_classifier(folder / "judge", ClassifierNetwork(config))
    torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, folder / "inception.pth")
    np.save(folder / "rows.npy", np.ones((40, 3), np.float32))
    np.save(folder / "done.npy", np.ones(2, np.uint8))
    manifest = json.dumps({"source": "model", "digest": "a" * 64, "seed": 0, "options": {"guidance": 4.0}})

    def by_json(text: str) -> Change:
        return lambda chance: changed_json(text, chance)

    def by_bytes(data: bytes) -> Change:
        return lambda chance: changed_bytes(data, chance)

    def by_line(chance: random.Random) -> bytes:
        told = lines.read_bytes().splitlines()
        told[chance.randrange(len(told))] = changed_json(told[0].decode(), chance)
        return b"\n".join(told)

    def both(path: Path) -> list[Change]:
        return [by_json(path.read_text(encoding="utf-8")), by_bytes(path.read_bytes())]

    return {
        "record": ("record.json", both(sound), gathered),
        "page": ("record.json", [by_json(sound.read_text(encoding="utf-8"))], compare),
        "pictures": (
            "pictures.jsonl",
            [by_line, by_bytes(lines.read_bytes())],
            _with_pictures(sound, "pictures.jsonl"),
        ),
        "manifest": ("manifest.json", [by_json(manifest)], _with_pictures(sound, "manifest.json")),
        "meta": ("meta_data.json", both(benchmark / "meta_data.json"), _benchmark),
        "zip": ("made.zip", [by_bytes(packed.getvalue())], _benchmark),
        "rows": ("rows.npy", [by_bytes((folder / "rows.npy").read_bytes())], _features),
        "done": ("done.npy", [by_bytes((folder / "done.npy").read_bytes())], _features),
        "judge": ("config.json", both(folder / "judge/config.json"), _judge(folder / "judge")),
        "inception": ("inception.pth", [by_bytes((folder / "inception.pth").read_bytes())], _tensors),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="that a file may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what was found")
    args = parser.parse_args()
    chance, found = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as place:
        chosen = subjects(Path(place))
        compare(Path(place) / "0.json")  # what it imports is there in every child
        for name, (file, ways, reader) in chosen.items():
            until, tried = time.monotonic() + 60 * args.minutes / len(chosen), [0]

            def cases(
                file: str = file, ways: list[Change] = ways, until: float = until, tried: list[int] = tried
            ) -> Iterator[tuple[str, bytes]]:
                while time.monotonic() < until:
                    tried[0] += 1
                    yield file, chance.choice(ways)(chance)

            failures = run(cases(), reader, (InputError,), seconds=args.seconds)
            print(f"{name}: {tried[0]} files, {len(failures)} failures", flush=True)
            for failure in failures:
                found += 1
                print(str(failure)[-1500:], flush=True)
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    (args.keep / f"{name}-{found}-{file}").write_bytes(failure.data)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
