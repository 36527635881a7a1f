"""How fast a run goes and what holds it up: shares of the time that waits for data, of the peak that is used."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from star.data.loader.stall_monitor import StallMonitor

Item = TypeVar("Item")


class Throughput:
    """Clocks of one process, read at every log line; nothing of it belongs to the state of a run."""

    def __init__(self, peak_tflops: float = 0.0, world: int = 1, ceiling: Callable[[], float] | None = None) -> None:
        """peak_tflops: what one device can do by its data sheet, 10^12 operations per second; 0: not stated. ceiling:
        measures it then, in operations per second, when it is first needed."""
        self.peak, self._world, self._ceiling = peak_tflops * 1e12 * world, world, ceiling
        self.flops_per_image = 0.0  # of training: forward and backward; 0: not counted
        self._stalls = StallMonitor()
        self._waited = self._began = self._line_waited = 0.0
        self._line_began = time.monotonic()

    def feed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; the time until each is there counts as waiting."""
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.monotonic() - began
            yield batch

    def begin(self) -> None:
        """A step begins."""
        self._began, self._waited = time.monotonic(), 0.0

    def end(self) -> str | None:
        """A step ended; returns a line to say where data starve the device (star.data.loader.stall_monitor)."""
        self._line_waited += self._waited
        return self._stalls.step(self._waited, time.monotonic() - self._began)

    def line(self, images_per_second: float) -> dict[str, float]:
        """data_wait, a share of the time since the last line; where the work of a picture is counted tflops, 10^12
        operations per second of all devices, and utilisation (MFU), a share of the peak that was stated or measured."""
        now = time.monotonic()
        if self.flops_per_image and not self.peak and self._ceiling is not None:
            self.peak = self._ceiling() * self._world
        found = {"data_wait": round(self._line_waited / max(now - self._line_began, 1e-9), 4)}
        if self.flops_per_image:
            found["tflops"] = float(f"{self.flops_per_image * images_per_second / 1e12:.4g}")
        if self.peak and self.flops_per_image:
            found["utilisation"] = round(self.flops_per_image * images_per_second / self.peak, 4)
        self._line_began, self._line_waited = now, 0.0
        return found
