"""Reading the samples in tar shards, whole or by place, with every fault named.

A shard is a tar whose neighbouring members with one stem make one sample: `<key>.webp` and `<key>.json`. Python's
tarfile ends quietly where a tar is cut or damaged between members; here that is a fault too.
"""

import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from lzma import LZMAError
from typing import IO, Any, Literal, NamedTuple, Self

from webdataset.tariterators import base_plus_ext

from data.remote import is_url, open_stream

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff")
Reason = Literal[
    "cannot be opened",
    "truncated or damaged tar",
    "empty shard",
    "duplicate key",
    "no picture",
    "broken picture",
    "missing caption",
    "empty caption",
    "broken json",
    "index mismatch",
    "duplicate picture",
    "slow shard",
    "broken encoding",
    "broken row",
    "broken text",
    "mended text",
    "unread format",
    "not a picture",
    "met before",
    "one caption for several",
    "several rows in a cell",
    "joined lines",
    "first frame only",
    "damaged EXIF",
    "colour profile not applied",
]
NOTES: tuple[Reason, ...] = (  # worth knowing, but they cost no sample
    "duplicate picture",
    "slow shard",
    "mended text",
    "not a picture",
    "met before",
    "one caption for several",
    "several rows in a cell",
    "joined lines",
    "first frame only",
    "damaged EXIF",
    "colour profile not applied",
)


class Fault(NamedTuple):
    """One thing wrong with one sample (`key`) or with a whole shard (`key` empty)."""

    shard: str
    reason: Reason
    key: str
    detail: str


class SampleError(Exception):
    """A sample that cannot be used, with the reason under which it is counted."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


class Place(NamedTuple):
    """Where a member's bytes lie in an uncompressed tar."""

    offset: int
    size: int


@dataclass(slots=True)
class Group:
    """The members of one sample by extension (lower case): their bytes, or their places in a local tar."""

    key: str
    members: dict[str, bytes | Place]


class _Header(tarfile.TarInfo):
    """A tar header that leaves a note on the archive about how it ended; tarfile itself would not tell."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.ending = error  # type: ignore[attr-defined]
            raise


READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError, UnicodeError)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # or the archive would remember every header it passed
        if member.isreg():
            yield member
    ending = getattr(tar, "ending", None)
    if not isinstance(ending, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
        raise tarfile.ReadError(f"no end-of-archive mark ({ending})")


def _grouped(shard: str, members: Iterable[tuple[str, bytes | Place]], faults: list[Fault]) -> Iterator[Group]:
    """Joins neighbouring members of one stem; a stem that comes back in the same shard is a fault, not a sample."""
    seen: set[str] = set()
    group: Group | None = None
    try:
        for name, content in members:
            key, extension = base_plus_ext(name)
            if key is None or os.path.basename(name).startswith("."):
                continue  # folders' metadata and files without an extension are nobody's samples
            extension = extension.lower()
            if group is not None and key == group.key:
                if extension in group.members:
                    faults.append(Fault(shard, "duplicate key", key, f"a second {name}"))
                else:
                    group.members[extension] = content
                continue
            if group is not None:
                yield group
                group = None
            if key in seen:
                faults.append(Fault(shard, "duplicate key", key, f"{name} comes again later in the shard"))
                continue
            seen.add(key)
            group = Group(key, {extension: content})
    except READ_ERRORS as error:
        last = f" after {group.key}" if group is not None else ""
        faults.append(Fault(shard, "truncated or damaged tar", "", f"{error}{last}"))
    else:
        if not seen:
            faults.append(Fault(shard, "empty shard", "", "no sample in it"))
    if group is not None:
        yield group


def read_shard(shard: str, faults: list[Fault]) -> Iterator[Group]:
    """Streams a local or remote shard, compressed or not, as groups of bytes; what is wrong is added to `faults`."""
    try:
        stream = _open(shard)
    except (OSError, ValueError) as error:
        faults.append(Fault(shard, "cannot be opened", "", str(error)))
        return
    finished = False
    try:
        yield from _grouped(shard, _streamed(stream), faults)
        finished = True
    finally:
        try:
            stream.close()
        except OSError as error:  # a download or command that failed; one we left early may well complain
            if finished:
                faults.append(Fault(shard, "cannot be opened", "", str(error)))


def _open(shard: str) -> IO[bytes]:
    return open_stream(shard) if is_url(shard) else open(shard, "rb")


def _streamed(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:
        for member in _members(tar):
            content = tar.extractfile(member)
            assert content is not None  # a regular file has content
            data = content.read()
            if len(data) != member.size:
                raise tarfile.ReadError(f"{member.name} holds {len(data)} of {member.size} bytes")
            yield member.name, data


def is_seekable(shard: str) -> bool:
    """Whether members of the shard can be read by place: a local tar without compression."""
    if is_url(shard):
        return False
    try:
        with open(shard, "rb") as file:
            return file.read(512)[257:262] == b"ustar"
    except OSError:
        return False


def index_shard(shard: str, faults: list[Fault]) -> list[Group]:
    """The groups of a seekable shard as places, found by reading its headers only."""
    try:
        with open(shard, "rb") as file:
            return list(_grouped(shard, _placed(file), faults))
    except OSError as error:
        faults.append(Fault(shard, "cannot be opened", "", str(error)))
        return []


def _placed(file: IO[bytes]) -> Iterator[tuple[str, Place]]:
    length = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
        for member in _members(tar):
            if member.offset_data + member.size > length:
                raise tarfile.ReadError(
                    f"{member.name} ends {member.offset_data + member.size - length} bytes too early"
                )
            yield member.name, Place(member.offset_data, member.size)


def fetch(shard: str, group: Group) -> Group:
    """The group with its places replaced by bytes. Raises SampleError if they cannot be read."""
    if all(isinstance(content, bytes) for content in group.members.values()):
        return group
    members: dict[str, bytes | Place] = {}
    try:
        with open(shard, "rb") as file:
            for extension, content in group.members.items():
                if isinstance(content, Place):
                    file.seek(content.offset)
                    data = file.read(content.size)
                    if len(data) != content.size:
                        raise SampleError(
                            "truncated or damaged tar", f"{extension}: {len(data)} bytes of {content.size}"
                        )
                    content = data
                members[extension] = content
    except OSError as error:
        raise SampleError("cannot be opened", str(error)) from error
    return Group(group.key, members)


def image_bytes(members: Mapping[str, Any]) -> tuple[str, bytes]:
    """Extension and bytes of the sample's picture. Raises SampleError if there is none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            return extension, members[extension]
    raise SampleError("no picture", f"only {', '.join(sorted(members))}")


def captions_of(members: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Captions, the main one first, and the whole record of a sample.

    Read from `.json` (`caption`, `captions`), or from `.txt` as one caption. Raises SampleError if none is there.
    """
    info: dict[str, Any] = {}
    found: list[Any] = []
    if "json" in members:
        try:
            info = json.loads(members["json"])
        except (ValueError, RecursionError) as error:  # bad JSON, bytes that are not UTF-8, nested too deep
            raise SampleError("broken json", str(error)) from error
        if not isinstance(info, dict):
            raise SampleError("broken json", f"a {type(info).__name__}, expected an object")
        several = info.get("captions")
        found = [info.get("caption"), *(several if isinstance(several, list) else [several])]
    if "txt" in members:
        try:
            found.append(members["txt"].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise SampleError("missing caption", f"its .txt is not UTF-8: {error}") from error
    texts = [text.strip() for text in found if isinstance(text, str)]
    if not texts:
        raise SampleError("missing caption", f"only {', '.join(sorted(members))}")
    captions = tuple(dict.fromkeys(text for text in texts if text))
    if not captions:
        raise SampleError("empty caption", "every caption is blank")
    return captions, info
