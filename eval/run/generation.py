"""The pictures of a model for the prompts of a benchmark: one file each, drawn once, whoever draws it and whenever.

`manifest.json` says what the pictures were made with; a folder made with anything else is refused, so options never
mix. A picture is written whole or not at all, and one cut short by a failing disk is drawn again. Prompts go to the
generator in fixed batches: where a batch has any picture missing it is drawn whole, because on a GPU a picture's last
bits depend on its batch.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.files import MIB, parse_json, read_bytes, shorten
from star.data.images import save_png
from star.data.progress import Progress
from star.data.whole import is_whole_png as is_whole
from star.eval.run.layout import Item, on_disk
from star.eval.run.processes import Processes
from star.eval.run.protocols import SEEDS, SeedRule
from star.eval.run.record import write_lines
from star.generators.config import differences
from star.generators.protocol import Generator, SampleOptions
from star.generators.renamed import translate_options

MANIFEST = "manifest.json"
MANIFEST_PARTS = 1000
# Recorded beside what was asked for, and decided by the digest; the remark by the prompts that were drawn last, too.
FREE = frozenset({"model", "parameters", "resolution", "remark", "remarked"})
WRITERS = 4  # threads that compress and write while the next batch is drawn


def picture_of(folder: Path, item: Item) -> Path:
    """Where an item's picture is, or will be."""
    return folder / "pictures" / on_disk(f"{item.key}.png")


def claim(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Makes the folder one for pictures of this manifest (plain values).

    Raises InputError if it holds others, see `check`, or cannot be written.
    """
    check(folder, manifest)
    write_lines(folder / MANIFEST, [json.dumps(manifest, indent=1, ensure_ascii=False)])


def tidy(folder: Path) -> None:
    """Removes what a kill left half written: pictures, and rows of features. Raises InputError if it cannot."""
    try:
        for partial in (folder / "pictures").glob(".*.part"):
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): give another --out") from error
    for rows in (folder / "features").glob(".*"):
        shutil.rmtree(rows, ignore_errors=True)


def check(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest that the folder has, None if it has none.

    Raises InputError that names what differs if it holds pictures of another one.
    """
    old = manifest_of(folder)
    if old is None:
        return None
    changed = [
        f"{name} was {_shorten(before)}, now {_shorten(now)}"
        for name, before, now in differences(old, json.loads(json.dumps(manifest)))
        if name.partition(".")[0] not in FREE
    ]
    if changed:
        raise InputError(
            f"{folder} holds pictures made with other options ({'; '.join(changed)}): give another --out, or remove it"
        )
    return old


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """What an earlier start claimed the folder for, None if there was none. Raises InputError if it is damaged."""
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_bytes(path, MIB), MANIFEST_PARTS, strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({shorten(error, 300)}): remove {folder}, or give another --out"
        ) from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path} holds no object: remove {folder}, or give another --out")
    if isinstance(manifest.get("options"), dict):
        manifest["options"] = translate_options(manifest["options"])
    if manifest.get("source") == "model":
        manifest.setdefault("dtype", "float32")  # what pictures were drawn in before it was a choice
    return manifest


def draw(
    generator: Generator,
    items: Sequence[Item],
    folder: Path,
    processes: Processes,
    *,
    seed: int,
    rule: SeedRule,
    options: SampleOptions,
    batch: int,
) -> None:
    """Draws the pictures that are missing, each process its share of the batches, and returns when all are there.

    A generator without conditioning is asked with empty prompts. Raises InputError if a batch does not fit into the
    memory of a GPU.
    """
    batches = processes.share([items[first : first + batch] for first in range(0, len(items), batch)])
    missing = [part for part in batches if not all(is_whole(picture_of(folder, item)) for item in part)]
    total, left = (sum(map(len, parts)) for parts in (batches, missing))
    shown = processes.is_main and left > 0
    writing: list[Future[None]] = []
    with (
        Progress(total, unit="pictures", title="draw", start=total - left, enabled=shown) as progress,
        ThreadPoolExecutor(WRITERS) as pool,
        _cut_prompts_counted(progress),
    ):
        for part in missing:
            pixels_B3HW = _generate(generator, part, seed, rule, options)
            for future in writing:
                future.result()
            writing = [
                pool.submit(_write, pixels_3HW, picture_of(folder, item), item)
                for item, pixels_3HW in zip(part, pixels_B3HW, strict=True)
            ]
            progress.update(len(part))
        for future in writing:
            future.result()
    processes.wait()


def _generate(generator: Generator, part: Sequence[Item], seed: int, rule: SeedRule, options: SampleOptions) -> Tensor:
    prompts = ["" if generator.conditioning == "none" else item.prompt for item in part]
    try:
        return generator.generate(prompts, seeds=[SEEDS[rule](item.key, seed) for item in part], options=options).cpu()
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{len(part)} pictures at once do not fit into the memory of the GPU: give a smaller --batch"
        ) from error


def _write(pixels_3HW: Tensor, path: Path, item: Item) -> None:
    if not is_whole(path):
        save_png(pixels_3HW, path, {"prompt": item.prompt})


class _Cut(logging.Filter):
    """Counts warnings instead of letting them through."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.count += 1
        return False


@contextmanager
def _cut_prompts_counted(progress: Progress) -> Iterator[None]:
    """One line for all prompts that the text encoder warns of, which are thousands in a benchmark of long prompts."""
    logger, cut = logging.getLogger("star.data.text"), _Cut()
    logger.addFilter(cut)
    try:
        yield
    finally:
        logger.removeFilter(cut)
    if cut.count:
        progress.say(f"{cut.count} prompts are longer than the model reads, and were cut")


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
