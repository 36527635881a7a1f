"""How every trainer is fed: the same fields in each config, the same order whoever decodes, and one log of samples.

    sources = training_sources(data, config.weights)
    feed = Feed(config, sources, out, resume=resume, resolution=64)   # decides what "auto" and 0 leave open
    config = feed.config
    run = Run(out, config.run, to_dict(config) | feed.names, resume)
    pipeline = feed.pipeline(run)
    ...
    run.restore()
    batches = feed.batches(run, pipeline)

What was decided is part of the run's config. A run that goes on takes it from there, so neither the memory that is free
on that day nor another number of processes or workers changes which sample comes when.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from star.data.errors import InputError
from star.data.images import Crop
from star.data.loader.batch import Batch
from star.data.loader.capacity import Decision, decide
from star.data.loader.pipeline import DataConfig, Pipeline, default_lanes
from star.data.loader.sample_log import logged
from star.data.loader.virtual_workers import Reader
from star.generators.training import checkpoint as snapshots
from star.generators.training.run import Run, RunConfig
from star.generators.training.train_state import CHECKPOINTS

Keep = bool | Literal["auto"]
Sources = tuple[tuple[tuple[str, ...], float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedConfig:
    """The run itself and what feeds it; every trainer's config has these fields."""

    run: RunConfig
    crop: Crop = "center"
    weights: tuple[float, ...] = ()  # of each place given as data; empty: all their shards are shuffled together
    cache_gib: float = 0.0  # memory for each process' decoded data, where "auto" decides; 0: half of what is free
    workers: int = 0  # processes that decode streamed pictures; they change nothing in the order
    lanes: int = 0  # virtual workers, see star.data.loader.pipeline.DataConfig; 0: decided, kept by a run that goes on
    per_lane: int = 0  # samples of each virtual worker in its turn, likewise
    log_samples: bool = False  # every key of every batch, see data/loader/sample_log.py

    def check_feed(self) -> None:
        """Raises InputError for numbers that cannot be."""
        if min(self.workers, self.lanes, self.per_lane) < 0 or not (self.cache_gib >= 0 and isfinite(self.cache_gib)):
            raise InputError(
                f"workers, lanes, per_lane and cache_gib are {self.workers}, {self.lanes}, {self.per_lane} and "
                f"{self.cache_gib}, expected no negative numbers: correct them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedFeedConfig(FeedConfig):
    """The same for trainers that can keep decoded pictures."""

    cache: Keep = "auto"  # decoded pictures stay in memory; auto: if an estimate says that they fit


Config = TypeVar("Config", bound=FeedConfig)


class Feed(Generic[Config]):
    """The data of one training."""

    def __init__(
        self,
        config: Config,
        sources: Sources,
        out: str | Path,
        *,
        resume: bool,
        resolution: int,
        keep: str = "cache",
        more_bytes: Callable[[], int] = lambda: 0,
        reader: Reader | None = None,
        buckets: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """sources: shards with weights, see `star.data.shards.splits.training_sources`. keep: the field of the config
        that asks for data in memory. more_bytes: what a sample takes there beside its pixels. reader: see
        `star.data.loader.virtual_workers`. buckets: sizes (H, W) of batches where there are several; such are streamed.

        Raises InputError for numbers that cannot be used.
        """
        config.check_feed()
        self.shards = tuple(shard for shards, _ in sources for shard in shards)
        self.reader, self._keep, self.decision = reader, keep, ""
        self._bytes_each = lambda: 3 * resolution**2 + more_bytes()
        self.settings = DataConfig(
            sources=sources,
            resolution=resolution,
            buckets=buckets,
            crop=config.crop,
            seed=config.run.seed,
            workers=config.workers,
            lanes=config.lanes,
            per_lane=config.per_lane,
        )
        self.config = self._decided(config, _before(Path(out)) if resume else {})
        self.settings = replace(
            self.settings,
            cache=getattr(self.config, keep),
            lanes=self.config.lanes,
            per_lane=self.config.per_lane,
        )

    @property
    def names(self) -> dict[str, list[str]]:
        """What a run's config says of its data."""
        return {"shards": [Path(shard).name for shard in self.shards]}

    def pipeline(self, run: Run) -> Pipeline:
        """The batches of this process; says whether they come from memory, and why."""
        if self.decision:
            run.say(f"data: {self.decision}; --{self._keep}=true or =false decides otherwise")
        return Pipeline(
            self.settings, batch_size=run.micro_batch_size, rank=run.rank, world=run.world, reader=self.reader
        )

    def batches(self, run: Run, pipeline: Pipeline) -> Iterator[Batch]:
        """Endless, from the first one that the run has not learnt from; for a GPU in page-locked memory."""
        batches = pipeline.batches(start=run.first_batch)
        if run.device.type == "cuda":
            batches = (batch.pinned() for batch in batches)
        batches = run.feed(batches)
        return logged(batches, run.out, run.rank, run.first_batch, run.world) if self.config.log_samples else batches

    def _decided(self, config: Config, before: Mapping[str, Any]) -> Config:
        """The config without anything left open: as it was `before`, or else as fits this machine."""
        keep, accelerator = getattr(config, self._keep), Accelerator()
        if keep == "auto" and isinstance(before.get(self._keep), bool):
            keep = before[self._keep]
        elif keep == "auto":
            decision = self._fits(config, accelerator)
            keep, self.decision = decision.keep, decision.reason
        config = replace(config, **{self._keep: keep})
        if keep:
            return config
        world = accelerator.num_processes
        lanes = config.lanes or int(before.get("lanes") or 0)
        per_lane = config.per_lane or int(before.get("per_lane") or 0)
        if not per_lane:
            # Of virtual workers that were given, a step takes as much from each; else a process has its own.
            parts = lanes or world * config.run.accumulate
            per_lane = max(1, config.run.batch_size // parts)
        lanes = lanes or default_lanes(self.settings, self.shards, world)
        return replace(config, lanes=lanes, per_lane=per_lane)

    def _fits(self, config: Config, accelerator: Accelerator) -> Decision:
        """What the main process decides for all: their machines may have more or less to give."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        decided: list[Any] = [None]
        if accelerator.is_main_process:
            decided = [decide(self.shards, self._bytes_each(), limit_gib=config.cache_gib, processes=here)]
        if accelerator.num_processes > 1:
            broadcast_object_list(decided)
        decision: Decision = decided[0]
        return decision


def _before(out: Path) -> Mapping[str, Any]:
    """The config of the run in this folder; empty if there is none."""
    found = snapshots.snapshots(out / CHECKPOINTS)
    config = found[-1].about().get("config") if found else None
    return config if isinstance(config, Mapping) else {}
