"""A folder that one process at a time writes into: the lock goes with the process, and leaves no file."""

import contextlib
import os
import weakref
from pathlib import Path
from typing import ClassVar

from star.data.errors import InputError

try:
    import fcntl
except ImportError:  # Windows; there nothing is locked
    fcntl = None  # type: ignore[assignment]


class Claim:
    """The right to write into a folder, until this object is gone; the same process gets the same one again."""

    _held: ClassVar["weakref.WeakValueDictionary[Path, Claim]"] = weakref.WeakValueDictionary()

    def __init__(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, folder: Path) -> "Claim | None":
        """None where the file system knows no locks. Raises InputError if another process has the folder."""
        folder = folder.resolve()
        if fcntl is None or (held := cls._held.get(folder)) is not None:
            return None if fcntl is None else held
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise InputError(
                f"another process is writing into {folder}, expected a folder of its own for each: wait for it, or "
                "choose another folder"
            ) from error
        except OSError:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            return None
        cls._held[folder] = claim = cls(descriptor)
        return claim
