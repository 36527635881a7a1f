"""Shards to batches: what the iterator holds after each stage.

shard names -> dealt to ranks and workers, shuffled per epoch (`order`) -> references to samples, shuffled within a
buffer -> decoded, resized uint8 pictures with captions (`lanes`) -> chunks, possibly from worker processes -> `Batch`.
With `cache=True` every picture is decoded once and kept as uint8; an epoch is then one permutation of all of them, and
the batches of `world` ranks laid side by side are the batch one rank alone would see at `world` times the size.

Shapes: B batch, H W pixels, 3 RGB.
"""

import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.errors import InputError
from data.images import CROPS, Crop, pixels_to_image
from data.lanes import Chunk, Lane, Settings, nothing_usable
from data.order import choose, permutation
from data.skips import SkipReport
from data.tars import list_shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which pictures, at which size, with which caption, in which order."""

    shards: tuple[str, ...]
    """Folders, globs, brace ranges, URLs or text lists of .tar shards."""
    resolution: int | tuple[int, int] = 64
    """Pixels, one number or (height, width)."""
    crop: Crop = "center"
    """What to do with another aspect: cut the edges, squash, or pad with white."""
    caption: Literal["random", "first"] = "random"
    shuffle: bool = True
    buffer: int = 4096
    """Samples among which the next one is drawn, in each worker; not used with cache."""
    workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    seed: int = 0
    cache: bool = False
    """Decode once and keep everything in memory as uint8."""

    def __post_init__(self) -> None:
        if isinstance(self.shards, str) or not self.shards:
            raise InputError(f"shards is {self.shards!r}; give a tuple of one or more folders, globs, URLs or lists.")
        if min(self.size) < 1:
            raise InputError(f"resolution is {self.resolution}; give one or two numbers of pixels of at least 1.")
        if self.crop not in CROPS:
            raise InputError(f"crop is {self.crop!r}; choose one of {', '.join(CROPS)}.")
        if self.caption not in ("random", "first"):
            raise InputError(f"caption is {self.caption!r}; choose random or first.")
        if self.buffer < 1 or self.workers < 0 or self.seed < 0:
            raise InputError(
                f"buffer, workers and seed are {self.buffer}, {self.workers} and {self.seed}; "
                "give a buffer of at least 1, and no negative numbers."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B captioned pictures. `prompts` are the captions chosen for this epoch, `captions` all there are.

    Samples that are not pictures have their tensors (B, ...) by name in `extra`, and an image_B3HW without pixels.
    """

    image_B3HW: Tensor
    prompts: list[str]
    keys: list[str]
    captions: list[tuple[str, ...]]
    info: list[dict[str, Any]]
    epochs: list[int]
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def pick(self, places: Sequence[int]) -> "Batch":
        """The samples at these places, in this order; a place may come more than once."""
        index = torch.tensor(places, dtype=torch.int64)
        return Batch(
            image_B3HW=self.image_B3HW[index],
            prompts=[self.prompts[place] for place in places],
            keys=[self.keys[place] for place in places],
            captions=[self.captions[place] for place in places],
            info=[self.info[place] for place in places],
            epochs=[self.epochs[place] for place in places],
            extra={name: tensor[index] for name, tensor in self.extra.items()},
        )


class Pipeline:
    """Batches of one rank out of `world`; `report` says what was skipped, by shard and reason, and names it.

    Raises InputError if the shards match nothing, or hold not one usable sample.
    """

    def __init__(self, config: DataConfig, *, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise InputError(f"The batch size is {batch_size}; give at least 1.")
        if not 0 <= rank < world:
            raise InputError(f"Rank {rank} of {world} does not exist; give 0 <= rank < world.")
        self.config = config
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.shards = tuple(list_shards(config.shards))
        self.report = SkipReport()
        self._cache: Chunk | None = None

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Endless batches from number `start` on.

        Batch i is a pure function of (config, batch_size, rank, world, i). In each epoch every usable sample comes
        once, except that an unusable picture's place is taken by a neighbour; a batch may span two epochs.
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

    def cached(self) -> Chunk:
        """All usable samples of all ranks, decoded; filled on first use."""
        if self._cache is None:
            chunks = list(self._pass(0, 1))
            whole = _joined(chunks)
            if not whole.keys:
                raise nothing_usable(self.shards, self.report.named)
            size = whole.pixels_B3HW.numel() / 2**20
            logger.info("%d pictures of %d shards in memory, %.0f MiB", len(whole.keys), len(self.shards), size)
            self._cache = whole
        return self._cache

    def _cached_batches(self, start: int) -> Iterator[Batch]:
        total = len(self.cached().keys)
        epoch_of_order, order = -1, permutation(0, 0, 0, False)
        for number in count(start):
            first = (number * self.world + self.rank) * self.batch_size
            places, epochs = [], []
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, total)
                if epoch != epoch_of_order:
                    epoch_of_order = epoch
                    order = permutation(total, epoch, self.config.seed, self.config.shuffle)
                places.append(int(order[place]))
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
        )

    def _streamed_batches(self, start: int) -> Iterator[Batch]:
        for chunk in self._load(_Endless(self._settings(), self.batch_size, self.rank, self.world, start)):
            yield _to_batch(chunk)

    def _pass(self, rank: int, world: int) -> Iterator[Chunk]:
        settings = self._settings()._replace(random_caption=False)
        return self._load(_Once(settings, self.batch_size, rank, world, 0))

    def _rebatched(self, chunks: Iterator[Chunk]) -> Iterator[Batch]:
        waiting: Chunk | None = None
        for chunk in chunks:
            whole = chunk if waiting is None else _joined([waiting, chunk])
            while len(whole.keys) >= self.batch_size:
                yield _to_batch(_cut(whole, 0, self.batch_size))
                whole = _cut(whole, self.batch_size, len(whole.keys))
            waiting = whole if whole.keys else None
        if waiting is not None:
            yield _to_batch(waiting)

    def _settings(self) -> Settings:
        config = self.config
        random_caption = config.caption == "random"
        return Settings(
            self.shards, config.size, config.crop, random_caption, config.shuffle, config.buffer, config.seed
        )

    def _load(self, dataset: "_Chunks") -> Iterator[Chunk]:
        workers = self.config.workers
        dataset.workers = max(1, workers)
        for item in self._loader(dataset, workers) if workers else dataset:
            if isinstance(item, str):
                raise InputError(item)
            self.report.add(item.faults)
            yield item

    @staticmethod
    def _loader(dataset: "_Chunks", workers: int) -> "DataLoader[Chunk | str]":
        # Not fork: a training process has threads, and a fork of one may deadlock. The server imports torch once.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["torch", "webdataset", "data.pipeline"])
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=context,
            collate_fn=_as_it_is,  # the default would turn tuples of captions into lists
            worker_init_fn=_ignore_interrupt,
            generator=torch.Generator(),  # its own, or the loader would draw from the one that training uses
        )


def _as_it_is(item: Any) -> Any:
    return item


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C is for the training process, which ends its workers when it has written its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Chunks(IterableDataset["Chunk | str"]):
    """What a worker runs: picklable, and an InputError crosses to the training process as its one sentence."""

    def __init__(self, settings: Settings, batch_size: int, rank: int, world: int, start: int) -> None:
        self.settings = settings
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.start = start
        self.workers = 1

    def __iter__(self) -> Iterator[Chunk | str]:
        info = get_worker_info()
        try:
            yield from self.chunks(0 if info is None else info.id)
        except InputError as error:
            yield str(error)

    def chunks(self, worker: int) -> Iterator[Chunk]:
        raise NotImplementedError


class _Endless(_Chunks):
    """Batch i of a rank comes from its worker i % workers; the loader asks its workers in turn, from 0 on."""

    def chunks(self, worker: int) -> Iterator[Chunk]:
        number, turn = divmod(self.start + worker, self.workers)
        lane = Lane(self.settings, self.world * self.workers, self.rank * self.workers + turn)
        return lane.chunks(self.batch_size, number)


class _Once(_Chunks):
    """All workers of a rank walk the same order and decode in turn."""

    def chunks(self, worker: int) -> Iterator[Chunk]:
        return Lane(self.settings, self.world, self.rank).once(self.batch_size, worker, self.workers)


def _to_batch(chunk: Chunk) -> Batch:
    return Batch(
        image_B3HW=pixels_to_image(chunk.pixels_B3HW),
        prompts=chunk.prompts,
        keys=chunk.keys,
        captions=chunk.captions,
        info=chunk.info,
        epochs=chunk.epochs,
    )


def _cut(chunk: Chunk, first: int, end: int) -> Chunk:
    part = slice(first, end)
    return Chunk(
        pixels_B3HW=chunk.pixels_B3HW[part],
        prompts=chunk.prompts[part],
        keys=chunk.keys[part],
        captions=chunk.captions[part],
        info=chunk.info[part],
        epochs=chunk.epochs[part],
        faults=[],
    )


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    return Chunk(
        pixels_B3HW=torch.cat([chunk.pixels_B3HW for chunk in chunks]),
        prompts=[prompt for chunk in chunks for prompt in chunk.prompts],
        keys=[key for chunk in chunks for key in chunk.keys],
        captions=[captions for chunk in chunks for captions in chunk.captions],
        info=[info for chunk in chunks for info in chunk.info],
        epochs=[epoch for chunk in chunks for epoch in chunk.epochs],
        faults=[],
    )
