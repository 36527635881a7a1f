"""Finding tar shards and reading the samples in them, whole or by place, with every fault named.

A shard is a tar whose neighbouring members with one stem make one sample: `<key>.webp` and `<key>.json`. Python's
tarfile ends quietly where a tar is cut or damaged between members; here that is a fault too.
"""

import glob
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

import braceexpand
from webdataset.gopen import gopen
from webdataset.tariterators import base_plus_ext

from data.errors import InputError

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff")
SHARD_NAME = re.compile(r"[^.].*\.(tar|tgz|tar\.(gz|bz2|xz))", re.IGNORECASE)
Reason = Literal[
    "cannot be opened",
    "truncated or damaged tar",
    "duplicate key",
    "no picture",
    "broken picture",
    "missing caption",
    "empty caption",
    "broken json",
    "index mismatch",
    "duplicate picture",
]


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


def is_url(spec: str) -> bool:
    return spec.startswith("pipe:") or "://" in spec


def list_shards(specs: Sequence[str]) -> list[str]:
    """Expands directories, globs, brace ranges, URLs and text files of such specs into a list of shards.

    A directory stands for its `*.tar*` files in order of name; a text file holds one spec per line, `#` begins a
    comment, and relative paths in it start from its folder. Order is kept and repeats are dropped. Files of a range or
    list that are not there stay in the result, so that they are missed and counted. Raises InputError for a spec of
    which nothing is there.
    """
    if isinstance(specs, str):
        specs = (specs,)
    shards: dict[str, None] = {}
    for spec in specs:
        found = _expand(spec, depth=0)
        if not any(is_url(shard) or os.path.isfile(shard) for shard in found):
            raise InputError(f"No shards at {spec!r}; give a folder, glob, brace range, URL or list of .tar files.")
        shards.update(dict.fromkeys(found))
    if not shards:
        raise InputError(
            "No shards were given; give at least one folder, glob, brace range, URL or list of .tar files."
        )
    return list(shards)


def _expand(spec: str, depth: int) -> list[str]:
    if spec.startswith("pipe:"):
        return [spec]  # a command's braces belong to its shell
    if is_url(spec):
        return list(braceexpand.braceexpand(spec))
    path = Path(spec).expanduser()
    if path.is_dir():
        return [str(shard) for shard in sorted(path.iterdir()) if names_shard(shard.name) and shard.is_file()]
    if path.is_file():
        if names_shard(path.name):
            return [str(path)]
        return _expand_list(path, depth)
    found: list[str] = []
    for braceless in braceexpand.braceexpand(str(path)):
        if glob.escape(braceless) == braceless or os.path.isfile(braceless):
            found.extend([braceless] if names_shard(braceless) else [])
            continue
        for match in sorted(glob.glob(braceless)):
            if names_shard(match) or os.path.isdir(match):
                found.extend(_expand(match, depth))
    return found


def names_shard(name: str) -> bool:
    return SHARD_NAME.fullmatch(os.path.basename(name)) is not None


def _expand_list(path: Path, depth: int) -> list[str]:
    if depth > 4:
        raise InputError(f"The shard list {path} is nested more than four deep; check that it does not name itself.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is neither a .tar shard nor a readable text list of shards ({error}).") from error
    found: list[str] = []
    for line in lines:
        entry = line.strip() if line.lstrip().startswith("pipe:") else re.split(r"(?:^|\s)#", line)[0].strip()
        if not entry:
            continue
        if not is_url(entry):
            entry = str(path.parent / Path(entry).expanduser())
        matches = _expand(entry, depth + 1)
        if not matches:
            raise InputError(
                f"The shard list {path} names {entry!r}, which matches nothing; correct or remove the line."
            )
        found.extend(matches)
    return found


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
    return gopen(shard) if is_url(shard) else open(shard, "rb")


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
        except ValueError as error:  # bad JSON, or bytes that are not UTF-8
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
