"""Shards to batches: what the iterator holds after each stage.

shard names -> dealt to virtual workers, shuffled per epoch (`order`) -> references to samples, shuffled within a
buffer (`positions`) -> decoded, resized uint8 pictures with captions (`virtual_workers`) -> chunks, possibly from
worker processes (`workers`) -> `Batch`.
With `cache=True` every picture is decoded once and kept as uint8; an epoch is then one permutation of all of them, and
the batches of `world` ranks laid side by side are the batch one rank alone would see at `world` times the size.
Several sources are sampled by weight, each with an order and epochs of its own. With `buckets` a batch has the size of
one of them. With a `reader` a sample is whatever that makes of its members, in place of a picture.

Shapes: B batch, H W pixels, 3 RGB.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.images import CROPS, Crop, pixels_to_image
from star.data.loader.aspect import check_buckets
from star.data.loader.batch import Batch, cut, joined, to_batch
from star.data.loader.order import choose, permutation
from star.data.loader.report import SkipReport
from star.data.loader.virtual_workers import Chunk, Reader, Settings, SizedReader, Source, VirtualWorker, nothing_usable
from star.data.loader.weighted_sampling import WeightedSampling
from star.data.loader.workers import Chunks, Endless, Once, run
from star.data.shards.listing import list_shards
from star.data.shards.remote import is_url
from star.data.shards.tar import image_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which pictures, at which size, with which caption, in which order."""

    shards: tuple[str, ...] = ()
    """Folders, globs, brace ranges, URLs or text lists of .tar shards."""
    sources: tuple[tuple[tuple[str, ...], float], ...] = ()
    """Instead of shards: several such lists, each with a weight; of 1,024 samples each list has its share."""
    resolution: int | tuple[int, int] = 64
    """Pixels, one number or (height, width)."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Instead of the resolution: (height, width) of several; a picture goes to the one of the nearest aspect."""
    crop: Crop = "center"
    """What to do with another aspect: cut the edges, squash, or pad with white."""
    caption: Literal["random", "first"] = "random"
    shuffle: bool = True
    buffer: int = 4096
    """Samples among which the next one is drawn, in each virtual worker; not used with cache."""
    workers: int = 0
    """Processes that decode; 0 decodes in the training process. Who decodes changes nothing in the order."""
    lanes: int = 0
    """Virtual workers: streams that the data are dealt to, whichever process reads them; 0: as `default_lanes`
    has it. Not used with cache."""
    per_lane: int = 0
    """Samples that each virtual worker gives in its turn; 0: a batch. With both numbers given, the order of all samples
    is the same for all numbers of processes and workers and sizes of batches. Not used with cache or buckets."""
    seed: int = 0
    allow_pipe: bool = False
    """Whether text lists of shards may name commands (pipe:...), which are run."""
    cache: bool = False
    """Decode once and keep everything in memory as uint8."""

    def __post_init__(self) -> None:
        for shards in (self.shards,) if not self.sources else [shards for shards, _ in self.sources]:
            if isinstance(shards, str) or not shards:
                raise InputError(f"shards is {shards!r}; give a tuple of one or more folders, globs, URLs or lists.")
        if self.sources and self.shards:
            raise InputError("Both shards and sources were given; give the shards as one more source with a weight.")
        for _, weight in self.sources:
            if not 0 < weight < inf:
                raise InputError(f"sources holds a weight of {weight}; give a number above 0.")
        if self.buckets and self.cache:
            raise InputError("buckets cannot be kept in memory, where pictures have one size; set cache to False.")
        check_buckets(self.buckets)
        if min(self.size) < 1:
            raise InputError(f"resolution is {self.resolution}; give one or two numbers of pixels of at least 1.")
        if self.crop not in CROPS:
            raise InputError(f"crop is {self.crop!r}; choose one of {', '.join(CROPS)}.")
        if self.caption not in ("random", "first"):
            raise InputError(f"caption is {self.caption!r}; choose random or first.")
        if self.buffer < 1 or min(self.workers, self.lanes, self.per_lane, self.seed) < 0:
            raise InputError(
                f"buffer, workers, lanes, per_lane and seed are {self.buffer}, {self.workers}, {self.lanes}, "
                f"{self.per_lane} and {self.seed}; give a buffer of at least 1, and no negative numbers."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution


class Pipeline:
    """Batches of one rank out of `world`; `report` says what was skipped, by shard and reason, and names it.

    Raises InputError if the shards match nothing, or hold not one usable sample.
    """

    def __init__(
        self, config: DataConfig, *, batch_size: int, rank: int = 0, world: int = 1, reader: Reader | None = None
    ) -> None:
        """reader: what is made of a sample's members, see `Reader`; pictures if not given."""
        if batch_size < 1:
            raise InputError(f"The batch size is {batch_size}; give at least 1.")
        if not 0 <= rank < world:
            raise InputError(f"Rank {rank} of {world} does not exist; give 0 <= rank < world.")
        if reader is not None and config.cache:
            raise InputError("Only pictures are kept in memory; set cache to False to read anything else.")
        if reader is not None and config.buckets and not isinstance(reader, SizedReader):
            raise InputError("buckets were given for samples that tell no size; leave them out.")
        self.config = config
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.sources = _sources(config)
        self.lanes = config.lanes or (1 if config.cache else default_lanes(config, self.shards, world))
        self.per_lane = config.per_lane or batch_size
        self.sampling = WeightedSampling([source.weight for source in self.sources], str(config.seed))
        self.reader = reader
        self.report = SkipReport()
        self._cache: Chunk | None = None
        self._cached_per_source: list[int] = []

    @property
    def shards(self) -> tuple[str, ...]:
        """Those of all sources."""
        return tuple(shard for source in self.sources for shard in source.shards)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Endless batches from number `start` on.

        Batch i is a pure function of (config, batch_size, rank, world, i), whatever the workers; where lanes and
        per_lane are given, it is batch number i * world + rank of one rank alone. In each epoch of a source every
        usable sample of it comes once, except that an unusable picture's place is taken by a neighbour; a batch may
        span two epochs. Virtual workers have their epochs by themselves.
        """
        if start < 0:
            raise InputError(f"Batches cannot start at {start}; give 0 or more.")
        return self._cached_batches(start) if self.config.cache else self._streamed_batches(start)

    def one_pass(self) -> Iterator[Batch]:
        """Every usable sample of this rank once, in shard order, under its first caption; the last batch is short."""
        if self.config.cache:
            index = torch.arange(self.rank, len(self.cached().keys), self.world)
            for part in index.split(self.batch_size):
                yield self._gather(part.tolist(), epochs=None)
            return
        yielded = False
        for batch in self._rebatched(self._pass(self.rank, self.world)):
            yielded = True
            yield batch
        if not yielded and self.world == 1:
            raise nothing_usable(self.shards, self.report.named)

    def alone(self, batch_size: int) -> "Pipeline":
        """The samples of all ranks in batches of another size; what is in memory is shared, and no worker starts."""
        if self.config.cache:
            self.cached()
        other = copy(self)
        other.config, other.batch_size, other.rank, other.world = replace(self.config, workers=0), batch_size, 0, 1
        return other

    def records(self) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """Captions and record of every sample of all ranks, in shard order; no picture is decoded for it."""
        if self.config.cache:
            whole = self.cached()
            yield from zip(whole.captions, whole.info, strict=True)
            return
        settings = self._settings()._replace(random_caption=False, reader=self.reader or _without_picture)
        for chunk in self._load(Once(settings, self.batch_size, 0, 1, 0)):
            yield from zip(chunk.captions, chunk.info, strict=True)

    def windows(self, part: int, parts: int) -> Iterator[Batch]:
        """Of one pass over the samples of all ranks, cut into windows of `batch_size`, every `parts`-th from `part` on.

        A window lacks its unusable samples and may be empty. So processes can share a pass: what stands in window i
        depends on nothing but the shards and the batch size.
        """
        if self.config.cache:
            for window in torch.arange(len(self.cached().keys)).split(self.batch_size)[part::parts]:
                yield self._gather(window.tolist(), epochs=None)
            return
        settings = self._settings()._replace(random_caption=False)
        for chunk in VirtualWorker(settings, 1, 0).once(self.batch_size, part, parts):
            self.report.add(chunk.faults)
            yield to_batch(chunk)

    def cached(self) -> Chunk:
        """All usable samples of all ranks, decoded; filled on first use."""
        if self._cache is None:
            chunks: list[Chunk] = []
            for source in self.sources:
                mine = list(self._pass(0, 1, (source,)))
                if not any(chunk.keys for chunk in mine):
                    raise nothing_usable(source.shards, self.report.named)
                chunks += mine
                self._cached_per_source.append(sum(len(chunk.keys) for chunk in mine))
            whole = _concatenated(chunks)
            size = whole.pixels_B3HW.numel() / 2**20
            logger.info("%d pictures of %d shards in memory, %.0f MiB", len(whole.keys), len(self.shards), size)
            self._cache = whole
        return self._cache

    def _cached_batches(self, start: int) -> Iterator[Batch]:
        self.cached()
        totals = self._cached_per_source
        firsts = [sum(totals[:source]) for source in range(len(totals))]
        orders = [(-1, permutation(0, 0, 0, False))] * len(totals)
        for number in count(start):
            first = (number * self.world + self.rank) * self.batch_size
            passed = self.sampling.before(first)
            places, epochs = [], []
            for position in range(first, first + self.batch_size):
                source = self.sampling.source(position)
                epoch, place = divmod(passed[source], totals[source])
                passed[source] += 1
                if epoch != orders[source][0]:
                    orders[source] = epoch, permutation(totals[source], epoch, self.config.seed, self.config.shuffle)
                places.append(firsts[source] + int(orders[source][1][place]))
                epochs.append(epoch)
            yield self._gather(places, epochs)

    def _gather(self, places: list[int], epochs: list[int] | None) -> Batch:
        whole = self.cached()
        captions = [whole.captions[place] for place in places]
        keys = [whole.keys[place] for place in places]
        if epochs is None or self.config.caption == "first":
            prompts = [several[0] for several in captions]
        else:
            prompts = [
                choose(several, self.config.seed, epoch, key)
                for several, epoch, key in zip(captions, epochs, keys, strict=True)
            ]
        return Batch(
            image_B3HW=pixels_to_image(whole.pixels_B3HW[torch.tensor(places)]),
            prompts=prompts,
            keys=keys,
            captions=captions,
            info=[whole.info[place] for place in places],
            epochs=epochs or [0] * len(places),
            extra={name: tensor[torch.tensor(places)] for name, tensor in whole.extra.items()},
        )

    def _streamed_batches(self, start: int) -> Iterator[Batch]:
        for chunk in self._load(Endless(self._settings(), self.batch_size, self.rank, self.world, start)):
            yield to_batch(chunk)

    def _pass(self, rank: int, world: int, sources: tuple[Source, ...] = ()) -> Iterator[Chunk]:
        settings = self._settings()._replace(random_caption=False, sources=sources or self.sources)
        return self._load(Once(settings, self.batch_size, rank, world, 0))

    def _rebatched(self, chunks: Iterator[Chunk]) -> Iterator[Batch]:
        """Whole batches, each of one size of picture, then what is left of each size."""
        waiting: dict[torch.Size, Chunk] = {}
        for chunk in chunks:
            if not chunk.keys:
                continue
            size = chunk.pixels_B3HW.shape[1:]
            whole = joined([waiting.pop(size), chunk]) if size in waiting else chunk
            while len(whole.keys) >= self.batch_size:
                yield to_batch(cut(whole, 0, self.batch_size))
                whole = cut(whole, self.batch_size, len(whole.keys))
            if whole.keys:
                waiting[size] = whole
        yield from map(to_batch, waiting.values())

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            sources=self.sources,
            size=config.size,
            buckets=config.buckets,
            crop=config.crop,
            random_caption=config.caption == "random",
            shuffle=config.shuffle,
            buffer=config.buffer,
            seed=config.seed,
            lanes=self.lanes,
            per_lane=self.per_lane,
            reader=self.reader,
        )

    def _load(self, dataset: Chunks) -> Iterator[Chunk]:
        for chunk in run(dataset, self.config.workers):
            self.report.add(chunk.faults)
            yield chunk


def default_lanes(config: DataConfig, shards: Sequence[str], world: int) -> int:
    """How many virtual workers there are if nobody says so: one for each process.

    One for each worker of each process where shards are read from front to back (remote or compressed ones, or for
    buckets), so that each is read once.
    """
    by_place = not config.buckets and all(shard.lower().endswith(".tar") and not is_url(shard) for shard in shards)
    return world if by_place else world * max(1, config.workers)


def _without_picture(members: Mapping[str, bytes], choice: int) -> dict[str, Tensor]:
    """A `Reader` of samples of which only captions and records are wanted."""
    image_bytes(members)
    return {}


def _concatenated(chunks: list[Chunk]) -> Chunk:
    """All of them as one, each let go as soon as it is copied; the list is left empty."""
    chunks[:] = [chunk for chunk in chunks if chunk.keys]
    size = chunks[0].pixels_B3HW.shape[1:]
    pixels_B3HW = torch.empty((sum(len(chunk.keys) for chunk in chunks), *size), dtype=torch.uint8)
    first = 0
    for place, chunk in enumerate(chunks):
        pixels_B3HW[first : first + len(chunk.keys)] = chunk.pixels_B3HW
        first += len(chunk.keys)
        chunks[place] = chunk._replace(pixels_B3HW=torch.empty((0, *size), dtype=torch.uint8))
    whole = joined(chunks)._replace(pixels_B3HW=pixels_B3HW)
    chunks.clear()
    return whole


def _sources(config: DataConfig) -> tuple[Source, ...]:
    found = [
        Source(tuple(list_shards(shards, allow_pipe=config.allow_pipe)), float(weight))
        for shards, weight in config.sources or ((config.shards, 1),)
    ]
    seen: set[str] = set()
    for source in found:
        if twice := seen.intersection(source.shards):
            raise InputError(f"{min(twice)} is in two of the sources; leave it out of one of them.")
        seen.update(source.shards)
    return tuple(found)
