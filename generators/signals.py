"""Being asked to stop: the first signal is remembered and answered between two steps, the second acts at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """The run was asked to stop, has written a checkpoint and can be continued; carries the usual 128 + signal."""


class StopRequest:
    """A context in which SIGINT and SIGTERM are remembered in `number` (0: none came) instead of ending the process."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number = 0
        self._say = say
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to the main thread only
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number
        self._say("stopping after this step; the same signal again stops at once, without a checkpoint")
