"""Being asked to stop: by Ctrl-C, by SIGTERM as batch systems and containers do, by SIGHUP when a terminal is closed.

All three mean the same. Any command ends with KeyboardInterrupt, so that what cleans up after Ctrl-C cleans up after
all of them (`interruptible`); in a training the first signal is remembered and answered between two steps, the second
acts at once (`StopRequest`). A signal that is ignored, as SIGHUP is under nohup, stays ignored.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows knows no SIGHUP


class Stopped(SystemExit):
    """The run was asked to stop, has written a checkpoint and can be continued; carries the usual 128 + signal."""


class Interrupted(KeyboardInterrupt):
    """A signal other than Ctrl-C's asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def told(error: KeyboardInterrupt) -> tuple[str, int]:
    """What to say of an interruption, and the usual exit code, 128 + signal."""
    if isinstance(error, Interrupted):
        return f"stopped by {signal.Signals(error.number).name}", 128 + error.number
    return "interrupted", 128 + signal.SIGINT


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise Interrupted in the main thread, as Ctrl-C raises KeyboardInterrupt."""
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a fork of it has nothing of its own to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Interrupted(number)

    with _handled(tuple(number for number in SIGNALS if number != signal.SIGINT), interrupt):
        yield


class StopRequest:
    """A context in which a signal is remembered in `number` (0: none came) instead of ending the process."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number = 0
        self._say = say
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_handled(SIGNALS, self._remember))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number
        self._say("stopping after this step; the same signal again stops at once, without a checkpoint")


@contextlib.contextmanager
def _handled(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handles signals so, and afterwards as before; those that are ignored stay ignored."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python hands signals to the main thread only
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
