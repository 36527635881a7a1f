"""How fast pictures come out of the pipeline, by number of worker processes, with nobody using them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from star.data.loader.pipeline import Batch, DataConfig, Pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSpeed:
    """Pictures per second once the stream flows, and the seconds until its first batch, workers' start included."""

    workers: int
    per_second: float
    first_batch: float


def loader_speeds(
    config: DataConfig, batch_size: int, workers: Sequence[int], *, seconds: float = 5.0
) -> Iterator[LoaderSpeed]:
    """Measures one number of workers after the other, for so many seconds each and at least one batch."""
    for number in workers:
        batches = Pipeline(replace(config, workers=number), batch_size=batch_size).batches()
        began = time.monotonic()
        next(batches)
        first_batch = time.monotonic() - began
        pictures, elapsed = flow(batches, seconds)
        yield LoaderSpeed(workers=number, per_second=pictures / elapsed, first_batch=first_batch)


def flow(batches: Iterator[Batch], seconds: float) -> tuple[int, float]:
    """Takes batches for so long; pictures, and the seconds they took."""
    began, pictures = time.monotonic(), 0
    while True:
        pictures += len(next(batches))
        if (elapsed := time.monotonic() - began) >= seconds:
            return pictures, elapsed


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
