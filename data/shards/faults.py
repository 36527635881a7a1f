"""What can be wrong with samples and shards: the reasons under which it is counted and reported."""

from typing import Literal, NamedTuple

Reason = Literal[
    "cannot be opened",
    "truncated or damaged tar",
    "empty shard",
    "duplicate key",
    "not a regular file",
    "too large",
    "missing picture",
    "broken picture",
    "missing caption",
    "empty caption",
    "broken json",
    "index mismatch",
    "incomplete write",
    "repaired name",
    "repaired text",
    "duplicate picture",
    "missing index",
    "slow shard",
    "broken encoding",
    "broken row",
    "broken text",
    "unsupported format",
    "not a picture",
    "folder already read",
    "caption shared by several pictures",
    "several rows in one cell",
    "line breaks replaced",
    "first frame only",
    "damaged EXIF",
    "colour profile not applied",
    "another split",
]
NOTES: tuple[Reason, ...] = (  # worth knowing, but they cost no sample
    "duplicate picture",
    "missing index",
    "slow shard",
    "not a picture",
    "folder already read",
    "caption shared by several pictures",
    "several rows in one cell",
    "line breaks replaced",
    "first frame only",
    "damaged EXIF",
    "colour profile not applied",
    "another split",
)
REPAIRED: tuple[Reason, ...] = ("repaired name", "repaired text")  # faults, but the sample is used all the same


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
