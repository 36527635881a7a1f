"""docs/models.md: every model that is known by a name, from the registry and the model directories; `make models`."""

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

HEAD = """# Models

Written by `make models` from the registry (`star list`) and the model directories; do not edit it.

    star list                                                   # the same, in the terminal
    star sample "a red apple, noto emoji style" --model star-emoji

`--model`, `star.load` and every other place that takes a model take a name from here, a folder, or the id of a
repository on the Hugging Face hub.

## Shipped with the package

| name | family | draws | from | parameters | size | images seen in training | licence |
|---|---|---|---|---|---|---|---|
"""
MIDDLE = """
What they recommend where nothing else is asked for:

| name | options |
|---|---|
"""
PARTS = """
Networks that these models and the metrics need, shipped too, and found by their names from any directory:

| name | what | parameters | size |
|---|---|---|---|
"""
RELEASED = """
## Published by others

Fetched from the Hugging Face hub when they are first asked for, converted without running code of theirs, and kept in
`~/.cache/star` (`STAR_HOME`). Tests convert files of their form; the downloads themselves are not tested.

| name | family | draws | from | where | licence |
|---|---|---|---|---|---|
"""


def markdown() -> str:
    """The page. Reads descriptions and headers of files, no weights."""
    from star.generators import registry
    from star.generators.protocol import SampleOptions

    shipped, options, released, names = [], [], [], set()
    for name, entry in registry.entries().items():
        about, folder = entry.about(), entry.weights.folder()
        size = about["resolution"]
        common = [entry.family, f"{size[0]} x {size[1]}" if size else "", about["conditioning"]]
        if folder is None:
            place = entry.weights.location
            released.append([name, *common, f"[{place}](https://huggingface.co/{place})", about["licence"]])
            continue
        names.add(name)
        link = f"[{name}](../star/weights/{name}/README.md)"
        seen = registry.images_seen(name)
        shipped.append([link, *common, *_weight(folder), f"{seen:,}" if seen else "", about["licence"]])
        usual = asdict(SampleOptions())
        chosen = {key: value for key, value in asdict(registry.recommended(name)).items() if value != usual[key]}
        options.append([name, ", ".join(f"`{key}={value}`" for key, value in chosen.items()) or "the usual ones"])
    text = HEAD + _rows(shipped) + MIDDLE + _rows(options) + PARTS + _rows(_parts(names)) + RELEASED + _rows(released)
    return text.rstrip() + "\n"


def _parts(generators: set[str]) -> list[list[str]]:
    """Shipped directories that are no generators."""
    from star.generators import registry

    anchor = registry.shipped("star-emoji")
    found = []
    for folder in sorted(anchor.parent.iterdir()) if anchor else ():
        if folder.name not in generators and (folder / "config.json").is_file():
            what = _first_sentence(folder / "README.md")
            link = f"[{folder.name}](../star/weights/{folder.name}/README.md)"
            found.append([link, what, *_weight(folder)])
    return found


def _first_sentence(card: Path) -> str:
    text = card.read_text(encoding="utf-8")
    if text.startswith("---\n"):  # metadata of the hub
        text = text.split("\n---\n", 1)[1].lstrip()
    paragraphs = [part for part in text.split("\n\n") if not part.startswith("#")]
    return " ".join(paragraphs[0].split()).split(". ")[0].split(": ")[0].rstrip(".")


def _weight(folder: Path) -> list[str]:
    """Numbers in the tensors and bytes of the files, by the headers of safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    count = sum(_product(tensor["shape"]) for file in files for tensor in _header(file).values())
    return [f"{count / 1e6:.1f} M", f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MiB"]


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _rows(rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(str(cell or "-") for cell in row) + " |\n" for row in rows)
