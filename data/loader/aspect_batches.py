"""Batches of one size each from pictures of many aspects: samples queue up by bucket, and a full queue is a batch.

The trainer of the next-scale transformer takes these, where its config names aspects (`DataConfig.buckets`).

Nothing is lost: a queue that is not full at the end of an epoch is filled in the next one. A queue grows by what the
pictures' headers say, whether or not a picture turns out to be broken later. So the queues at any batch can be found
again without decoding what came before: the order is walked through, and each shard is read once for its headers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from star.data.captions import captions_of
from star.data.decoding import upright_size
from star.data.errors import InputError
from star.data.loader.aspect import nearest
from star.data.loader.positions import Ref
from star.data.loader.virtual_workers import Sample, SizedReader, VirtualWorker
from star.data.shards.faults import Fault, SampleError
from star.data.shards.tar import Group, fetch, image_bytes


class BucketedVirtualWorker:
    """The chunks of exactly `batch_size` of a virtual worker, each of one bucket."""

    def __init__(self, source: VirtualWorker, batch_size: int, start: int) -> None:
        """start: the number of the first chunk that will be asked for."""
        self.source, self.batch_size = source, batch_size
        self._queues = enumerate(_full_queues(source, batch_size, start), start)
        self._held: dict[int, list[Ref]] = {}  # collected while an earlier chunk was looked for

    def samples(self, number: int) -> list[Sample]:
        """Chunk `number`; the numbers asked for must grow. A broken picture's place is taken by the next usable one of
        its chunk, a chunk of broken ones by the chunk after it. Raises InputError if not one sample can be used.
        """
        place = number
        while True:
            samples = [self.source.decode(ref) for ref in self._full(place)]
            if any(sample is not None for sample in samples):
                break
            self.source.stop_if_nothing_usable()
            place += 1
        self._held = {later: refs for later, refs in self._held.items() if later > number}
        return [_from(samples, place) for place in range(self.batch_size)]

    def _full(self, number: int) -> list[Ref]:
        while number not in self._held:
            place, refs = next(self._queues)
            if place >= number:
                self._held[place] = refs
        return self._held[number]


def _from(samples: list[Sample | None], place: int) -> Sample:
    """The sample at this place, or the next one behind it, round the end."""
    return next(sample for sample in samples[place:] + samples[:place] if sample is not None)


def _full_queues(source: VirtualWorker, batch_size: int, start: int) -> Iterator[list[Ref]]:
    queues: list[list[Ref]] = [[] for _ in source.settings.buckets]
    headers = _Headers(source)
    full = 0
    lost_since: int | None = None  # the epoch in which the present run of samples without a bucket began
    _count_only(source, start > 0)
    while True:
        ref = source.next_ref()
        place = headers.bucket(ref)
        if place is None:
            lost_since = ref.epoch if lost_since is None else lost_since
            if ref.epoch >= lost_since + 2:
                source.stop_if_nothing_usable()
                lost_since = ref.epoch
            continue
        lost_since = None
        queues[place].append(ref)
        if len(queues[place]) < batch_size:
            continue
        refs, queues[place] = queues[place], []
        if full >= start:
            yield refs
        full += 1
        _count_only(source, full < start)


def _count_only(source: VirtualWorker, counting: bool) -> None:
    for order in source.orders:
        order.counting = counting


class _Headers:
    """The bucket of every sample, remembered by shard where the order is only walked through."""

    def __init__(self, source: VirtualWorker) -> None:
        self.source = source
        self._known: dict[str, list[int | None]] = {}

    def bucket(self, ref: Ref) -> int | None:
        """None, and a fault is added, for a sample without a picture or a caption."""
        if ref.group is None:
            if ref.shard not in self._known:
                self._known[ref.shard] = [self._bucket_of(ref.shard, group) for _, group in ref.order.read(ref.shard)]
            known = self._known[ref.shard]
            return known[ref.place] if ref.place < len(known) else None
        try:
            ref.group = fetch(ref.shard, ref.group)  # kept until it is decoded
        except SampleError as error:
            self.source.faults.append(Fault(ref.shard, error.reason, ref.name, error.detail))
            return None
        return self._bucket_of(ref.shard, ref.group)

    def _bucket_of(self, shard: str, group: Group) -> int | None:
        try:
            members = fetch(shard, group).members
            captions_of(members)
            return nearest(self._size_of(members), self.source.settings.buckets)
        except InputError as error:
            self.source.faults.append(Fault(shard, "broken picture", group.key, str(error)))
        except SampleError as error:
            self.source.faults.append(Fault(shard, error.reason, group.key, error.detail))
        return None

    def _size_of(self, members: Mapping[str, Any]) -> tuple[int, int]:
        """(H, W) in pixels. Raises SampleError or InputError where a header does not say."""
        reader = self.source.settings.reader
        if isinstance(reader, SizedReader):
            return reader.size(members)
        return upright_size(image_bytes(members)[1])
