"""Where the bytes of a shard come from that is no local file: http(s), an object store, or the output of a command.

    open_stream("https://host/a.tar")            # resumed where it broke off, if the connection fails or stalls
    open_stream("s3://bucket/a.tar")             # whatever fsspec knows; most drivers are packages of their own
    open_stream("pipe:zstd -dc /data/a.tar.zst") # what the command writes

A broken connection is a matter of seconds and costs nothing; what stays broken is an OSError.

HTTP goes by urllib: fsspec's own needs aiohttp, reads in separate requests of a block each, and cannot seek where a
server has no ranges; a shard is read once from front to back.
"""

import io
import re
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import Request, urlopen

import fsspec  # type: ignore[import-untyped]
from webdataset.gopen import gopen

from star.data.errors import InputError
from star.data.files import parse_json, read_all

TIMEOUT = 60.0  # seconds without a single byte
ATTEMPTS = 5  # in a row, without a byte between them
FIRST_DELAY = 0.5  # seconds before the second attempt; each further one waits twice as long
BUFFER = 1 << 20  # bytes
LASTING = frozenset({400, 401, 403, 404, 405, 410, 416})  # answers that another attempt will not change
PLAIN_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]+")  # no folder, scheme, chain or command
# The packages of the stores that people use; fsspec knows the rest.
DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "sftp": "paramiko",
}


class Opened(NamedTuple):
    """A stream that stands at the byte asked for, and the size of the whole (None: unknown)."""

    file: Any
    size: int | None


def is_url(spec: str) -> bool:
    """Whether a spec is something else than a local path."""
    return spec.startswith("pipe:") or "://" in spec


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def open_stream(url: str) -> IO[bytes]:
    """The bytes behind a URL, to be read once from the front. Raises OSError if they cannot be had."""
    if url.startswith("pipe:"):
        return gopen(url)
    return io.BufferedReader(RetryingStream(lambda at: (_http if is_http(url) else _stored)(url, at)), BUFFER)


def read_json(url: str) -> Any:
    """A JSON file of at most 32 MiB. Raises OSError if it cannot be had, ValueError if it is no JSON, or larger."""
    with open_stream(url) as stream:
        return parse_json(read_all(stream))


def base_name(url: str) -> str:
    """The name of a shard as the index beside it has it."""
    name = url.rpartition("/")[2]
    return unquote(urlsplit(url).path.rpartition("/")[2]) if is_http(url) else name


def check_driver(url: str) -> None:
    """Raises InputError if no file system, or no installed one, serves this URL."""
    if url.startswith("pipe:") or is_http(url):
        return
    for scheme in url.partition("://")[0].split("::"):  # a chain such as simplecache::s3
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            package = DRIVERS.get(scheme)
            what = f"run `pip install {package}`" if package else f"install its driver ({error})"
            raise InputError(
                f"{url} needs {package or 'a driver'}, which is not installed: {what}, or copy the shards here."
            ) from error
        except ValueError as error:
            raise InputError(
                f"{url} begins with {scheme!r}, which is no known kind of address: give a path, http(s)://, s3://, "
                "gs://, another scheme of fsspec, or pipe:COMMAND."
            ) from error


def find(url: str, is_shard: Callable[[str], bool]) -> list[str]:
    """The shards a URL stands for: itself, or what a folder or pattern on a store holds, in order of name.

    A folder on a web server (its address ends in "/") is read from the index.json in it. A listing is written by
    somebody else: names in it that would lead out of the folder, to another kind of address or to a command are
    refused. Raises InputError for these, and if a folder cannot be listed.
    """
    check_driver(url)
    if url.startswith("pipe:"):
        return [url]
    try:
        if is_http(url):
            if not urlsplit(url).path.endswith("/"):
                return [url]
            return _from_index(url, is_shard)
        if is_shard(url) and not any(letter in url for letter in "*?["):
            return [url]
        chain, _, last = url.rpartition("::")
        system, path = fsspec.core.url_to_fs(last)
        pattern = path if any(letter in path for letter in "*?[") else f"{path.rstrip('/')}/*"
        found = sorted(str(match) for match in system.glob(pattern))
    except InputError:
        raise
    except Exception as error:  # a driver raises whatever its store provokes
        raise InputError(
            f"{url} cannot be listed ({_reason(error)}): check the address, or name the shards one by one."
        ) from error
    prefix = f"{chain}::" if chain else ""
    shards = [match for match in found if is_shard(match)]
    for match in shards:
        if "::" in match:
            raise InputError(f"{url} holds {match!r}, whose name would be taken for a chain of addresses; rename it.")
    return [prefix + system.unstrip_protocol(match) for match in shards]


def _from_index(url: str, is_shard: Callable[[str], bool]) -> list[str]:
    """The shards that the index.json of a folder on a web server names, all of them in that folder."""
    index = read_json(urljoin(url, "index.json"))
    names = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(names, dict | list):
        raise ValueError("its index.json has no shards")
    for name in names:
        if not isinstance(name, str) or PLAIN_NAME.fullmatch(name) is None or not is_shard(name):
            raise InputError(
                f"{urljoin(url, 'index.json')} names {str(name)[:200]!r}, expected names of .tar files in its own "
                "folder; correct the index, or name the shards one by one."
            )
    return [urljoin(url, quote(name)) for name in sorted(names)]


class RetryingStream(io.RawIOBase):
    """A stream that is opened again where it broke off, a few times, before it gives up with an OSError."""

    def __init__(self, connect: Callable[[int], Opened]) -> None:
        """connect: opens the stream at a given byte."""
        self._connect, self._at, self._failures = connect, 0, 0
        self._opened: Opened | None = None
        while self._opened is None:  # at once, so that a missing file is an error before the first byte is asked for
            self._try_to_open()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._opened is None:
                self._try_to_open()
                continue
            file, size = self._opened
            try:
                data = file.read(len(buffer))
                if not data and size is not None and self._at < size:
                    raise ConnectionError(f"the connection closed after {self._at} of {size} bytes")
            except Exception as error:
                self._failed(error)
                continue
            buffer[: len(data)] = data
            self._at += len(data)
            self._failures = 0
            return len(data)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.file.close()
            self._opened = None
        super().close()

    def _try_to_open(self) -> None:
        try:
            self._opened = self._connect(self._at)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Waits for the next attempt. Raises OSError, whatever the driver raised, if there is to be none."""
        if self._opened is not None:
            self._opened.file.close()
            self._opened = None
        self._failures += 1
        lasting = isinstance(error, FileNotFoundError | PermissionError) or (
            isinstance(error, HTTPError) and error.code in LASTING
        )
        if lasting or self._failures >= ATTEMPTS:
            raise OSError(_reason(error)) from error
        time.sleep(FIRST_DELAY * 2 ** (self._failures - 1))


def _http(url: str, at: int) -> Opened:
    headers = {"User-Agent": "star-t2i"} | ({"Range": f"bytes={at}-"} if at else {})
    answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    length = answer.headers.get("Content-Length")
    if at and answer.status != 206:  # a server without ranges begins anew
        passed = 0
        while passed < at:
            data = answer.read(min(BUFFER, at - passed))
            if not data:
                raise HTTPException(f"the file now ends after {passed} bytes, {at} had been read")
            passed += len(data)
        return Opened(answer, None if length is None else int(length))
    return Opened(answer, None if length is None else int(length) + at)


def _stored(url: str, at: int) -> Opened:
    system, path = fsspec.core.url_to_fs(url)
    file = system.open(path, "rb")
    file.seek(at)
    return Opened(file, getattr(file, "size", None))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0].rstrip(".")
