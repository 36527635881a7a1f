"""What can be wrong with samples and shards, each under a reason by which it is counted."""

from typing import Literal, NamedTuple

Reason = Literal[
    "cannot be opened",
    "truncated or damaged tar",
    "empty shard",
    "duplicate key",
    "no plain file",
    "too large",
    "no picture",
    "broken picture",
    "missing caption",
    "empty caption",
    "broken json",
    "index mismatch",
    "unfinished writing",
    "mended name",
    "mended text",
    "duplicate picture",
    "no index",
    "slow shard",
    "broken encoding",
    "broken row",
    "broken text",
    "unread format",
    "not a picture",
    "met before",
    "one caption for several",
    "several rows in a cell",
    "joined lines",
    "first frame only",
    "damaged EXIF",
    "colour profile not applied",
]
NOTES: tuple[Reason, ...] = (  # worth knowing, but they cost no sample
    "duplicate picture",
    "no index",
    "slow shard",
    "not a picture",
    "met before",
    "one caption for several",
    "several rows in a cell",
    "joined lines",
    "first frame only",
    "damaged EXIF",
    "colour profile not applied",
)
MENDED: tuple[Reason, ...] = ("mended name", "mended text")  # faults, but the sample is used


class Fault(NamedTuple):
    """One thing wrong with one sample (`key`) or with a whole shard (`key` empty)."""

    shard: str
    reason: Reason
    key: str
    detail: str


class SampleError(Exception):
    """A sample that cannot be used, with the reason under which it is counted."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both, or it could not travel between processes
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail
