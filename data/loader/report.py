"""What the pipeline could not use: counted by shard and reason, the first ones named, logged at a falling rate."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable

from star.data.shards.faults import NOTES, REPAIRED, Fault

logger = logging.getLogger(__name__)

NAMED = 100
LOGGED_SINGLY = 5
DETAIL = 500  # characters


class SkipReport:
    """Distinct faults met so far. `counts[shard][reason]` is a number, `named` holds the first hundred faults.

    A fault met again in a later epoch, or by a second worker, counts once. The log gets the first five of each reason,
    and after that one line whenever their number has doubled.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.reasons: Counter[str] = Counter()
        self.named: list[Fault] = []
        self._known: set[bytes] = set()

    @property
    def total(self) -> int:
        """Faults that cost something; a slow shard or a repaired name is listed, but nothing of it is lost."""
        return self.reasons.total() - sum(self.reasons[free] for free in (*NOTES, *REPAIRED))

    def add(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            identity = "\0".join((fault.shard, fault.reason, fault.key)).encode("utf-8", "backslashreplace")
            digest = hashlib.blake2b(identity, digest_size=8).digest()
            if digest in self._known:
                continue
            self._known.add(digest)
            self.counts.setdefault(fault.shard, Counter())[fault.reason] += 1
            self.reasons[fault.reason] += 1
            if len(self.named) < NAMED:
                self.named.append(fault)
            number = self.reasons[fault.reason]
            what = "noticed" if fault.reason in NOTES else "repaired" if fault.reason in REPAIRED else "skipped"
            if number <= LOGGED_SINGLY:
                logger.warning("%s %s", what, describe(fault))
            elif number.bit_count() == 1:
                logger.warning("%s %s; %d for this reason so far", what, describe(fault), number)

    def text(self) -> str:
        """One line per shard and reason, then the first names; "nothing was skipped" if so."""
        lines = [f"{self.total} skipped" if self.total else "nothing was skipped"]
        if not self.named:
            return lines[0]
        for shard, reasons in sorted(self.counts.items()):
            lines.extend(f"  {printable(shard)}: {number} x {reason}" for reason, number in sorted(reasons.items()))
        lines.append("first ones:")
        lines.extend(f"  {describe(fault)}" for fault in self.named)
        return "\n".join(lines)


def describe(fault: Fault) -> str:
    """One line of printable text, whatever the names in a shard are."""
    place = f"{fault.key} in {fault.shard}" if fault.key else fault.shard
    detail = fault.detail if len(fault.detail) <= DETAIL else f"{fault.detail[:DETAIL]}..."
    return printable(f"{place}: {fault.reason} ({detail})")


def printable(text: str) -> str:
    """The text with line breaks, control characters and halves of surrogate pairs spelt out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
