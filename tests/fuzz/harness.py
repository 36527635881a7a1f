"""Feeds broken files to a reader, each in a child process with bounded memory and time, and tells what went wrong.

    failures = run([("bomb.tar", data)], read_tar)

A reader may return, or raise what is allowed. Anything else that it raises, a crash of the interpreter, taking longer
or more memory than allowed is a `Failure`. The reader runs in a forked process: what the parent has imported is there.
"""

import faulthandler
import multiprocessing
import os
import resource
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from star.data.errors import InputError

Reader = Callable[[Path], object]
START = 120.0  # seconds that a child may take to start
PATIENCE = 3


@dataclass(frozen=True)
class Failure:
    """One file that a reader did not take as it should."""

    name: str
    reason: str  # the exception, "hangs", "crashes" or "takes ... GiB"
    detail: str  # the traceback, if there is one
    data: bytes

    def __str__(self) -> str:
        return f"{self.name} ({len(self.data)} bytes): {self.reason}\n{self.detail}"


def run(
    cases: Iterable[tuple[str, bytes]],
    reader: Reader,
    allowed: tuple[type[BaseException], ...] = (InputError,),
    seconds: float = 10,
    memory_gib: float = 2,
) -> list[Failure]:
    """The failures among cases (file name, content); each file lies alone in a folder of its own while it is read."""
    failures = []
    child: _Child | None = None
    try:
        for name, data in cases:
            child = child or _Child(reader, allowed, memory_gib)
            told = child.read(name, data, seconds)
            if told is None:
                continue
            failures.append(Failure(name, *told, data))
            child.close()  # whatever state it is in, the next case gets a fresh one
            child = None
    finally:
        if child is not None:
            child.close()
    return failures


class _Child:
    def __init__(self, reader: Reader, allowed: tuple[type[BaseException], ...], memory_gib: float) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process: ForkProcess = context.Process(
            target=_serve, args=(theirs, reader, allowed, memory_gib), daemon=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside torch's sleeping threads
            self.process.start()
        theirs.close()
        if not self.pipe.poll(START) or self.pipe.recv() != "ready":
            raise RuntimeError("the reading process did not start")

    def read(self, name: str, data: bytes, seconds: float) -> tuple[str, str] | None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self.pipe.send(path)
            try:
                if not self._answers(seconds):
                    return f"hangs for more than {seconds:g} s", ""
                told: tuple[str, str] | None = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                self.process.join(5)
                return f"crashes the interpreter (exit code {self.process.exitcode})", ""
        return told

    def _answers(self, seconds: float) -> bool:
        """Within so many seconds of its own; where other processes leave it less, within three times as many."""
        began = self._computed()
        return any(
            self.pipe.poll(seconds) or self._computed() - began > 0.9 * seconds for _ in range(PATIENCE)
        ) and self.pipe.poll(0)

    def _computed(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, reader: Reader, allowed: tuple[type[BaseException], ...], memory_gib: float) -> None:
    most = int(memory_gib * 2**30)
    limit = _status("VmSize") + most + 2**29  # address space is not all memory: what is measured below decides
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # a crash is told by the parent
    pipe.send("ready")
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, told = _status("VmRSS"), None
        try:
            reader(path)
        except allowed:
            pass
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"[:1000], traceback.format_exc()[-6000:]
        taken = _status("VmHWM") - before
        if taken > most:
            told = f"takes {taken / 2**30:.1f} GiB", ""
        pipe.send(told)


def _status(name: str) -> int:
    """Bytes that the kernel tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status tells no {name}")
