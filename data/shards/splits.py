"""Which shards are for training and which are held out, by their names.

A folder often holds both; `test`, `val`, `valid`, `validation`, `eval` or `heldout` as a word of the file name marks a
shard as held out, unless `train` or `training` is a word of it too: emoji-train-0003.tar, emoji-test-0000.tar.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from star.data.errors import InputError
from star.data.shards.listing import list_shards

logger = logging.getLogger(__name__)

TRAINING = frozenset({"train", "training"})
HELD_OUT = frozenset({"test", "val", "valid", "validation", "eval", "heldout"})


def training_shards(specs: Sequence[str]) -> tuple[str, ...]:
    """The shards to learn from: all that are not named as held out. The log says how many those are.

    Raises InputError if nothing is left.
    """
    found = list_shards(specs)
    held_out = [shard for shard in found if _is_held_out(shard)]
    chosen = tuple(shard for shard in found if not _is_held_out(shard))
    if not chosen:
        raise InputError(
            f"All {len(found)} shards of {', '.join(specs)} are named as held out; give at least one to train on."
        )
    if held_out:
        asked_for = bool(set(held_out) & set(specs))  # by its own name, not with the folder it is in
        level = logging.WARNING if asked_for else logging.INFO
        logger.log(level, "%d shards are named as held out and not trained on, %s first", len(held_out), held_out[0])
    return chosen


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
    return tuple(shard for shard in list_shards(specs) if _is_held_out(shard))


def _is_held_out(shard: str) -> bool:
    words = set(re.split(r"[^a-z]+", PurePosixPath(shard).name.lower()))
    return bool(words & HELD_OUT) and not words & TRAINING
