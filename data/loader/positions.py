"""The endless order of one source's samples in a virtual worker, as references that are read only when wanted.

An order can begin anywhere: positions passed over are counted by headers or by an index, where one tells how many
samples a shard holds, and their shards are not read for them.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from weakref import WeakValueDictionary

from star.data.loader.order import Part, deal, shuffled
from star.data.loader.slow_shards import report_if_slow, timed_groups
from star.data.shards.faults import Fault, SampleError
from star.data.shards.remote import base_name, is_url, read_json
from star.data.shards.tar import Group, fetch, index_shard, is_seekable, read_shard

logger = logging.getLogger(__name__)


@dataclass(slots=True, weakref_slot=True)
class Ref:
    """One position of an order; its group is absent while it was only counted."""

    order: "Order"
    epoch: int
    shard: str
    place: int
    group: Group | None

    @property
    def name(self) -> str:
        """The sample's key, or its place where that is all that is known."""
        return f"sample {self.place}" if self.group is None else self.group.key

    def read(self) -> Group:
        """The sample's members as bytes. Raises SampleError if they cannot be read."""
        if self.group is None:
            self.order.read_counted(self.shard)
        if self.group is None:
            raise SampleError("truncated or damaged tar", "the shard is shorter than when it was counted")
        began = time.monotonic()
        group = fetch(self.shard, self.group)
        report_if_slow(self.shard, began, self.order.faults)
        return group


class Order:
    """The part of a source that falls to virtual worker number `index`.

    `counting` asks for references without groups wherever a shard's length is known: for walking through the order.
    """

    def __init__(
        self,
        shards: Sequence[str],
        virtual_workers: int,
        index: int,
        *,
        seed: int,
        shuffle: bool,
        buffer: int,
        faults: list[Fault],
        on_empty_epoch: Callable[[], None],
    ) -> None:
        """faults: what is wrong is added to it. on_empty_epoch: called after an epoch without a single sample."""
        self.shards, self.virtual_workers, self.index = shards, virtual_workers, index
        self.seed, self.shuffle, self.buffer = seed, shuffle, buffer
        self.faults, self.on_empty_epoch = faults, on_empty_epoch
        self.counts: dict[str, int] = {}
        self.counting = False
        self._indexes: dict[str, dict[str, int]] = {}
        # Only references that somebody still holds are looked for when their shard is read at last.
        self._unread: dict[str, WeakValueDictionary[tuple[int, int], Ref]] = {}
        self._skip = 0
        self._indexed: tuple[str, list[tuple[int, Group]]] = ("", [])  # the shard counted last, if by its headers

    def pass_over(self, positions: int) -> None:
        """Leaves out so many of the next positions of `refs`: they are counted, and read only where they must be."""
        self._skip += positions

    def refs(self) -> Iterator[Ref]:
        """The endless order, less what is passed over."""
        for epoch in count():
            parts = deal(len(self.shards), self.virtual_workers, self.index, epoch, self.seed, self.shuffle)
            if self._skip:
                length = self._length(parts, self._skip)
                if length is not None and 0 < length <= self._skip:
                    self._skip -= length
                    continue
            random = Random(f"{self.seed}/{epoch}/{self.index}/samples")
            order = self._references(parts, epoch)
            any_sample = False
            for ref in shuffled(order, self.buffer, random) if self.shuffle else order:
                any_sample = True
                if self._skip:
                    self._skip -= 1
                else:
                    yield ref
            if not any_sample:
                self.on_empty_epoch()

    def once(self) -> Iterator[Ref]:
        """Every sample of this part once, in shard order."""
        return self._references(deal(len(self.shards), self.virtual_workers, self.index, 0, 0, False), epoch=0)

    def read(self, shard: str) -> Iterator[tuple[int, Group]]:
        """The samples of a shard, each with its place."""
        reader = index_shard if is_seekable(shard) else read_shard
        place = -1
        for place, group in enumerate(timed_groups(reader, shard, self.faults)):
            yield place, group
        known = self.counts.setdefault(shard, place + 1)
        if known != place + 1:
            self.counts[shard] = place + 1
            self.faults.append(Fault(shard, "index mismatch", "", f"{place + 1} samples where {known} were expected"))

    def read_counted(self, shard: str) -> None:
        """Gives all references of a shard that were only counted, and are still held, their groups."""
        wanted: dict[int, list[Ref]] = {}
        for ref in self._unread.pop(shard, {}).values():
            wanted.setdefault(ref.place, []).append(ref)
        for place, group in self.read(shard):
            for ref in wanted.get(place, ()):
                ref.group = group

    def _references(self, parts: Sequence[Part], epoch: int) -> Iterator[Ref]:
        for part in parts:
            shard = self.shards[part.shard]
            number = self.count(shard) if self._skip or self.counting else None
            if number is not None and (self.counting or part.length(number) <= self._skip):
                refs = [Ref(self, epoch, shard, place, None) for place in range(part.first, number, part.step)]
                unread = self._unread.setdefault(shard, WeakValueDictionary())
                unread.update({(epoch, ref.place): ref for ref in refs})
                refs.reverse()
                while refs:  # each is let go as it leaves, or none would ever be forgotten
                    yield refs.pop()
                continue
            indexed, groups = self._indexed
            self._indexed = ("", [])
            for place, group in groups if indexed == shard else self.read(shard):
                if place % part.step == part.first:
                    yield Ref(self, epoch, shard, place, group)

    def count(self, shard: str) -> int | None:
        """Samples in a shard if that is known or can be had from headers or an index; else None."""
        if shard not in self.counts:
            folder = shard.rpartition("/")[0]
            if is_seekable(shard):
                self._indexed = shard, list(self.read(shard))
            elif is_url(shard) and not shard.startswith("pipe:"):
                number = self._index_of(folder).get(base_name(shard))
                if number is not None:
                    self.counts[shard] = number
        return self.counts.get(shard)

    def _index_of(self, folder: str) -> dict[str, int]:
        if folder not in self._indexes:
            try:
                entries = read_json(f"{folder}/index.json")["shards"]
                self._indexes[folder] = {name: int(entry["samples"]) for name, entry in entries.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.info("no usable index.json in %s (%s): resuming has to read through its shards", folder, error)
                self._indexes[folder] = {}
        return self._indexes[folder]

    def _length(self, parts: Sequence[Part], most: int) -> int | None:
        """Positions in these parts; None if that is unknown, or more than `most`: then no more headers are counted."""
        total = 0
        for part in parts:
            if total > most and not is_url(self.shards[part.shard]):
                return None
            number = self.count(self.shards[part.shard])
            if number is None:
                return None
            total += part.length(number)
        return total
