"""Captioned shards as a benchmark in the MJHQ-30k layout (star.data.mjhq), for `star eval`.

    report = write_benchmark(["shards"], "learnt", split="train", count=240)
    print(report.text())

So a model is scored on what it learnt from and on what was held out by the same rules: two folders, two evaluations.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from star.data.captions import captions_of
from star.data.decoding import decode_noting
from star.data.disk import check_writable, writing
from star.data.errors import InputError
from star.data.loader.report import SkipReport
from star.data.mjhq import META_NAME, names_file
from star.data.progress import Progress
from star.data.shards.faults import Fault, SampleError
from star.data.shards.listing import list_shards
from star.data.shards.splits import held_out_shards, training_shards
from star.data.shards.tar import Group, image_bytes, read_shard

Split = Literal["train", "test"]
ALL = "all"  # the category of pictures whose record names none that can be a folder's name
OVERALL = "overall"  # as tables call all categories together: no category of a benchmark
KEY_DIGITS = 40  # hexadecimal digits of an id; those of MJHQ-30k have as many


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkReport:
    """What was written where, and what was left out and why. fields: how many entries have a subject, a style."""

    out: Path
    pictures: int
    categories: int
    fields: Mapping[str, int]
    asked: int | None
    skipped: SkipReport

    def text(self) -> str:
        named = ", ".join(f"{number} with a {name}" for name, number in self.fields.items())
        few = f" ({self.asked} were asked for)" if self.asked is not None and self.pictures < self.asked else ""
        categories = f"{self.categories} {'category' if self.categories == 1 else 'categories'}"
        head = f"{self.pictures} pictures{few} in {categories}, {named}, in {self.out}"
        return f"{head}\n{self.skipped.text()}"


def write_benchmark(
    shards: str | Path | Sequence[str],
    out: str | Path,
    *,
    split: Split | None = None,
    count: int | None = None,
    progress: bool = False,
) -> BenchmarkReport:
    """Writes `out`/meta_data.json and a lossless PNG of every sample: `out`/<category>/<id>.png, its pixels unchanged.

    The prompt is the first caption; the category, subject and style are those of the sample's record where it has them
    (category "all" where it has none, or one that can name no folder). An id is a digest of the sample's key and
    prompt, so the same shards give the same folder. split: the shards that are named as training or held-out ones, see
    star.data.shards.splits; None: all. count: so many samples, evenly spread over the shards; None, or more than there
    are: all. What is unusable is left out, counted and named in the report.

    The folder appears whole or not at all. Raises InputError if it exists and is not empty, for unusable shards, a
    count below 1, and if no sample has a picture and a caption.
    """
    out = Path(out)
    if count is not None and count < 1:
        raise InputError(f"The count of pictures is {count}; give at least 1.")
    _refuse_used(out)
    check_writable(out.absolute().parent)
    found = _shards_of([str(shards)] if isinstance(shards, str | Path) else list(shards), split)
    skipped = SkipReport()
    meta: dict[str, dict[str, str]] = {}
    with _staged(out) as staging:
        with Progress(count, unit="pictures", title="write", enabled=progress) as bar:
            for shard, group in _chosen(found, count, skipped):
                try:
                    key, entry, picture = _entry(group)
                    if key in meta:
                        raise SampleError("duplicate key", "another sample has its key and prompt")
                except SampleError as error:
                    skipped.add([Fault(shard, error.reason, group.key, error.detail)])
                    continue
                _save(picture, staging / entry["category"] / f"{key}.png", out)
                meta[key] = entry
                bar.update()
        if not meta:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in skipped.reasons.items())
            raise InputError(
                f"{len(found)} shards hold no picture with a caption ({reasons or 'they are empty'}); give shards of "
                "captioned pictures, as `star data pack` writes them."
            )
        with writing(out):
            text = json.dumps(meta, indent=1, ensure_ascii=False)
            (staging / META_NAME).write_text(text + "\n", encoding="utf-8", newline="\n")
    return BenchmarkReport(
        out=out,
        pictures=len(meta),
        categories=len({entry["category"] for entry in meta.values()}),
        fields={name: sum(name in entry for entry in meta.values()) for name in ("subject", "style")},
        asked=count,
        skipped=skipped,
    )


def _shards_of(specs: Sequence[str], split: Split | None) -> Sequence[str]:
    if split is None:
        return list_shards(specs)
    if split == "train":
        return training_shards(specs)
    if not (found := held_out_shards(specs)):
        raise InputError(
            f"None of the shards of {', '.join(specs)} is named as held out (test, val, ...); give those that are held "
            "out, without a split."
        )
    return found


def _groups(shards: Sequence[str], skipped: SkipReport) -> Iterator[tuple[str, Group]]:
    for shard in shards:
        faults: list[Fault] = []
        for group in read_shard(shard, faults):
            yield shard, group
        skipped.add(faults)


def _complete(shards: Sequence[str], skipped: SkipReport) -> Iterator[tuple[str, Group]]:
    """Samples that have a picture, not decoded, and a caption; the others are counted."""
    for shard, group in _groups(shards, skipped):
        try:
            image_bytes(group.members)
            captions_of(group.members)
        except SampleError as error:
            skipped.add([Fault(shard, error.reason, group.key, error.detail)])
        else:
            yield shard, group


def _chosen(shards: Sequence[str], count: int | None, skipped: SkipReport) -> Iterator[tuple[str, Group]]:
    """`count` of the complete samples, evenly spread, all if there are fewer; None: every group there is."""
    if count is None:
        yield from _groups(shards, skipped)
        return
    total = sum(1 for _ in _complete(shards, skipped))
    wanted = {place * total // count for place in range(count)} if count < total else set(range(total))
    for place, (shard, group) in enumerate(_complete(shards, skipped)):
        if place in wanted:
            yield shard, group


def _entry(group: Group) -> tuple[str, dict[str, str], Image.Image]:
    """Id, entry and picture of a sample. Raises SampleError for one that cannot be used."""
    _, data = image_bytes(group.members)
    captions, record = captions_of(group.members)
    try:
        picture = decode_noting(data).picture
    except InputError as error:
        raise SampleError("broken picture", str(error)) from error
    prompt = " ".join(captions[0].splitlines())
    entry = {"category": _category(record.get("category")), "prompt": prompt}
    entry |= {name: said for name in ("subject", "style") if (said := _text(record.get(name)))}
    digest = hashlib.sha256(f"{group.key}\n{prompt}".encode()).hexdigest()[:KEY_DIGITS]
    return digest, entry, picture


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _category(value: Any) -> str:
    name = _text(value)
    return name if names_file(name) and not name.startswith("__") and name != OVERALL else ALL


def _save(picture: Image.Image, path: Path, out: Path) -> None:
    with writing(out):
        path.parent.mkdir(exist_ok=True)
        picture.save(path, format="PNG")


def _refuse_used(out: Path) -> None:
    try:
        used = next(iter(out.iterdir()), None) if out.exists() else None
    except OSError as error:
        raise InputError(f"{out} is no folder that can be read ({error.strerror}); give another one.") from error
    if used is not None:
        raise InputError(f"{out} already holds {used.name}; give an empty folder, or one that is not there.")


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `out` at the end, and is removed after an error."""
    with writing(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    try:
        staging.chmod(0o755)
        yield staging
        with writing(out):
            if out.exists():
                out.rmdir()  # it is empty, or was not when this began
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
