"""What worker processes run: the virtual workers of a rank, in turn, so that the order of batches needs no clock."""

import multiprocessing
import signal
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from star.data.errors import InputError
from star.data.loader.aspect_batches import BucketedVirtualWorker
from star.data.loader.order import round_robin
from star.data.loader.virtual_workers import Chunk, Sample, Settings, VirtualWorker, pack_chunk


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

    What it holds is a stretch of one sequence that all virtual workers make together (`order.round_robin`), so it does
    not depend on who reads it. A virtual worker is read by one process only where the batches of a process always come
    from the same virtual workers.
    """

    def chunks(self, worker: int) -> Iterator[Chunk]:
        settings = self.settings
        virtual: dict[int, VirtualWorker] = {}
        if settings.buckets:
            yield from self._bucketed(worker)
        for batch in count(self.start + worker, self.workers):
            first = (batch * self.world + self.rank) * self.batch_size
            samples: list[Sample] = []
            for index, begin, number in round_robin(first, self.batch_size, settings.lanes, settings.per_lane):
                if index not in virtual:
                    virtual[index] = VirtualWorker(settings, settings.lanes, index)
                samples += virtual[index].samples(begin, number)
            faults = [fault for one in virtual.values() for fault in one.take_faults()]
            yield pack_chunk(samples, faults, settings.size)

    def _bucketed(self, worker: int) -> Iterator[Chunk]:
        """The virtual workers give a whole batch in their turn: only such a one is of one size."""
        settings = self.settings
        virtual: dict[int, BucketedVirtualWorker] = {}
        for batch in count(self.start + worker, self.workers):
            number, index = divmod(batch * self.world + self.rank, settings.lanes)
            if index not in virtual:
                one = VirtualWorker(settings, settings.lanes, index)
                virtual[index] = BucketedVirtualWorker(one, self.batch_size, number)
            samples = virtual[index].samples(number)
            yield pack_chunk(samples, virtual[index].source.take_faults(), settings.size)


class Once(Chunks):
    """All workers of a rank walk the same order and decode in turn."""

    def chunks(self, worker: int) -> Iterator[Chunk]:
        return VirtualWorker(self.settings, self.world, self.rank).once(self.batch_size, worker, self.workers)
