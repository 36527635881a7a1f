"""Checkpoint files of other programs, read without running anything that they contain.

What torch.save writes is a zip archive with a pickle in it, and a pickle is a program. Three locks: the names it calls
are listed without executing it, and anything beyond tensors and plain containers is refused by name; torch's own
weights-only reader does the reading; the data are mapped into memory, so of a file with the state of an optimiser only
the tensors that are asked for are ever read.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from data.errors import InputError

# What a pickle of tensors and plain containers may name.
HARMLESS = re.compile(
    r"torch\.(\w+Storage|b?float\w*|half|double|u?int\d+|long|short|bool|complex\d+|Size|device)"
    r"|torch\.storage\.(Untyped|Typed)Storage"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout|collections\.OrderedDict|(builtins|__builtin__)\.set|_codecs\.encode"
)
LARGEST_PICKLE = 2**28  # bytes, without the tensors' data; that of a 2-billion-parameter training is 10^6
WINDOW = 2**28  # bytes of tensors handed out before a file is mapped anew, which lets go of those read before

Way = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]


class CheckpointFile(Mapping[str, Tensor]):
    """One dictionary of tensors inside a file; each tensor is read when it is used, and not kept here."""

    def __init__(self, path: str | Path, way: Way = ()) -> None:
        """way: the keys that lead from the file's top to the dictionary.

        Raises InputError if the file is missing, cut short, no checkpoint, or would run code, and KeyError if there is
        no dictionary of tensors at the end of the way.
        """
        self.path, self.way = Path(path), way
        check(self.path)
        self._state, self._handed = self._map(), 0

    @classmethod
    def find(cls, path: str | Path, ways: Sequence[Way]) -> "CheckpointFile | None":
        """The first of several dictionaries that the file has; raises InputError as above."""
        for way in ways:
            try:
                return cls(path, way)
            except KeyError:
                continue
        return None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def renamed(self, names: Mapping[str, str]) -> "Renamed":
        """Some of the tensors; `names`: their new names, and what they are called here."""
        return Renamed(self, names)

    def __getitem__(self, name: str) -> Tensor:
        if self._handed > WINDOW:
            self._state, self._handed = self._map(), 0
        tensor = self._state[name]
        self._handed += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def _map(self) -> dict[str, Tensor]:
        try:
            found: Any = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # whatever a damaged file makes the reader stumble over
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(f"{self.path} cannot be read as a checkpoint ({reason}): fetch it again") from error
        for key in self.way:
            if not isinstance(found, Mapping) or key not in found:
                raise KeyError(key)
            found = found[key]
        if not isinstance(found, Mapping) or not found:
            raise KeyError(self.way)
        if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()):
            raise KeyError(self.way)
        return dict(found)


class Renamed(Mapping[str, Tensor]):
    """A selection from a mapping of tensors under other names."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check(path: Path) -> None:
    """Raises InputError unless the file is a whole archive of torch.save that names harmless things only."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a checkpoint file: give the file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a checkpoint file: correct the path"
        ) from error
    if not start.startswith(b"PK\x03\x04"):
        with path.open("rb") as file:
            _refuse_harmful(path, file)
        raise InputError(
            f"{path} is no archive that torch.save has written since version 1.6: fetch it again, or save it anew"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                raise InputError(f"{path} is an archive, but no checkpoint of torch.save: give another file")
            with archive.open(pickles[0]) as stream:
                _refuse_harmful(path, stream)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(f"{path} is cut short or damaged ({error}): fetch it again") from error


def _refuse_harmful(path: Path, stream: IO[bytes]) -> None:
    harmful = sorted({name for name in names_in(stream) if not HARMLESS.fullmatch(name)})
    if harmful:
        named = ", ".join(harmful[:3]) + (" and more" if len(harmful) > 3 else "")
        raise InputError(
            f"{path} would run {named} on loading, expected nothing but tensors: it was not opened, get the weights "
            "from a source that you trust"
        )


def names_in(stream: IO[bytes]) -> Iterator[str]:
    """Every "module.name" that the pickles at the start of a stream call for, found without running them."""
    texts: list[str] = []  # last strings that were pushed: where newer pickles keep module and name
    memo: dict[int, str] = {}
    try:
        for _ in range(5):  # the oldest checkpoints are several pickles in a row
            for code, argument, _position in pickletools.genops(stream):
                if code.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif code.name == "STACK_GLOBAL":
                    yield ".".join(texts[-2:]) or "something without a name"
                elif code.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    memo[len(memo) if argument is None else argument] = texts[-1] if texts else ""
                elif code.name in ("GET", "BINGET", "LONG_BINGET"):
                    texts = [*texts[-1:], memo.get(int(argument or 0), "")]
                elif isinstance(argument, str):
                    texts = [*texts[-1:], argument]
    except (ValueError, UnicodeDecodeError):  # no pickle any more, or never one: nothing further would run either
        return


def check_fit(wanted: Mapping[str, Tensor], names: Mapping[str, str], shapes: Shapes, file: str | Path) -> None:
    """Raises InputError unless a file has exactly the tensors that a network wants.

    wanted: the network's state. names: for each of our names the file's. shapes: of the file's tensors.
    """
    told = []
    if missing := sorted(wanted.keys() - names.keys()):
        told.append(f"lacks {_shorten(missing)}")
    if foreign := sorted(names[name] for name in names.keys() - wanted.keys()):
        told.append(f"has the unexpected {_shorten(foreign)}")
    wrong = [
        f"{names[name]} {shapes[names[name]]} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & names.keys())
        if shapes[names[name]] != tuple(wanted[name].shape)
    ]
    if wrong:
        told.append(f"has another shape for {_shorten(wrong)}")
    if told:
        raise InputError(f"{file} {' and '.join(told)}: give an unaltered file of the release, with its own preset")


def _shorten(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
