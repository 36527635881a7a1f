"""What the disk refuses, in one sentence: it is full or read-only, or a file is where a folder was due.

    with writing(path):
        ...                       # writes a file or folder, whole or not at all

Libraries wrap what the system says: safetensors in an error of its own, torch.save in one about file positions. The
cause is looked for in the text and in the chain of exceptions.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from star.data.errors import InputError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What else is no defect of ours: the place that was given is wrong, or does not work.
REFUSED = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENXIO,
        errno.EIO,
        errno.ESTALE,
    }
)


def refusal(error: BaseException, place: str | Path, what: str = "could not be written") -> InputError | None:
    """The sentence for an exception that a full disk or a wrong place caused; None for any other."""
    number = _number(error)
    if number is not None and number in REFUSED:
        return InputError(f"{place} {what} ({os.strerror(number)}): choose another place, or permit it")
    cause: BaseException | None = error
    for _ in range(8):  # a full disk is the true cause however far down the chain it is
        if cause is None:
            break
        number = _number(cause)
        if number is not None and number in FULL:
            return InputError(f"{place} could not be written ({os.strerror(number)}): make room")
        cause = cause.__cause__ or cause.__context__
    return None


def _number(error: BaseException) -> int | None:
    """The errno of an exception, from itself or, as libraries in Rust do, in its text."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


@contextlib.contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Turns what the disk refuses while `place` is written into an InputError; other exceptions pass.

    The errors of an `open` inside are taken for those of writing: reading is not to be done in it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refused = refusal(error, place)
        if refused is None and isinstance(error, OSError):
            refused = InputError(f"{place} could not be written ({error.strerror or error}): choose another place")
        if refused is None:
            raise
        raise refused from error


def check_writable(place: str | Path) -> None:
    """Raises InputError if a folder can neither be written nor made; makes nothing.

    For what is found only when minutes were spent. A full disk it cannot see.
    """
    place = Path(place)
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise InputError(
            f"{place} cannot be written ({there} exists and is no folder): choose another place, or remove it"
        ) from OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
        raise InputError(f"{place} cannot be written ({reason}): choose another place, or permit it") from OSError(
            errno.EACCES, reason
        )


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all, and its folder. Raises InputError if the disk refuses."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
