"""Progress of anything long: a bar with rate and time left on a terminal, a plain line every ten seconds elsewhere.

with Progress(total=1000, unit="images", title="pack") as progress:
    for sample in samples:
        progress.update(1)
        progress.say("a line that does not tear the bar")
"""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

LINE_EVERY = 10.0  # seconds between plain lines where standard error is no terminal
WINDOW = 60.0  # seconds over which the rate is measured: long enough to be calm, short enough to follow a change


class Progress:
    """Counts towards `total` (None: unknown), and shows rate and time left on standard error.

    `rate_unit` names what the rate counts where that differs from the unit of the total: a training run counts steps
    and shows images per second, see `update`.
    """

    def __init__(
        self,
        total: int | None,
        *,
        unit: str = "images",
        rate_unit: str | None = None,
        title: str = "",
        start: int = 0,
        enabled: bool = True,
        bar: bool = True,
    ) -> None:
        self.total, self.unit, self.title, self.enabled = total, unit, title, enabled
        self.rate_unit = rate_unit or unit
        self.count = start
        self.values: Mapping[str, float] = {}
        self._done = 0.0  # what the rate counts, since the start of this process
        now = time.monotonic()
        self._marks: deque[tuple[float, int, float]] = deque([(now, start, 0.0)])  # (time, count, done)
        self._last_line = now
        self._bar = None
        if enabled and bar and sys.stderr.isatty():
            from tqdm import tqdm

            layout = (
                "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}" if total else "{desc}{n_fmt}{postfix}"
            )
            self._bar = tqdm(total=total, initial=start, desc=title or None, bar_format=layout, dynamic_ncols=True)

    def update(self, count: int = 1, *, done: float | None = None, **values: float) -> None:
        """Advances by `count`; `done` is what the rate counts (the count if not given). Values are shown behind."""
        self.count += count
        self._done += count if done is None else done
        if values:
            self.values = values
        now = time.monotonic()
        self._marks.append((now, self.count, self._done))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
            self._marks.popleft()
        if self._bar is not None:
            self._bar.set_postfix_str(self._tail(), refresh=False)
            with self._unless_closed():
                self._bar.update(count)
        elif self.enabled and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self.say(self.line())

    @property
    def rate(self) -> float:
        """Units per second over the last minute; 0 before the first update."""
        return self._per_second(2)

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present rate, None if it is unknown."""
        rate = self._per_second(1)
        if self.total is None or rate <= 0:
            return None
        return max(0, self.total - self.count) / rate

    def line(self) -> str:
        """The present state in one line."""
        total = "" if self.total is None else f"/{self.total} ({100 * self.count / max(1, self.total):.0f} %)"
        title = f"{self.title}: " if self.title else ""
        return f"{title}{self.count}{total} {self.unit}, {self._tail()}"

    def say(self, text: str) -> None:
        """Prints a line to standard error without tearing the bar."""
        if not self.enabled:
            return
        with self._unless_closed():
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            with self._unless_closed():
                self._bar.close()
            self._bar = None

    @contextlib.contextmanager
    def _unless_closed(self) -> Iterator[None]:
        """That nobody can see the progress any more, since a terminal or a pipe was closed, does not end the work."""
        try:
            yield
        except (OSError, ValueError):
            self.enabled, self._bar = False, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _per_second(self, column: int) -> float:
        first, last = self._marks[0], self._marks[-1]
        return (last[column] - first[column]) / (last[0] - first[0]) if last[0] > first[0] else 0.0

    def _tail(self) -> str:
        rate = self.rate
        parts = [f"{rate:.1f} {self.rate_unit}/s" if rate < 100 else f"{rate:.0f} {self.rate_unit}/s"]
        if (left := self.seconds_left) is not None:
            parts.append(f"{clock(left)} left")
        parts += [f"{name} {value:.4g}" for name, value in self.values.items()]
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
