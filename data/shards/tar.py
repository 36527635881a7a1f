"""Reading the samples in tar shards, whole or by place, with every fault named.

A shard is a tar whose neighbouring members with one stem make one sample: `<key>.webp` and `<key>.json`. Whatever reads
a shard, checking, counting or training, walks through it by `archive`, and so meets the same samples.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from star.data.files import open_regular
from star.data.formats import BY_EXTRA, OTHERS, STORED
from star.data.shards.archive import (
    MAGIC_BYTES,
    READ_ERRORS,
    SAMPLE_BYTES,
    Place,
    Source,
    decoder_of,
    place_of,
    read_place,
    readable,
    too_large,
    walk,
)
from star.data.shards.faults import Fault, SampleError
from star.data.shards.remote import is_url, open_stream

IMAGE_EXTENSIONS = (*STORED, *OTHERS, *BY_EXTRA)  # in the order in which a sample with several pictures is read


@dataclass(slots=True)
class Group:
    """The members of one sample by extension (lower case).

    Each is its bytes, its place in a local tar, or the reason why it cannot be had.
    """

    key: str
    members: dict[str, bytes | Place | SampleError]


class _Member(NamedTuple):
    key: str
    extension: str
    name: str
    content: bytes | Place | SampleError
    renamed: bool


def _grouped(shard: str, source: Source, faults: list[Fault], *, read: bool) -> Iterator[Group]:
    """Joins neighbouring members of one stem; a stem that comes back in the same shard is a fault, not a sample."""
    seen: set[bytes] = set()
    group: Group | None = None
    try:
        for key, extension, name, content, renamed in _members(source, read):
            if group is not None and key == group.key:
                if extension in group.members:
                    faults.append(Fault(shard, "duplicate key", key, f"a second {name}"))
                else:
                    group.members[extension] = content
                continue
            if group is not None:
                yield group
                group = None
            digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
            if digest in seen:
                faults.append(Fault(shard, "duplicate key", key, f"{name} comes again later in the shard"))
                continue
            seen.add(digest)
            group = Group(key, {extension: content})
            if renamed:
                faults.append(Fault(shard, "repaired name", key, "its name in the tar is not UTF-8; used as shown"))
    except READ_ERRORS as error:
        last = f" after {group.key}" if group is not None else ""
        faults.append(Fault(shard, "truncated or damaged tar", "", f"{error}{last}"))
    else:
        if not seen:
            faults.append(Fault(shard, "empty shard", "", "no sample in it"))
    if group is not None:
        yield group


def _members(source: Source, read: bool) -> Iterator[_Member]:
    """What belongs to samples, with its bytes (`read`) or places."""
    last, taken = "", 0
    for header in walk(source):
        name = readable(header.name)
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        place = place_of(header)
        if place is None or not stem or not dot:
            continue  # folders' metadata, hidden files and files without an extension are nobody's samples
        key = folder + slash + stem
        content: bytes | Place | SampleError = place
        if isinstance(place, Place):
            taken = place.size + (taken if key == last else 0)
            last = key
            if taken > SAMPLE_BYTES:
                content = too_large(key, taken, SAMPLE_BYTES)
            elif read:
                content = source.content(place)
            else:
                source.check_end(place)
        yield _Member(key, extension.lower(), name, content, name != header.name)


def read_shard(shard: str, faults: list[Fault]) -> Iterator[Group]:
    """Streams a local or remote shard, compressed or not, as groups of bytes; what is wrong is added to `faults`."""
    stream: IO[bytes] | None = None
    try:
        stream = _open(shard)
        source = Source(stream)
    except (OSError, ValueError) as error:
        faults.append(Fault(shard, "cannot be opened", "", str(error)))
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
        return
    finished = False
    try:
        yield from _grouped(shard, source, faults, read=True)
        finished = True
    finally:
        try:
            stream.close()
        except OSError as error:  # a download or command that failed; one we left early may well complain
            if finished:
                faults.append(Fault(shard, "cannot be opened", "", str(error)))


def _open(shard: str) -> IO[bytes]:
    return open_stream(shard) if is_url(shard) else open_regular(shard)


def is_seekable(shard: str) -> bool:
    """Whether members of the shard can be read by place: a local file without compression."""
    if is_url(shard):
        return False
    try:
        with open_regular(shard) as file:
            return decoder_of(file.read(MAGIC_BYTES)) is None
    except (OSError, ValueError):
        return False


def index_shard(shard: str, faults: list[Fault]) -> list[Group]:
    """The groups of a seekable shard as places, found by reading its headers only."""
    try:
        with open_regular(shard) as file:
            return list(_grouped(shard, Source(file), faults, read=False))
    except (OSError, ValueError) as error:
        faults.append(Fault(shard, "cannot be opened", "", str(error)))
        return []


def fetch(shard: str, group: Group) -> Group:
    """The group with its places replaced by bytes. Raises SampleError if they cannot be read."""
    if not any(isinstance(content, Place) for content in group.members.values()):
        return group
    members: dict[str, bytes | Place | SampleError] = {}
    try:
        with open_regular(shard) as file:
            for extension, content in group.members.items():
                members[extension] = read_place(file, content) if isinstance(content, Place) else content
    except OSError as error:
        raise SampleError("cannot be opened", str(error)) from error
    return Group(group.key, members)


def image_bytes(members: Mapping[str, Any]) -> tuple[str, bytes]:
    """Extension and bytes of the sample's picture. Raises SampleError if there is none, or it could not be had."""
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            if isinstance(members[extension], SampleError):
                raise members[extension]
            return extension, members[extension]
    raise SampleError("missing picture", f"only {', '.join(sorted(members))}")
