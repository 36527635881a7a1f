"""Which shards are for training and which are held out, told from their names.

A folder often holds both; `train` or `training` as a word of the file name marks the first, `test`, `val`, `valid`,
`validation`, `eval` or `heldout` the second: emoji-train-0003.tar, emoji-test-0000.tar.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from data.errors import InputError
from data.listing import list_shards

TRAINING = frozenset({"train", "training"})
HELD_OUT = frozenset({"test", "val", "valid", "validation", "eval", "heldout"})


def training_shards(specs: Sequence[str]) -> tuple[str, ...]:
    """The shards to learn from: those named as training, or all that are not named as held out.

    Raises InputError if nothing is left.
    """
    found = list_shards(specs)
    named = [shard for shard in found if _words(shard) & TRAINING]
    chosen = named or [shard for shard in found if not _words(shard) & HELD_OUT]
    if not chosen:
        raise InputError(
            f"All {len(found)} shards of {', '.join(specs)} are named as held out; give at least one to train on."
        )
    return tuple(chosen)


def training_sources(specs: Sequence[str], weights: Sequence[float]) -> tuple[tuple[tuple[str, ...], float], ...]:
    """The training shards of each spec with its weight, for DataConfig.sources; one source where no weight is given.

    Raises InputError unless there is one weight for each, or none.
    """
    if not weights:
        return ((training_shards(specs), 1.0),)
    if len(weights) != len(specs):
        raise InputError(
            f"{len(weights)} weights were given for {len(specs)} places of data; give one weight for each, or none."
        )
    return tuple((training_shards([spec]), float(weight)) for spec, weight in zip(specs, weights, strict=True))


def held_out_shards(specs: Sequence[str]) -> tuple[str, ...]:
    """The shards named as held out; empty where there are none. For measuring only."""
    return tuple(shard for shard in list_shards(specs) if _words(shard) & HELD_OUT)


def _words(shard: str) -> set[str]:
    return set(re.split(r"[^a-z]+", PurePosixPath(shard).name.lower()))
