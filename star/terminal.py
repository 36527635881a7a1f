"""What the command line owes to the world around it: text in any locale, and an end without noise when nobody reads."""

import contextlib
import io
import locale
import os
import select
import sys
from typing import TextIO

from star.data.errors import InputError

BROKEN_PIPE = 141  # as a shell tells of a program that SIGPIPE has ended


def use_utf8() -> None:
    """Begins the program again in Python's UTF-8 mode where the locale is of another encoding.

    Prompts, captions and file names are UTF-8 wherever they come from; without it a prompt given under another locale
    is another prompt, and libraries read their own files in the wrong encoding. Returns where there is nothing to do.
    """
    if sys.flags.utf8_mode or locale.getencoding().lower().replace("-", "") == "utf8" or not sys.executable:
        return
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def as_text(argument: str) -> str:
    """An argument as text; one that is no UTF-8 is read as the locale has it. Raises InputError if it is no text."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode(locale.getencoding())
        except (UnicodeError, LookupError) as error:
            raise InputError(f"{argument[:60]!a} is no text in UTF-8, expected some: type it anew") from error
    return argument


def tolerate_any_text() -> None:
    """Characters that a stream cannot show are written as escapes, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Hands on what was printed now, while its failure can still be told; Python would do it when nobody can."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def nobody_reads() -> bool:
    """Whether standard output or standard error is a pipe whose other end was closed."""
    return any(_closed_at_other_end(stream) for stream in (sys.stdout, sys.stderr))


def silence(*streams: TextIO | None) -> None:
    """Sends what is left of outputs nowhere, so that Python's last flush has nothing to complain about."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _closed_at_other_end(stream: TextIO | None) -> bool:
    if stream is None or not hasattr(select, "poll"):
        return stream is not None
    try:
        watched = select.poll()
        watched.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in watched.poll(0))
    except (OSError, ValueError):
        return False
