"""One lane of the pipeline: from shards to decoded chunks of samples, endless or once, starting anywhere.

The lane's order is made of references (epoch, shard, place in the shard); only those it hands out are read and decoded.
A position whose sample turns out unusable when decoded is given to the next usable sample of the lane, so what stands
at any other position never depends on what was broken before it.

Shapes: B batch, H W pixels, 3 RGB.
"""

import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from random import Random
from typing import Any, NamedTuple
from urllib.request import urlopen

import torch
from torch import Tensor

from data.errors import InputError
from data.images import Crop, decode, pil_to_pixels, resize
from data.order import Part, choose, deal, shuffled
from data.tars import Fault, Group, SampleError, captions_of, fetch, image_bytes, index_shard, is_seekable, read_shard

logger = logging.getLogger(__name__)


class Settings(NamedTuple):
    """What a lane needs to know of the data config."""

    shards: tuple[str, ...]
    size: tuple[int, int]
    crop: Crop
    random_caption: bool
    shuffle: bool
    buffer: int
    seed: int


class Sample(NamedTuple):
    pixels_3HW: Tensor
    prompt: str
    key: str
    captions: tuple[str, ...]
    info: dict[str, Any]
    epoch: int


class Chunk(NamedTuple):
    """Samples of one lane, stacked for travel between processes, and the faults met on the way to them."""

    pixels_B3HW: Tensor
    prompts: list[str]
    keys: list[str]
    captions: list[tuple[str, ...]]
    info: list[dict[str, Any]]
    epochs: list[int]
    faults: list[Fault]


@dataclass(slots=True)
class Ref:
    """One position of the order; its group is absent while it was only counted."""

    epoch: int
    shard: int
    place: int
    group: Group | None


def pack_chunk(samples: Sequence[Sample], faults: list[Fault], size: tuple[int, int]) -> Chunk:
    pixels = [sample.pixels_3HW for sample in samples]
    return Chunk(
        torch.stack(pixels) if pixels else torch.empty((0, 3, *size), dtype=torch.uint8),
        [sample.prompt for sample in samples],
        [sample.key for sample in samples],
        [sample.captions for sample in samples],
        [sample.info for sample in samples],
        [sample.epoch for sample in samples],
        faults,
    )


class Lane:
    """Reads the part of the data that falls to `lane` of `lanes`."""

    def __init__(self, settings: Settings, lanes: int, lane: int) -> None:
        self.settings = settings
        self.lanes = lanes
        self.lane = lane
        self.faults: list[Fault] = []
        self.counts: dict[int, int] = {}
        self._promised: dict[str, dict[str, int]] = {}
        self._counted_only: dict[int, dict[int, Ref]] = {}
        self._skip = 0

    def chunks(self, batch_size: int, start: int = 0) -> Iterator[Chunk]:
        """Endless chunks of exactly `batch_size`, from the lane's chunk number `start` on."""
        refs = self._refs(start * batch_size)
        ahead: deque[Sample | None] = deque()
        while True:
            bad_since: int | None = None  # the epoch in which the present run of unusable samples began
            while len(ahead) < batch_size or ahead[-1] is None:
                ref = next(refs)
                sample = self._decode(ref)
                ahead.append(sample)
                if sample is not None:
                    bad_since = None
                elif bad_since is None:
                    bad_since = ref.epoch
                elif ref.epoch >= bad_since + 2:
                    self._stop_if_nothing_usable()
                    bad_since = ref.epoch
            samples: list[Sample] = []
            for sample in reversed(ahead):
                samples.append(samples[-1] if sample is None else sample)
            samples.reverse()
            for _ in range(batch_size):
                ahead.popleft()
            yield pack_chunk(samples[:batch_size], self._take_faults(), self.settings.size)

    def once(self, batch_size: int, worker: int, workers: int) -> Iterator[Chunk]:
        """Every sample of the lane once, in shard order; of each `workers` chunks the one that falls to `worker`.

        Chunks lack their unusable samples; the last one may be empty, only there to bring the last faults.
        """
        parts = deal(len(self.settings.shards), self.lanes, self.lane, 0, 0, False)
        refs = self._groups(parts, epoch=0)
        for number in count():
            window = list(islice(refs, batch_size))
            if number % workers == worker:
                samples = [sample for sample in map(self._decode, window) if sample is not None]
                yield pack_chunk(samples, self._take_faults(), self.settings.size)
            if not window:
                break
        yield pack_chunk([], self._take_faults(), self.settings.size)

    def _take_faults(self) -> list[Fault]:
        faults, self.faults = self.faults, []
        return faults

    def _refs(self, skip: int) -> Iterator[Ref]:
        """The lane's endless order, less its first `skip` positions, which are counted but not decoded."""
        settings = self.settings
        self._skip = skip
        for epoch in count():
            parts = deal(len(settings.shards), self.lanes, self.lane, epoch, settings.seed, settings.shuffle)
            if self._skip:
                length = self._length(parts)
                if length is not None and 0 < length <= self._skip:
                    self._skip -= length
                    continue
            random = Random(f"{settings.seed}/{epoch}/{self.lane}/samples")
            order = self._groups(parts, epoch)
            met = 0
            for ref in shuffled(order, settings.buffer, random) if settings.shuffle else order:
                met += 1
                if self._skip:
                    self._skip -= 1
                    if ref.group is None:
                        del self._counted_only[ref.shard][ref.place]
                else:
                    yield ref
            if not met:
                self._stop_if_nothing_usable()

    def _groups(self, parts: Sequence[Part], epoch: int) -> Iterator[Ref]:
        for part in parts:
            number = self._count(part.shard) if self._skip else None
            if number is not None and part.length(number) <= self._skip:
                places = range(part.first, number, part.step)
                refs = {place: Ref(epoch, part.shard, place, None) for place in places}
                self._counted_only[part.shard] = dict(refs)
                yield from refs.values()
                continue
            for place, group in self._read(part.shard):
                if place % part.step == part.first:
                    yield Ref(epoch, part.shard, place, group)

    def _read(self, shard: int) -> Iterator[tuple[int, Group]]:
        name = self.settings.shards[shard]
        reader = index_shard if is_seekable(name) else read_shard
        place = -1
        for place, group in enumerate(reader(name, self.faults)):
            yield place, group
        known = self.counts.setdefault(shard, place + 1)
        if known != place + 1:
            self.counts[shard] = place + 1
            self.faults.append(Fault(name, "index mismatch", "", f"{place + 1} samples where {known} were expected"))

    def _count(self, shard: int) -> int | None:
        """Samples in a shard if that is known or can be had from headers or an index; else None."""
        if shard not in self.counts:
            name = self.settings.shards[shard]
            folder, _, base = name.rpartition("/")
            if name.startswith(("http://", "https://")):
                promised = self._index_of(folder).get(base)
                if promised is not None:
                    self.counts[shard] = promised
            elif is_seekable(name):
                for _ in self._read(shard):
                    pass
        return self.counts.get(shard)

    def _index_of(self, folder: str) -> dict[str, int]:
        if folder not in self._promised:
            try:
                with urlopen(f"{folder}/index.json", timeout=30) as answer:
                    entries = json.load(answer)["shards"]
                self._promised[folder] = {name: int(entry["samples"]) for name, entry in entries.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.info("no usable index.json in %s (%s): resuming has to read through its shards", folder, error)
                self._promised[folder] = {}
        return self._promised[folder]

    def _length(self, parts: Sequence[Part]) -> int | None:
        total = 0
        for part in parts:
            number = self._count(part.shard)
            if number is None:
                return None
            total += part.length(number)
        return total

    def _decode(self, ref: Ref) -> Sample | None:
        settings, key = self.settings, f"sample {ref.place}"
        shard = settings.shards[ref.shard]
        try:
            if ref.group is None:
                self._read_counted(ref.shard)
            if ref.group is None:
                raise SampleError("truncated or damaged tar", "the shard is shorter than when it was counted")
            key = ref.group.key
            return decode_group(fetch(shard, ref.group), settings, ref.epoch)
        except SampleError as error:
            self.faults.append(Fault(shard, error.reason, key, error.detail))
            return None

    def _read_counted(self, shard: int) -> None:
        wanted = self._counted_only.pop(shard)
        for place, group in self._read(shard):
            if place in wanted:
                wanted[place].group = group

    def _stop_if_nothing_usable(self) -> None:
        for name in self.settings.shards:
            for group in index_shard(name, []) if is_seekable(name) else read_shard(name, []):
                try:
                    decode_group(fetch(name, group), self.settings, 0)
                except SampleError:
                    continue
                return
        raise nothing_usable(self.settings.shards, self.faults)


def nothing_usable(shards: Sequence[str], faults: Sequence[Fault]) -> InputError:
    first = f"; the first fault is {faults[0].reason} in {faults[0].shard}" if faults else ""
    return InputError(
        f"Not one sample of the {len(shards)} shards ({shards[0]}, ...) can be used{first}; "
        "run `star data check` on them."
    )


def decode_group(group: Group, settings: Settings, epoch: int) -> Sample:
    """Bytes -> Sample. Raises SampleError with the reason if the sample cannot be used."""
    captions, info = captions_of(group.members)
    _, data = image_bytes(group.members)
    try:
        picture = decode(data)
    except InputError as error:
        raise SampleError("broken picture", str(error)) from error
    prompt = choose(captions, settings.seed, epoch, group.key) if settings.random_caption else captions[0]
    return Sample(
        pil_to_pixels(resize(picture, settings.size, settings.crop)), prompt, group.key, captions, info, epoch
    )
