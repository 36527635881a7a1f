"""What worker processes run: the lanes of one rank, in turn, so that the order of batches depends on no clock."""

import multiprocessing
import signal
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from star.data.errors import InputError
from star.data.loader.aspect_batches import BucketedLane
from star.data.loader.order import turns
from star.data.loader.virtual_workers import Chunk, Lane, Sample, Settings, pack_chunk


def run(dataset: "Chunks", workers: int) -> Iterator[Chunk]:
    """The chunks of a data set, made by worker processes, or in this one if there are to be none.

    Raises InputError, wherever it arose.
    """
    dataset.workers = max(1, workers)
    for item in _loader(dataset, workers) if workers else dataset:
        if isinstance(item, str):
            raise InputError(item)
        yield item


def _loader(dataset: "Chunks", workers: int) -> "DataLoader[Chunk | str]":
    # Not fork: a training process has threads, and a fork of one may deadlock. The server imports torch once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["torch", "webdataset", "star.data.loader.pipeline"])
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


class Chunks(IterableDataset["Chunk | str"]):
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


class Endless(Chunks):
    """Batch i of a rank comes from its worker i % workers; the loader asks its workers in turn, from 0 on.

    What it holds is a stretch of one sequence that all lanes make together (`order.turns`), so it does not depend on
    who reads it. A lane is read by one worker only where the batches of a worker always fall into the same lanes.
    """

    def chunks(self, worker: int) -> Iterator[Chunk]:
        settings = self.settings
        lanes: dict[int, Lane] = {}
        if settings.buckets:
            yield from self._bucketed(worker)
        for batch in count(self.start + worker, self.workers):
            first = (batch * self.world + self.rank) * self.batch_size
            samples: list[Sample] = []
            for turn in turns(first, self.batch_size, settings.lanes, settings.per_lane):
                if turn.lane not in lanes:
                    lanes[turn.lane] = Lane(settings, settings.lanes, turn.lane)
                samples += lanes[turn.lane].samples(turn.first, turn.number)
            yield pack_chunk(samples, [fault for lane in lanes.values() for fault in lane.take_faults()], settings.size)

    def _bucketed(self, worker: int) -> Iterator[Chunk]:
        """The lanes give a batch in their turn: only whole ones are of one size."""
        settings = self.settings
        lanes: dict[int, BucketedLane] = {}
        for batch in count(self.start + worker, self.workers):
            number, place = divmod(batch * self.world + self.rank, settings.lanes)
            if place not in lanes:
                lanes[place] = BucketedLane(Lane(settings, settings.lanes, place), self.batch_size, number)
            samples = lanes[place].samples(number)
            yield pack_chunk(samples, lanes[place].lane.take_faults(), settings.size)


class Once(Chunks):
    """All workers of a rank walk the same order and decode in turn."""

    def chunks(self, worker: int) -> Iterator[Chunk]:
        return Lane(self.settings, self.world, self.rank).once(self.batch_size, worker, self.workers)
