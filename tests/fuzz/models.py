"""Mutates small files of models and feeds them to their readers: python -m tests.fuzz.models --seconds 600 --seed 0.

Kinds: config.json of every family, of towers and of adapters; tokenizer.json; safetensors; archives of torch.save, old
and new; pickles of the StyleGAN line. Prints every failure, and writes its file to --out. Exit code 1 if there are any.
"""

import argparse
import io
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch

from star.data.text import TextEncoder
from star.data.tiny import tiny_text_encoder
from star.eval.extractors.classifier import ClassifierConfig, ClassifierNetwork, read_classifier
from star.generators.config import to_dict
from star.generators.gan.discriminators.projected import FrozenFeatures
from star.generators.gan.snapshot_pickles import Saved, read_pickle
from star.generators.pickle_loader import CheckpointFile
from star.generators.pretrained import write
from star.generators.registry import build
from star.generators.training.checkpoint import Snapshot
from star.tokenizer.tokenizer import MultiScaleTokenizer
from tests.fuzz.harness import Failure, Reader, run

PER_TURN = 10  # mutations of one kind, in one process
Mutation = Callable[[bytes, random.Random], bytes]
# Values that a field may be given instead of its own.
ODD: tuple[Any, ...] = (
    *(0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**9, 10**30, 1e9, 1e308, -0.5, 0.0, float("nan"), float("inf")),
    *("", "1", "16", "a" * 5000, "../../x", "\0", "\ud800", None, True, [], {}, [[[]]], [0] * 3, [1] * 200_000),
    *({"a": 1}, [None], ["x"], "eager", "kernels/x", {"": {}}, [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats, exchanges."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not changed:
            break
        at, how = rng.randrange(len(changed)), rng.randrange(6)
        if how == 0:
            changed[at] = rng.randrange(256)
        elif how == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            del changed[at : at + rng.choice((1, 4, 100))]
        elif how == 3:
            changed[at:at] = changed[at : at + rng.choice((1, 8, 1000))] * rng.choice((1, 3, 50))
        elif how == 4:
            changed[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
        else:
            del changed[at:]
    return bytes(changed)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Exchanges, removes, doubles and adds values anywhere; sometimes bytes instead."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    values = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holders = list(_holders(values))
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key, how = rng.choice(keys), rng.random()
        if how < 0.7:
            holder[key] = deepcopy(rng.choice(ODD))
        elif how < 0.8:
            del holder[key]
        elif how < 0.9 and isinstance(holder, dict):
            holder[rng.choice(("auto_map", "x", "depth", "model_type", ""))] = deepcopy(rng.choice(ODD))
        elif isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] *= rng.choice((-1, 2, 1000, 0.5))
    text = json.dumps(values)
    if rng.random() < 0.03:
        text = "[" * 100_000 + text
    return text.encode()


def _holders(values: Any) -> Iterator[Any]:
    if isinstance(values, dict | list):
        yield values
        for inner in values.values() if isinstance(values, dict) else values[:20]:
            yield from _holders(inner)


def mutate_archive(data: bytes, rng: random.Random) -> bytes:
    """The pickle or another record inside is changed, packed, doubled or left out; sometimes the bytes of the whole."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        names = before.namelist()
        chosen = rng.choice([name for name in names if name.endswith("data.pkl")] * 3 + names)
        for name in names:
            content, packed = before.read(name), zipfile.ZIP_STORED
            if name == chosen:
                how = rng.random()
                if how < 0.1:
                    continue
                if how < 0.2:
                    packed, content = zipfile.ZIP_DEFLATED, content + bytes(2**22)
                else:
                    content = mutate_bytes(content, rng)
            after.writestr(name, content, packed)
    return out.getvalue()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header is changed as JSON, with its length or without."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + length], rng)
    told = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**32, 2**63, len(header) + 8))
    return told.to_bytes(8, "little") + header + data[8 + length :]


def in_folder(folder: Path, name: str, reader: Callable[[Path], object], file: Path) -> object:
    """Reads a copy of a folder, made of links, in which one file is another."""
    place = file.parent / "model"
    shutil.copytree(folder, place, copy_function=os.link, dirs_exist_ok=True)
    (place / name).unlink()
    file.rename(place / name)
    return reader(place)


def seeds(folder: Path) -> list[tuple[str, bytes, Mutation, Reader]]:
    """(name, whole file, mutation, reader) of every kind, with what they need written into a folder."""
    found: list[tuple[str, bytes, Mutation, Reader]] = []
    for family in ("star", "var", "stylegan-t", "stylenat", "styleformer"):
        place = folder / family
        build(f"{family}-test").save_pretrained(place)  # type: ignore[attr-defined]
        config = (place / "config.json").read_bytes()
        found.append((f"{family}.json", config, mutate_json, partial(in_folder, place, "config.json", build)))
    tokenizer, read = folder / "star/tokenizer", MultiScaleTokenizer.from_directory
    for name, mutation in (("config.json", mutate_json), ("model.safetensors", mutate_safetensors)):
        data = (tokenizer / name).read_bytes()
        found.append((f"tokenizer-{name}", data, mutation, partial(in_folder, tokenizer, name, read)))
    labels: dict[str, Any] = dict.fromkeys(("subjects", "styles", "categories", "tags"), ("a", "b"))
    classifier, sizes = folder / "judge", ClassifierConfig(image_size=16, widths=(4, 8), blocks=(1, 1), **labels)
    write(classifier, family="judge", config=to_dict(sizes), tensors=ClassifierNetwork(sizes).state_dict(), card="")
    data = (classifier / "config.json").read_bytes()
    found.append(("judge.json", data, mutate_json, partial(in_folder, classifier, "config.json", read_classifier)))
    found += _towers(folder)
    state = {"model": OrderedDict(a=torch.ones(2, 3), b=torch.arange(4)), "step": 3, "note": ("x", {1}, b"1")}
    for name, new in (("new.pt", True), ("old.pt", False)):
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=new)
        mutation = mutate_archive if new else mutate_bytes
        found.append((name, stream.getvalue(), mutation, _read_checkpoint))
    stream = io.BytesIO()
    torch.save(state, stream)
    found.append(("state.pt", stream.getvalue(), mutate_archive, lambda file: Snapshot(1, file.parent).state()))
    found.append(("networks.pkl", _pickle(), mutate_bytes, _read_networks))
    return found


def _towers(folder: Path) -> list[tuple[str, bytes, Mutation, Reader]]:
    from transformers import ViTConfig, ViTModel

    text, image = folder / "text", folder / "image"
    tiny_text_encoder().save_pretrained(text)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(image)
    about = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (image / "preprocessor_config.json").write_text(json.dumps(about))
    found: list[tuple[str, bytes, Mutation, Reader]] = []
    for place, read in ((text, TextEncoder.from_pretrained), (image, FrozenFeatures.from_pretrained)):
        for file in sorted(place.iterdir()):
            mutation = mutate_safetensors if file.suffix == ".safetensors" else mutate_json
            reader = partial(in_folder, place, file.name, read)
            found.append((f"{place.name}-{file.name}", file.read_bytes(), mutation, reader))
    return found


def _pickle() -> bytes:
    """A pickle of tensors, as the StyleGAN line has them inside networks."""
    return pickle.dumps({"G_ema": torch.ones(2, 3), "x": [1, (2.5, "a")], "s": {1, 2}}, protocol=4)


def _read_checkpoint(file: Path) -> object:
    found = CheckpointFile.find(file, [("model",), ()], sign="a")
    return found and {name: found[name].sum() for name in found}


def _read_networks(file: Path) -> object:
    content = read_pickle(file)
    saved = content.get("G_ema") if isinstance(content, dict) else None
    return saved.tensors() if isinstance(saved, Saved) else None


def fuzz(seconds: float, seed: int, show: Callable[[str], object] = print) -> list[Failure]:
    """The failures that so many seconds of mutations find, kind by kind in turn; first every file as it is."""
    failures: list[Failure] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        kinds, rng, count = seeds(Path(folder)), random.Random(seed), 0
        for name, data, _, reader in kinds:
            failures += run([(name, data)], reader, ())
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, data, mutation, reader in kinds:
                failures += run([(name, mutation(data, rng)) for _ in range(PER_TURN)], reader)
                count += PER_TURN
                if time.monotonic() > end:
                    break
            show(f"{count} files, {len(failures)} failures")
    for failure in failures:
        show(str(failure))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the files that fail")
    options = parser.parse_args()
    failures = fuzz(options.seconds, options.seed, partial(print, flush=True))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for i, failure in enumerate(failures):
            (options.out / f"{i}-{failure.name}").write_bytes(failure.data)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
