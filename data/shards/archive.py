"""Walking through a tar, compressed or not, so that every reader sees the same members and none takes without bound.

Headers are parsed by Python's tarfile; what it would pass over in silence is an error here: an archive that is cut or
damaged between members, other data behind its end. Archives laid one behind the other, and compressed streams laid one
behind the other, are read on. What an archive says of a size is believed only after it was compared with the bounds.
"""

import bz2
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, Self

from star.data.shards.faults import SampleError

MEMBER_BYTES = int(os.environ.get("STAR_MEMBER_MIB", "64")) << 20  # of one file in a shard
SAMPLE_BYTES = 4 * MEMBER_BYTES  # of all files of one sample
HEADER_BYTES = 32 << 10  # of all headers of one member: long names, extended attributes, the map of a sparse file
MEMBERS = 10_000_000  # of one shard
PASSED_BYTES = 1 << 28  # of a compressed shard, decompressed only to be passed over
LZMA_BYTES = 256 << 20  # memory of a decompressor; `xz -9` asks for 65 MiB
CHUNK = 128 << 10
ZEROS = bytes(CHUNK)
BLOCK = tarfile.BLOCKSIZE
READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
DIGITS = re.compile(rb"\d{1000}")  # tarfile's search for numbers takes the square of their length
METADATA = (tarfile.DIRTYPE, b"V", b"D")  # folders, and what GNU tar notes of volumes and folders
DECODERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b\x08": lambda: zlib.decompressobj(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(memlimit=LZMA_BYTES),
}
MAGIC_BYTES = max(map(len, DECODERS))


class Place(NamedTuple):
    """Where a member's bytes lie in an uncompressed tar; `parts` are (offset, length) in a sparse member's content."""

    offset: int
    size: int
    parts: tuple[tuple[int, int], ...] | None = None

    @property
    def stored(self) -> int:
        """Bytes that the tar holds of it."""
        return self.size if self.parts is None else sum(length for _, length in self.parts)


class _Header(tarfile.TarInfo):
    """A tar header that leaves a note on the archive about how it ended; tarfile itself would not tell."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.ending = error  # type: ignore[attr-defined]
            raise


class Source:
    """An uncompressed view of an archive, read forward. While there is a `budget`, no more than that is read."""

    def __init__(self, file: IO[bytes]) -> None:
        """file: local and seekable, or a stream at its beginning; closed by whoever opened it."""
        head = file.read(MAGIC_BYTES)
        self.length: int | None = None
        self.budget: int | None = None
        self._position, self._passed, self._ahead = 0, 0, head
        decoder = decoder_of(head)
        if decoder is not None:
            self._file: IO[bytes] = io.BufferedReader(_Decompressed(file, head, decoder), 2 * CHUNK)
            self._ahead = b""
        else:
            self._file = file
            if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO) and file.seekable():
                self.length = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        """So many bytes, less only at the end."""
        if self.budget is not None:
            if size > self.budget:
                raise tarfile.ReadError(f"a header of more than {HEADER_BYTES >> 10} KiB")
            self.budget -= size
        data = self._ahead[:size]
        self._ahead = self._ahead[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self._position += len(data)
        if self.budget is not None and DIGITS.search(data):
            raise tarfile.ReadError("a number of more than 1000 digits in a header")
        return data

    def unread(self, data: bytes) -> None:
        """Puts back what was read last."""
        self._ahead = data + self._ahead
        self._position -= len(data)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Goes forward."""
        if position < self._position:
            raise tarfile.ReadError("a member that ends before it begins")
        if self.length is not None:
            self._file.seek(position)
            self._position, self._ahead = position, b""
            return
        while self._position < position and (data := self._pass(min(CHUNK, position - self._position))):
            self._passed += len(data)
            if self._passed > PASSED_BYTES:
                raise tarfile.ReadError(f"more than {PASSED_BYTES >> 20} MiB that belong to no usable sample")

    def pass_zeros(self) -> bool:
        """Goes to the next block that is not all zero; False where there is none."""
        while data := self._pass(CHUNK):
            self._passed += len(data)
            if self._passed > PASSED_BYTES and self.length is None:
                raise tarfile.ReadError(f"more than {PASSED_BYTES >> 20} MiB of nothing")
            if data != ZEROS[: len(data)]:
                first = len(data) - len(data.lstrip(b"\0"))
                self.unread(data[first - first % BLOCK :])
                return True
        return False

    def content(self, place: Place) -> bytes:
        """A member's bytes, holes filled with zeros. Raises tarfile.ReadError if they are not all there."""
        self.seek(place.offset)
        data = self.read(place.stored)
        if len(data) != place.stored:
            raise tarfile.ReadError(f"{len(data)} of {place.stored} bytes")
        return _laid_out(data, place)

    def check_end(self, place: Place) -> None:
        """Raises tarfile.ReadError if the file ends before the member does."""
        if self.length is not None and place.offset + place.stored > self.length:
            raise tarfile.ReadError(f"a member ends {place.offset + place.stored - self.length} bytes too early")

    def _pass(self, size: int) -> bytes:
        budget, self.budget = self.budget, None
        try:
            return self.read(size)
        finally:
            self.budget = budget


class _Decompressed(io.RawIOBase):
    """What compressed streams, one behind the other, hold. Raises OSError where other data follow them."""

    def __init__(self, file: IO[bytes], head: bytes, new: Callable[[], Any]) -> None:
        self._file, self._left, self._new = file, head, new
        self._decoder: Any = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decoder.eof and not self._begin_next():
                return 0
            data = self._decoder.decompress(self._left, len(buffer))
            self._left = self._decoder.unused_data if self._decoder.eof else self._tail()
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not self._decoder.eof:
                more = self._file.read(CHUNK)
                if not more:
                    raise EOFError("the compressed data end too early")
                self._left += more

    def _tail(self) -> bytes:
        return getattr(self._decoder, "unconsumed_tail", b"")  # the other decoders keep it themselves

    def _begin_next(self) -> bool:
        left = self._left.lstrip(b"\0")  # streams may be filled up with zeros
        while len(left) < MAGIC_BYTES and (more := self._file.read(CHUNK)):
            left = (left + more).lstrip(b"\0")
        if not left:
            return False
        if decoder_of(left) is not self._new:
            raise OSError("other data follow the end of the compressed data")
        self._left, self._decoder = left, self._new()
        return True


def decoder_of(head: bytes) -> Callable[[], Any] | None:
    """What makes decompressors for data that begin like this; None if they are not compressed."""
    return next((new for magic, new in DECODERS.items() if head.startswith(magic)), None)


def walk(source: Source) -> Iterator[tarfile.TarInfo]:
    """The headers of all members; the source stands at a member's content, which may be read before going on.

    Raises one of READ_ERRORS where the archive is damaged, is cut, passes a bound, or is followed by other data.
    """
    count = 0
    while True:  # archives may lie one behind the other
        began = source.tell()
        tar: tarfile.TarFile | None = None
        member: tarfile.TarInfo | None = None
        while True:
            tar, member = _next(tar, source)
            if member is None:
                break
            count += 1
            if count > MEMBERS:
                raise tarfile.ReadError(f"more than {MEMBERS} members")
            yield member
        ending = getattr(tar, "ending", None)
        if not isinstance(ending, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            if began and tar.offset == began:
                raise tarfile.ReadError(f"other data follow the end of the archive, from byte {began} on")
            raise tarfile.ReadError(f"no end-of-archive mark ({ending})")
        if not source.pass_zeros():
            return


def _next(tar: tarfile.TarFile | None, source: Source) -> tuple[tarfile.TarFile, tarfile.TarInfo | None]:
    source.budget = HEADER_BYTES
    try:
        if tar is None:
            tar = tarfile.TarFile(fileobj=source, tarinfo=_Header, encoding="utf-8")  # type: ignore[arg-type]
            member = tar.firstmember  # type: ignore[attr-defined]  # it has looked already
            tar.firstmember = None  # type: ignore[attr-defined]
        else:
            member = tar.next()
        tar.members = []  # type: ignore[attr-defined]  # or the archive would remember every header it passed
        if member is not None and (member.size < 0 or tar.offset < source.tell()):
            raise tarfile.ReadError(f"{member.name!r} has a negative size")
    except READ_ERRORS:
        raise
    except Exception as error:  # tarfile raises whatever broken headers provoke
        raise tarfile.ReadError(f"a damaged header ({type(error).__name__}: {error})") from error
    finally:
        source.budget = None
    return tar, member


def place_of(member: tarfile.TarInfo) -> Place | SampleError | None:
    """Where a member's bytes lie, or why they cannot be had; None for what never belongs to a sample."""
    if member.type in METADATA:
        return None
    if member.issym() or member.islnk():
        kind = "symbolic" if member.issym() else "hard"
        todo = "pack the files that links lead to (tar --dereference --hard-dereference)"
        return SampleError("not a regular file", f"{readable(member.name)} is a {kind} link; {todo}")
    if not member.isreg():
        return SampleError("not a regular file", f"{readable(member.name)} is of type {member.type!r}")
    if member.size > MEMBER_BYTES:
        return too_large(member.name, member.size, MEMBER_BYTES)
    holes: list[tuple[int, int]] | None = member.sparse  # type: ignore[assignment]  # in spite of its name the parts between the holes
    if holes is None:
        return Place(member.offset_data, member.size)
    parts = tuple((offset, length) for offset, length in holes if length)
    ends = [0, *(offset + length for offset, length in parts)]
    if any(length < 0 or offset < end for (offset, length), end in zip(parts, ends, strict=False)):
        return SampleError("truncated or damaged tar", f"{readable(member.name)} has a broken map of its holes")
    if ends[-1] > member.size:
        return SampleError("truncated or damaged tar", f"{readable(member.name)} has data behind its end")
    return Place(member.offset_data, member.size, parts)


def too_large(name: str, size: int, bound: int) -> SampleError:
    return SampleError(
        "too large", f"{readable(name)} takes {size} bytes, {bound} are allowed; set STAR_MEMBER_MIB to allow more"
    )


def read_place(file: IO[bytes], place: Place) -> bytes:
    """A member's bytes from an open tar. Raises SampleError if they are not all there."""
    file.seek(place.offset)
    data = file.read(place.stored)
    if len(data) != place.stored:
        raise SampleError("truncated or damaged tar", f"{len(data)} bytes of {place.stored}")
    return _laid_out(data, place)


def _laid_out(data: bytes, place: Place) -> bytes:
    if place.parts is None:
        return data
    content, at = bytearray(place.size), 0
    for offset, length in place.parts:
        content[offset : offset + length] = data[at : at + length]
        at += length
    return bytes(content)


def readable(name: str) -> str:
    """A name with its bytes that are not UTF-8 spelt out (caf\\xe9.png), so that it can be printed and compared."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
