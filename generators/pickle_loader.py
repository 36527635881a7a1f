"""Checkpoint files of other programs, read without running anything that they contain.

What torch.save writes has a pickle in it, and a pickle is a program. It is read by `pickle_machine.py`, which builds
tensors and plain containers and refuses any other name; of the tensors only places are noted (`tensor_files.py`), so of
a file with the state of an optimiser only those that are asked for are ever read. Files of safetensors are read too.

    source = CheckpointFile.find("var_d16.pth", [("trainer", "var_wo_ddp"), ()], sign="pos_1LC")
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from star.data.errors import InputError
from star.data.files import check_beginning, check_safetensors, describe, shorten
from star.generators.pickle_machine import Known, Machine, Stand, Stream
from star.generators.pretrained import check_finite
from star.generators.tensor_files import Mapped, Stored, mapped, names_of, read_archive, read_old

EXPECTED = "a checkpoint file"
DEEPEST = 3  # levels of dictionaries in which tensors are looked for
# Names of dictionaries in the files of trainings that hold the averaged weights, which are those to draw with.
AVERAGED = re.compile(r"(?i).*(ema|averaged?)(_.*|$)|ema.*")
ANONYMOUS = {"model", "state_dict", "state_dicts", "module", "network"}  # that tell of nothing else beside them
# What wrappers put before the name of every tensor: DistributedDataParallel, torch.compile, FSDP, checkpointing.
WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# Plain notes that trainings leave beside tensors; they are read as nothing at all.
NOTES = re.compile(
    r"argparse\.Namespace|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))"
    r"|pathlib\.(Pure)?(Posix|Windows)?Path|collections\.(Counter|defaultdict)|builtins\.(int|float|dict|list)"
)

# What torch's list of the pieces of a checkpoint that is cut over processes consists of.
PIECES = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\.(Metadata|(Tensor|Chunk|Bytes)StorageMetadata|TensorProperties"
    r"|_MEM_FORMAT_ENCODING|MetadataIndex|StorageMeta)"
    r"|torch\.distributed\.checkpoint\.filesystem\._StorageInfo|pathlib\.(Posix|Windows|PurePosix)Path"
)

Way = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]


class Note(Stand):
    """Stands for something that is no tensor and is not needed."""

    def __init__(self, *_: Any) -> None:
        pass

    def put(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Slice:
    """A tensor of a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.name)


class CheckpointFile(Mapping[str, Tensor]):
    """One dictionary of tensors inside a file; each tensor is read when it is used, and not kept here."""

    def __init__(self, path: str | Path, way: Way = ()) -> None:
        """way: the keys that lead from the file's top to the dictionary.

        Raises InputError if the file is missing, cut short, no checkpoint, or would run code, and KeyError if there is
        no dictionary of tensors at the end of the way.
        """
        self.path, self.way = Path(path), way
        found = content(self.path)
        for key in way:
            if not isinstance(found, Mapping) or key not in found:
                raise KeyError(key)
            found = found[key]
        if not _is_state(found):
            raise KeyError(way)
        self._state = unwrapped(found)

    @classmethod
    def find(
        cls, path: str | Path, ways: Sequence[Way], sign: str = "", *, averaged: bool = False
    ) -> "CheckpointFile | None":
        """The first of several dictionaries that the file has; raises InputError as above.

        sign: the name of a tensor that is looked for. Then a dictionary that has it comes first, wherever it is, one of
        averaged weights before others, and names that all begin alike before that name are cut. averaged: no others are
        looked at than those, and such as nothing else can be meant by, under "model" or "state_dict".
        """
        path = Path(path)
        top = content(path)
        states = {
            way: state
            for way, state in _states(top, (), set())
            if way in ways or (sign and (not averaged or _is_averaged(way) or ANONYMOUS.issuperset(way)))
        }
        first = [way for way in ways if way in states]
        order = first + sorted(states.keys() - set(first), key=lambda way: (not _is_averaged(way), len(way), way))
        for way in order:
            state = unwrapped(states[way], sign)
            if not sign or sign in state:
                return cls._of(path, way, state)
        return cls._of(path, first[0], unwrapped(states[first[0]])) if first else None

    @classmethod
    def _of(cls, path: Path, way: Way, state: dict[str, Any]) -> "CheckpointFile":
        made = cls.__new__(cls)
        made.path, made.way, made._state = path, way, state
        return made

    @property
    def place(self) -> str:
        """For people: the file's name, and where in it the tensors were."""
        return self.path.name + (f", {'.'.join(self.way)}" if self.way else "")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        return {name: tensor.shape for name, tensor in self._state.items()}

    def renamed(self, names: Mapping[str, str]) -> "Renamed":
        """Some of the tensors; `names`: their new names, and what they are called here."""
        return Renamed(self, names, self.path)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name]
        try:
            return tensor.read()
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{self.path} cannot be read at {name} ({shorten(error)}): fetch it again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


class Renamed(Mapping[str, Tensor]):
    """A selection from a mapping of tensors under other names; no value may be infinite or not a number."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str], file: str | Path) -> None:
        self._source, self._names, self._file = source, names, file

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._source[self._names[name]]
        check_finite(tensor, self._names[name], self._file)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def content(path: Path) -> Any:
    """All that a checkpoint file holds, with something that can be read for each tensor.

    Raises InputError if the file is missing, cut short, of another kind, or would run code.
    """
    start = check_beginning(path, EXPECTED)
    kind = describe(start)
    if path.suffix == ".safetensors" or kind == "a safetensors file":
        return _safetensors(path)
    find = names_of(lambda name: refusal(path, name), lambda name: Known(name, Note) if NOTES.fullmatch(name) else None)
    try:
        if kind == "an archive as torch.save writes it":
            return read_archive(path, find)
        if kind != "a pickle":
            raise InputError(
                f"{path} is {kind or 'no file that torch.save or safetensors has written'}, expected {EXPECTED}: "
                "fetch it again, or save it anew"
            )
        return read_old(mapped(path), Mapped(path), find)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is cut short or damaged ({shorten(error)}), expected {EXPECTED}: fetch it again"
        ) from error


def check_pieces(path: Path) -> None:
    """Raises InputError unless a `.metadata`, which torch unpickles, names nothing but what a list of pieces needs."""
    check_beginning(path, "the list of a checkpoint's pieces")
    find = names_of(
        lambda name: refusal(path, name), lambda name: Known(name, Note) if PIECES.fullmatch(name) else None
    )
    try:
        Machine(find, Note).load(Stream(mapped(path)))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is cut short or damaged ({shorten(error)}): remove this checkpoint") from error


def refusal(path: Path, name: str) -> InputError:
    """For a file that names what is neither a tensor nor a plain container."""
    return InputError(
        f"{path} would run {shorten(name)} on loading, expected nothing but tensors: it was not opened, get the "
        "weights from a source that you trust"
    )


def unwrapped(state: Mapping[str, Any], sign: str = "") -> dict[str, Any]:
    """The same under the names that the tensors had before a network was wrapped for its training.

    sign: the name of one of them; a beginning that it has, and all others have too, is cut.
    """
    names = {name: WRAPPED.sub("", name) for name in state}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {old: name.removeprefix("module.") for old, name in names.items()}
    if sign and sign not in names.values():
        found = [name.removesuffix(sign) for name in names.values() if name.endswith("." + sign)]
        if len(found) == 1 and all(name.startswith(found[0]) for name in names.values()):
            names = {old: name.removeprefix(found[0]) for old, name in names.items()}
    if len(set(names.values())) < len(names):
        return dict(state)
    return {names[old]: tensor for old, tensor in state.items()}


def _safetensors(path: Path) -> dict[str, _Slice]:
    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: _Slice(path, name, tuple(file.get_slice(name).get_shape())) for name in names}
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is no whole safetensors file ({shorten(error)}): fetch it again") from error


def _is_state(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(name, str) and isinstance(tensor, Stored | _Slice) for name, tensor in found.items())
    )


def _states(found: Any, way: Way, seen: set[int]) -> Iterator[tuple[Way, Mapping[str, Any]]]:
    """Every dictionary of tensors, by its way from the top; one that is met again is not looked at."""
    if not isinstance(found, Mapping) or id(found) in seen:
        return
    seen.add(id(found))
    if _is_state(found):
        yield way, found
    elif len(way) < DEEPEST:
        for key, inner in found.items():
            if isinstance(key, str):
                yield from _states(inner, (*way, key), seen)


def _is_averaged(way: Way) -> bool:
    return any(AVERAGED.fullmatch(key) for key in way)


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
