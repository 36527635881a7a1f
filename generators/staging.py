"""Folders that appear whole or not at all: written beside their place and renamed."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from star.data.disk import refusal, writing
from star.data.errors import InputError


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder to write into; it takes the place of `path` when the block ends without an error, and else is removed.

    Raises InputError if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise refusal(error, path, "cannot be written") or InputError(
            f"{path} cannot be written ({error.strerror}): choose another folder"
        ) from error
    try:
        with writing(path):
            staging.chmod(0o755)
            yield staging
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
                path.rename(old / path.name)
                staging.rename(path)
                shutil.rmtree(old)
            else:
                staging.rename(path)
    except InputError as error:  # of a folder inside; nobody knows it by the name it has here
        raise InputError(str(error).replace(str(staging), str(path))) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
