"""Noticing that the device waits for data: as a share of the last steps, reported once whenever it becomes high.

watch = StallMonitor()
for step in run.steps():
    began = time.monotonic()
    batch = next(batches)
    waited = time.monotonic() - began
    ...
    if line := watch.step(waited, time.monotonic() - began):
        run.say(line)
"""

from collections import deque

from star.data.errors import InputError


class StallMonitor:
    """Keeps the seconds of the last steps."""

    def __init__(self, *, share: float = 0.25, steps: int = 50) -> None:
        """share: of the time of so many steps that may go to waiting. Raises InputError for impossible values."""
        if not 0 < share < 1 or steps < 1:
            raise InputError(
                f"A share of {share} of {steps} steps cannot be watched; give a share in (0, 1), 1 or more steps."
            )
        self.share = share
        self._last: deque[tuple[float, float]] = deque(maxlen=steps)
        self._begun = False  # the first step waits for workers to start, which says nothing of the others
        self._reported = False

    @property
    def waiting(self) -> float:
        """The share of the kept steps that was spent waiting, 0 before the second step."""
        total = sum(took for _, took in self._last)
        return sum(waited for waited, _ in self._last) / total if total > 0 else 0.0

    def step(self, waited: float, took: float) -> str | None:
        """Takes the seconds that a step waited for its batches, and all its seconds, these included.

        Returns a line when waiting has come to exceed its share of a full count of steps; the next one only after it
        was below again.
        """
        if not self._begun:
            self._begun = True
            return None
        self._last.append((waited, took))
        if len(self._last) < (self._last.maxlen or 0):
            return None
        high = self.waiting > self.share
        line = None
        if high and not self._reported:
            line = (
                f"the device waits for data: {100 * self.waiting:.0f} % of the last {len(self._last)} steps was "
                "waiting for pictures; more workers, or `star data encode`, may help"
            )
        self._reported = high
        return line
