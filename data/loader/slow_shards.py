"""Naming the shards that keep training waiting: a slow disk or server costs no sample, but its name should be known."""

import time
from collections.abc import Callable, Iterable, Iterator

from star.data.shards.faults import Fault
from star.data.shards.tar import Group

SLOW = 5.0  # seconds for one sample, or for the headers of one shard


def timed_groups(
    reader: Callable[[str, list[Fault]], Iterable[Group]], shard: str, faults: list[Fault]
) -> Iterator[Group]:
    """The groups of a shard; that one of them had to be waited for is added to `faults`."""
    began = time.monotonic()
    for group in reader(shard, faults):
        report_if_slow(shard, began, faults)
        yield group
        began = time.monotonic()


def report_if_slow(shard: str, began: float, faults: list[Fault]) -> None:
    """Adds a fault if what began at this time (of time.monotonic) took too long."""
    waited = time.monotonic() - began
    if waited > SLOW:
        faults.append(Fault(shard, "slow shard", "", f"{waited:.1f} s for one sample"))
