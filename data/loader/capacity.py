"""Whether a data set fits into memory: what its pictures take once they are decoded, and how much there is.

An estimate, made before anything is decoded. Samples are counted by the index.json beside shards; of local shards that
it does not name, or not as they are now, a few are counted and the others estimated from their size. Of other
remote shards nothing is known.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from star.data.errors import InputError
from star.data.shards.remote import is_url, read_json
from star.data.shards.tar import Group, index_shard, is_seekable, read_shard
from star.data.shards.write import INDEX_NAME, read_index

SHARDS_COUNTED = 4  # shards in full
RECORD_BYTES = 2048  # bytes of a sample's key, captions and record
SHARE = 0.5  # of the memory that is free may be taken, if nobody says how much

_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a data set is kept in memory, and in one sentence why."""

    keep: bool
    reason: str


def decide(shards: Sequence[str], bytes_each: int, *, limit_gib: float = 0.0, processes: int = 1) -> Decision:
    """Keeps a data set if its samples, of `bytes_each` when decoded, fit into `limit_gib` (2^30 bytes).

    limit_gib: of one process; 0: half of the free memory of this machine, over its `processes`.
    """
    number = count_samples(shards)
    limit = int(limit_gib * 2**30) or int(SHARE * free_memory() / processes)
    allowed = f"{limit / 2**30:.2f} GiB, " + (
        "as stated" if limit_gib else f"half of what is free{f' for {processes} processes' if processes > 1 else ''}"
    )
    if number is None:
        return Decision(False, f"streamed: no index.json tells how many samples the shards hold ({allowed} allowed)")
    needed = number * (bytes_each + RECORD_BYTES)
    verb, compared = ("in memory", "fit into") if needed <= limit else ("streamed", "do not fit into")
    return Decision(
        needed <= limit, f"{verb}: about {number:,} samples, {needed / 2**30:.2f} GiB decoded, {compared} {allowed}"
    )


def count_samples(shards: Sequence[str]) -> int | None:
    """About how many samples shards hold; exact where an index or few shards are there; None if nobody knows."""
    indices: dict[str, dict[str, int]] = {}
    total, sizes = 0, {}
    for shard in shards:
        if shard.startswith("pipe:"):
            return None
        folder, _, name = shard.rpartition("/")
        if folder not in indices:
            indices[folder] = _remote_index(folder) if is_url(shard) else _local_index(Path(folder or "."))
        if name in indices[folder]:
            total += indices[folder][name]
        elif is_url(shard):
            return None
        elif os.path.isfile(shard):
            sizes[shard] = os.path.getsize(shard)
    by_headers = [shard for shard in sizes if is_seekable(shard)]
    counted = by_headers[:: -(-len(by_headers) // SHARDS_COUNTED)] if by_headers else list(sizes)[:1]
    found = sum(sum(1 for _ in _groups(shard)) for shard in counted)
    read = sum(sizes[shard] for shard in counted)
    return total + (round(found * sum(sizes.values()) / read) if read else 0)


def free_memory() -> int:
    """Bytes that this machine, or the control group this process is in, still has to give."""
    free = int(psutil.virtual_memory().available)
    limit, used = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    return free if limit is None or used is None else min(free, max(0, limit - used + _cached_files()))


def _cached_files() -> int:
    """Bytes of the control group that the system takes back when they are wanted."""
    try:
        lines = (_GROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _groups(shard: str) -> Iterable[Group]:
    return index_shard(shard, []) if is_seekable(shard) else read_shard(shard, [])


def _local_index(folder: Path) -> dict[str, int]:
    """Samples by the name of a shard that is as long as the index says."""
    try:
        entries = read_index(folder) or {}
    except InputError:  # `check` reports it
        return {}
    return {
        name: max(0, entry["samples"])
        for name, entry in entries.items()
        if (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"]
    }


def _remote_index(folder: str) -> dict[str, int]:
    try:
        entries = read_json(f"{folder}/{INDEX_NAME}")["shards"]
        return {name: max(0, int(entry["samples"])) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
