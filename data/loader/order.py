"""Who sees which sample when: pure functions of (seed, epoch, virtual worker), so any batch can be found again.

A virtual worker is a stream of its own, whichever process reads it. An epoch's shards are shuffled and dealt to the
virtual workers; where there are fewer shards than those, several share a shard and take its samples in turn. No two
see the same sample in one epoch, and together they see all. The part that one gets moves on by one each epoch, so that
none is tied to one shard.

What a training sees is one sequence, to which the virtual workers contribute `per_turn` samples each, round robin. A
batch is a stretch of it, whoever makes the batch: any number of processes and workers, in batches of any size.
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


def deal(shards: int, virtual_workers: int, index: int, epoch: int, seed: int, shuffle: bool) -> list[Part]:
    """The parts of shards that virtual worker number `index` reads in this epoch, in order."""
    order = list(range(shards))
    if shuffle:
        Random(f"{seed}/{epoch}/shards").shuffle(order)
    share = (index + epoch) % virtual_workers
    if shards >= virtual_workers:
        return [Part(shard, 0, 1) for shard in order[share::virtual_workers]]
    position, first = share % shards, share // shards
    return [Part(order[position], first, len(range(position, virtual_workers, shards)))]


class Span(NamedTuple):
    """Positions first, first + 1, ... of one virtual worker."""

    virtual_worker: int
    first: int
    number: int


def round_robin(first: int, number: int, virtual_workers: int, per_turn: int) -> Iterator[Span]:
    """Where in the virtual workers the positions first, ..., first + number - 1 of the whole sequence are."""
    end = first + number
    while first < end:
        before, place = divmod(first, per_turn)
        taken = min(per_turn - place, end - first)
        yield Span(before % virtual_workers, before // virtual_workers * per_turn + place, taken)
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
