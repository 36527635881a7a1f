"""Checking shards for everything that would cost a sample, and for what their owner should know."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.data.captions import REPAIRED_TEXT, captions_of, text_repaired
from star.data.errors import InputError
from star.data.images import decode
from star.data.loader.report import describe
from star.data.progress import Progress
from star.data.shards.faults import NOTES, REPAIRED, Fault, SampleError
from star.data.shards.listing import list_shards
from star.data.shards.remote import is_url
from star.data.shards.tar import Group, image_bytes, read_shard
from star.data.shards.write import INDEX_NAME, PACKING_MARK, read_index, sha256
from star.data.whole import ends_early

OURS = re.compile(r".+-\d{5}\.tar")  # as packing names shards; it writes an index when all are there
ENCODED_MARK = "encoding.safetensors"  # beside shards of codes; their index is written when all are there


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """Faults cost samples, had to be repaired or contradict the index; notes do not make the shards bad."""

    shards: int
    samples: int
    usable: int
    bytes: int
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults

    def text(self, names: int = 20) -> str:
        """A summary, counts by reason, and up to `names` names for each."""
        lines = [
            f"{self.shards} shards, {self.samples} samples, {self.usable} usable, {self.bytes / 2**20:.1f} MiB: "
            + ("no faults" if self.ok else f"{len(self.faults)} faults")
        ]
        found = (*self.faults, *self.notes)
        for reason, number in sorted(Counter(fault.reason for fault in found).items()):
            extent = " (a note, not a fault)" if reason in NOTES else " (used, repaired)" if reason in REPAIRED else ""
            lines.append(f"{number} x {reason}{extent}")
            named = [fault for fault in found if fault.reason == reason]
            lines.extend(f"  {describe(fault)}" for fault in named[:names])
            if number > names:
                lines.append(f"  ... and {number - names} more")
        return "\n".join(lines)


def check(shards: str | Path | Sequence[str], *, decode_images: bool = True, progress: bool = False) -> CheckReport:
    """Reads every shard to the end and reports what is wrong with it, each thing named.

    Truncated tars, unreadable pictures, missing and empty captions, broken JSON, keys that come twice (in the whole
    set), pictures that come twice, and what disagrees with an index.json beside the shards: sums, sizes, counts,
    missing and unlisted files; also names and texts that are not UTF-8 and are repaired, and what a packing or
    encoding that did not finish left behind. decode_images=False leaves the pictures unread, which is some ten times
    faster. Raises InputError if `shards` matches nothing.
    """
    found = list_shards([str(shards)] if isinstance(shards, str | Path) else list(shards), unfinished=True)
    inspector = _Inspector(decode_images)
    with Progress(None, unit="samples", title="check", enabled=progress) as bar:
        for shard in found:
            before = inspector.samples
            for group in read_shard(shard, inspector.faults):
                inspector.inspect(shard, group)
                bar.update()
            inspector.counts[shard] = inspector.samples - before
    size = _check_indexes(found, inspector)
    return CheckReport(
        shards=len(found),
        samples=inspector.samples,
        usable=inspector.usable,
        bytes=size,
        faults=tuple(inspector.faults),
        notes=tuple(inspector.notes),
    )


class _Inspector:
    def __init__(self, decode_images: bool) -> None:
        self.decode_images = decode_images
        self.faults: list[Fault] = []
        self.notes: list[Fault] = []
        self.counts: dict[str, int] = {}
        self.samples = 0
        self.usable = 0
        self._keys: dict[str, str] = {}
        self._pictures: dict[bytes, str] = {}

    def inspect(self, shard: str, group: Group) -> None:
        self.samples += 1
        before = len(self.faults)
        if (first := self._keys.setdefault(group.key, shard)) != shard:
            self.faults.append(Fault(shard, "duplicate key", group.key, f"also in {first}"))
            before += 1  # the pipeline still uses both
        reported: set[SampleError] = set()
        for fault_of in (self._captions, self._picture):
            try:
                fault_of(shard, group)
            except SampleError as error:
                reported.add(error)
                self.faults.append(Fault(shard, error.reason, group.key, error.detail))
        self.usable += len(self.faults) == before
        for content in group.members.values():  # files that no training asks for are missed all the same
            if isinstance(content, SampleError) and content not in reported:
                self.faults.append(Fault(shard, content.reason, group.key, content.detail))
        if text_repaired(group.members):
            self.faults.append(Fault(shard, "repaired text", group.key, REPAIRED_TEXT))

    def _captions(self, shard: str, group: Group) -> None:
        captions_of(group.members)

    def _picture(self, shard: str, group: Group) -> None:
        _, data = image_bytes(group.members)
        if self.decode_images:
            try:
                picture = decode(data)
            except InputError as error:
                raise SampleError("broken picture", str(error)) from error
            if ends_early(data):
                raise SampleError("broken picture", "a JPEG that was cut off and closed; its rest would be grey")
            data = repr(picture.size).encode() + picture.tobytes()
        place = f"{group.key} in {shard}"
        first = self._pictures.setdefault(hashlib.blake2b(data, digest_size=16).digest(), place)
        if first != place:
            self.notes.append(Fault(shard, "duplicate picture", group.key, f"the same as {first}"))


def _check_indexes(shards: Sequence[str], inspector: _Inspector) -> int:
    """Compares local shards with the index beside them, and returns the bytes of all local shards."""
    total = 0
    by_folder: dict[Path, dict[str, str]] = {}
    for shard in shards:
        path = Path(shard)
        if not is_url(shard) and path.is_file():
            total += path.stat().st_size
            by_folder.setdefault(path.parent, {})[path.name] = shard
    for folder, files in by_folder.items():
        inspector.faults.extend(_unfinished(folder))
        try:
            index = read_index(folder)
        except InputError as error:
            inspector.faults.append(Fault(str(folder), "index mismatch", "", str(error)))
            continue
        if index is not None:
            inspector.faults.extend(_compare(folder, index, files, inspector.counts))
        elif (folder / ENCODED_MARK).is_file():
            inspector.faults.append(
                Fault(str(folder), "incomplete write", "", "no index.json: run the same `star data encode` again")
            )
        elif any(OURS.fullmatch(name) for name in files) and not (folder / INDEX_NAME).is_file():
            inspector.notes.append(
                Fault(
                    str(folder),
                    "missing index",
                    "",
                    "without an index.json nobody can tell whether all shards are there",
                )
            )
    return total


def _unfinished(folder: Path) -> Iterator[Fault]:
    """What a packing or encoding leaves that was killed: half a file, or the mark that it was at work."""
    for path in sorted(folder.glob(".*")):
        if path.name == PACKING_MARK or path.name.endswith(".part"):
            detail = "left by a packing or encoding that was killed or is still at work; run it to its end"
            yield Fault(str(path), "incomplete write", "", detail)


def _compare(
    folder: Path, index: Mapping[str, Mapping[str, Any]], files: Mapping[str, str], counts: Mapping[str, int]
) -> Iterator[Fault]:
    for name, entry in index.items():
        if Path(name).name != name:
            yield Fault(
                str(folder / INDEX_NAME), "index mismatch", "", f"it lists {name!r}, which is no name of a file"
            )
        elif name not in files:
            if not (folder / name).is_file():
                yield Fault(str(folder / name), "index mismatch", "", "listed in the index but not there")
        else:
            shard = files[name]
            measured = {"bytes": Path(shard).stat().st_size, "samples": counts[shard], "sha256": sha256(shard)}
            for what, value in measured.items():
                if value != entry[what]:
                    yield Fault(shard, "index mismatch", what, f"{value}, the index says {entry[what]}")
    for name in files.keys() - index.keys():
        yield Fault(files[name], "index mismatch", "", "not listed in the index")
