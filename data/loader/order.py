"""Who sees which sample when: pure functions of (seed, epoch, lane), so that any batch can be found again.

A lane is a stream of its own. An epoch's shards are shuffled and dealt to the lanes; where there are fewer shards than
lanes, several lanes share a shard and take its samples in turn. No two lanes see the same sample in one epoch, and
together they see all. The part a lane gets moves on by one each epoch, so that no lane is tied to one shard.

What a training sees is one sequence, to which each lane gives `turn` samples in its turn. A batch is a stretch of it,
whoever makes the batch: any number of processes and workers, in batches of any size.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np

Item = TypeVar("Item")


class Part(NamedTuple):
    """Samples first, first + step, first + 2 step, ... of one shard (an index into the list of shards)."""

    shard: int
    first: int
    step: int

    def length(self, samples: int) -> int:
        return len(range(self.first, samples, self.step))


def deal(shards: int, lanes: int, lane: int, epoch: int, seed: int, shuffle: bool) -> list[Part]:
    """The parts of shards that `lane` of `lanes` reads in this epoch, in order."""
    order = list(range(shards))
    if shuffle:
        Random(f"{seed}/{epoch}/shards").shuffle(order)
    share = (lane + epoch) % lanes
    if shards >= lanes:
        return [Part(shard, 0, 1) for shard in order[share::lanes]]
    position, turn = share % shards, share // shards
    return [Part(order[position], turn, len(range(position, lanes, shards)))]


class Turn(NamedTuple):
    """Positions first, first + 1, ... of one lane."""

    lane: int
    first: int
    number: int


def turns(first: int, number: int, lanes: int, turn: int) -> Iterator[Turn]:
    """Where in the lanes the positions first, ..., first + number - 1 of the whole sequence are."""
    end = first + number
    while first < end:
        before, place = divmod(first, turn)
        taken = min(turn - place, end - first)
        yield Turn(before % lanes, before // lanes * turn + place, taken)
        first += taken


def shuffled(items: Iterable[Item], buffer: int, random: Random) -> Iterator[Item]:
    """Yields every item once, each drawn from a buffer of the next `buffer` items."""
    held: list[Item] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = random.randrange(buffer)
        drawn, held[place] = held[place], item
        yield drawn
    random.shuffle(held)
    yield from held


def permutation(length: int, epoch: int, seed: int, shuffle: bool) -> np.ndarray:
    """The order of `length` cached samples in this epoch."""
    if not shuffle:
        return np.arange(length)
    return np.random.default_rng([seed, epoch]).permutation(length)


def choose(options: Sequence[Item], seed: int, epoch: int, key: str) -> Item:
    """One of the options, a pure function of (seed, epoch, key)."""
    if len(options) == 1:
        return options[0]
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    return options[int.from_bytes(digest, "big") % len(options)]
