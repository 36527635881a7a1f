"""Where the tensors of a checkpoint lie: their places in a file, checked against it, and read when they are used.

torch.save writes a zip archive, which holds a pickle and each storage as a record of its own; before version 1.6 it
wrote pickles one after the other, and the storages behind them. Nothing here unpickles by Python's own machine, see
`pickle_machine.py`, and a tensor is never larger than the bytes that the file has for it.
"""

import mmap
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from star.generators.pickle_machine import Known, Machine, Stand, Stream, encoded, ordered, plain_set

LARGEST_PICKLE = 2**26  # bytes, without the tensors' data; that of a 2-billion-parameter training is 10^6
LARGEST_DIRECTORY = 2**25  # bytes of an archive's list of records
SMALL = 2**20  # numbers up to which a tensor may be larger than its storage, as expanded ones are
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before version 1.6
STORAGES: dict[str, torch.dtype | None] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}
TYPES = re.compile(r"torch\.(b?float\w*|half|double|u?int\d+|long|short|bool|complex\d+)")


class Bytes(Protocol):
    """Something that hands out a piece of itself as a buffer that may be written to."""

    def piece(self, start: int, size: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that are at hand."""

    data: memoryview

    def piece(self, start: int, size: int) -> Any:
        piece = self.data[start : start + size]
        return bytearray(piece) if piece.readonly else piece


@dataclass(frozen=True, slots=True)
class Mapped:
    """A file; every piece is mapped by itself, and let go with the tensor that is made of it."""

    path: Path

    def piece(self, start: int, size: int) -> Any:
        begin = start - start % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), start - begin + size, access=mmap.ACCESS_COPY, offset=begin)
        return memoryview(mapped)[start - begin :]


def mapped(path: Path) -> memoryview:
    """A whole file, which is not read before its bytes are looked at; writing to it changes a copy."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


@dataclass(slots=True, eq=False)
class Storage(Stand):
    """Numbers of one type in a row, at a place that may be told later."""

    dtype: torch.dtype | None  # None: bytes
    count: int
    source: Bytes | None = None
    start: int = 0  # byte

    @property
    def nbytes(self) -> int:
        return self.count * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor in a file."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any = None) -> "Stored":
        """Raises ValueError unless the tensor lies within its storage."""
        dtype = dtype if isinstance(dtype, torch.dtype) else getattr(storage, "dtype", None)
        if not isinstance(storage, Storage) or dtype is None:
            raise ValueError("it has a tensor without a storage")
        numbers = (offset, *shape, *stride)
        if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers) or len(shape) > 25:
            raise ValueError(f"it has a tensor of shape {str(shape)[:60]} and strides {str(stride)[:60]}")
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        held = storage.nbytes // dtype.itemsize
        if prod(shape) and (last >= held or prod(shape) > max(held, SMALL)):
            raise ValueError(f"it has a tensor of shape {shape}, for which it holds {held} numbers")
        return cls(storage, dtype, offset, tuple(shape), tuple(stride))

    def read(self) -> Tensor:
        """The tensor, on a piece of the file that is read when its values are."""
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        if self.storage.source is None:
            raise ValueError("a tensor was read before its storage was found")
        steps = zip(self.shape, self.stride, strict=True)
        count = 1 + sum((size - 1) * step for size, step in steps)
        start = self.storage.start + self.offset * self.dtype.itemsize
        piece = self.storage.source.piece(start, count * self.dtype.itemsize)
        flat = torch.frombuffer(piece, dtype=torch.uint8)
        if flat.data_ptr() % self.dtype.itemsize:  # older files do not align
            flat = flat.clone()
        return flat.view(self.dtype).as_strided(self.shape, self.stride)


class _Device(Stand):
    """Stands for where a tensor was."""


Names = Callable[[str], Any]


def names_of(refuse: Callable[[str], Exception], more: Names = lambda name: None) -> Names:
    """What stands for the names in a pickle of tensors and plain containers.

    refuse: the exception for any other name. more: what stands for further names, None for unknown ones.
    """

    def find(full: str) -> Any:
        module, _, name = full.rpartition(".")
        if module in ("torch", "torch.storage") and name in STORAGES:
            return Known(full, lambda *_: Storage(STORAGES[name], 0))
        if TYPES.fullmatch(full) and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if full in _KNOWN:
            return Known(full, _KNOWN[full])
        found = more(full)
        if found is None:
            raise refuse(full)
        return found

    return find


_KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": Stored.of,
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, stride, *_: Stored.of(
        storage, offset, shape, stride
    ),
    "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, stride, grad, hooks, dtype, *_: Stored.of(
        storage, offset, shape, stride, dtype
    ),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.nn.parameter.Parameter": lambda tensor, *_: tensor,
    "torch.serialization._get_layout": lambda *_: None,
    "torch.Size": lambda sizes=(): tuple(sizes) if type(sizes) in (list, tuple) else (),
    "torch.device": lambda *_: _Device(),
    "collections.OrderedDict": ordered,
    "builtins.set": plain_set,
    "__builtin__.set": plain_set,
    "_codecs.encode": encoded,
}


@dataclass(slots=True)
class _Storages:
    """The storages that a pickle refers to, by their keys."""

    place: Callable[[Storage, str], None] = lambda storage, key: None
    found: dict[str, Storage] = field(default_factory=dict)

    def __call__(self, told: Any) -> Any:
        if type(told) is not tuple or not 5 <= len(told) <= 6 or told[0] != "storage":
            raise ValueError("it refers to something outside of it that is no storage")
        kind, key, count, view = told[1], str(told[2])[:200], told[4], (told[5:] or (None,))[0]
        name = getattr(kind, "name", "").rpartition(".")[2]
        if name not in STORAGES or type(count) is not int or not 0 <= count < 2**50:
            raise ValueError(f"it refers to a storage {key} that is none")
        if key not in self.found:
            storage = Storage(STORAGES[name], count)
            self.place(storage, key)
            self.found[key] = storage
        storage = self.found[key]
        if view is None:
            return storage
        _, offset, size = view
        if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= storage.count:
            raise ValueError(f"it has a view of the storage {key} that is none")
        return _View(storage.dtype, size, of=storage, first=offset)


@dataclass(slots=True, eq=False)
class _View(Storage):
    """A part of a storage whose place is told later."""

    of: Storage = field(default_factory=lambda: Storage(None, 0))
    first: int = 0

    def settle(self) -> None:
        self.source, self.start = self.of.source, self.of.start + self.first * (self.nbytes // max(self.count, 1))


def read_archive(path: Path, find: Callable[[str], Any]) -> Any:
    """What a zip archive of torch.save holds, a `Stored` for each tensor. Raises ValueError where it is damaged."""
    try:
        with path.open("rb") as file:
            archive = _Archive(path, file)
            if archive.has("byteorder") and (order := archive.read("byteorder", 16)) != b"little":
                raise ValueError(f"its numbers are {order!r}-endian")
            return Machine(find, _Storages(archive.put)).load(Stream(memoryview(archive.read("data.pkl"))))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeError) as error:
        raise ValueError(str(error)) from error


class _Archive:
    """The records of a zip archive; they lie in it as they are, as torch.save writes them, or are refused."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file, self.size = path, file, path.stat().st_size
        with zipfile.ZipFile(_Limited(file)) as archive:
            self.records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it is an archive, but no checkpoint of torch.save")
        self.prefix = pickles[0].removesuffix("data.pkl")
        if self.has("constants.pkl"):
            raise ValueError("it is a TorchScript program: save its state_dict() by torch.save")

    def has(self, name: str) -> bool:
        return self.prefix + name in self.records

    def place(self, name: str) -> tuple[int, int]:
        """Where a record starts, and its bytes."""
        if not self.has(name):
            raise ValueError(f"it lacks the record {name}")
        info = self.records[self.prefix + name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"the record {name} is packed, which torch.save never does")
        self.file.seek(info.header_offset)
        head = self.file.read(30)
        start = info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\x03\x04" or start + info.file_size > self.size:
            raise ValueError(f"the record {name} is cut short")
        return start, info.file_size

    def read(self, name: str, largest: int = LARGEST_PICKLE) -> bytes:
        start, count = self.place(name)
        if count > largest:
            raise ValueError(f"the record {name} has {count} bytes, more than {largest}")
        self.file.seek(start)
        return self.file.read(count)

    def put(self, storage: Storage, key: str) -> None:
        """Tells a storage where its bytes are."""
        start, count = self.place(f"data/{key}")
        if count < storage.nbytes:
            raise ValueError(f"the record data/{key} has {count} bytes, expected {storage.nbytes}")
        storage.source, storage.start = Mapped(self.path), start


def read_old(data: memoryview, source: Bytes, find: Callable[[str], Any]) -> Any:
    """The same for what torch.save wrote before version 1.6; data: the whole file, source: where its pieces are."""
    storages, stream = _Storages(), Stream(data)
    views: list[_View] = []

    def persistent(told: Any) -> Any:
        found = storages(told)
        if isinstance(found, _View):
            views.append(found)
        return found

    machine = Machine(find, persistent)
    if machine.load(stream) != MAGIC or machine.load(stream) != PROTOCOL:
        raise ValueError("it is a pickle, but none of torch.save")
    about = machine.load(stream)
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    content = machine.load(stream)
    keys = machine.load(stream)
    if type(keys) is not list:
        raise ValueError("it does not list its storages")
    at = stream.tell()
    for key in map(str, keys):
        storage = storages.found.get(key)
        if storage is None or storage.source is not None:
            raise ValueError("it lists a storage that no tensor has")
        count = int.from_bytes(data[at : at + 8], "little")
        if count != storage.count or at + 8 + storage.nbytes > len(data):
            raise ValueError(f"it is cut short at the storage {key[:40]}")
        storage.source, storage.start = source, at + 8
        at += 8 + storage.nbytes
    if any(storage.source is None for storage in storages.found.values()):
        raise ValueError("it lacks a storage")
    for view in views:
        view.settle()
    return content


class _Limited:
    """A file of which a list of records is never read that is larger than any checkpoint's."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size = file, file.seek(0, 2)
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self.file.tell(), 0)
        if min(left, count if count >= 0 else left) > LARGEST_DIRECTORY:
            raise ValueError("its list of records is larger than any checkpoint's")
        return self.file.read(min(left, count) if count >= 0 else left)

    def close(self) -> None:
        """The file stays open."""
