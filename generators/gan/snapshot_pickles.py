"""Pickles of the StyleGAN line, which bring the source of their networks along to be run on loading: read as data.

    state = read_pickle("cifar10.pkl")          # dicts, lists, numbers, tensors, and a `Saved` for each network
    tensors = state["G_ema"].tensors()

Whatever a pickle names is looked up in one table of harmless stand-ins, and refused by name if it is not there. A
network comes as one dictionary with its source and its state; the source is never looked at. Tensors carry bytes of
torch.save inside, which torch's weights-only reader reads.

Programs that pickle their networks as they are name their own modules all over the file. For those a reader is told a
pattern: what it fits is replaced by something that takes everything and does nothing.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from star.data.errors import InputError
from star.data.files import check_beginning, describe, shorten
from star.generators.pickle_machine import Known, Machine, Stand, Stream
from star.generators.tensor_files import Memory, Storage, Stored, mapped, names_of, read_old

NUMBERS = re.compile(r"[biuf][1248]")  # types of numpy, as they call themselves
LAYERS = re.compile(r"torch\.nn\.modules\.\w+\.\w+")
MOST_LAYERS = 50_000  # within one network; the largest of the StyleGAN line has 10^3
EXPECTED = "a pickle of networks"


class Saved(Stand):
    """A network or a layer as it was saved: its attributes, whatever its class was."""

    def __init__(self, class_name: str = "", state: Any = None) -> None:
        self.class_name = class_name
        self.state: dict[str, Any] = dict(state) if isinstance(state, Mapping) else {}

    def take(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, Mapping) else {}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and lasting buffers by their dotted names, as a state dict has them.

        Raises InputError where networks lie within each other without end.
        """
        return {
            prefix + name: tensor
            for prefix, layer in self.layers()
            for kind in ("_parameters", "_buffers")
            for name, tensor in layer.part(kind).items()
            if isinstance(tensor, Tensor) and name not in layer.passing
        }

    def layers(self) -> Iterator[tuple[str, "Saved"]]:
        """This network and all within it, in order, each with what its tensors' names begin with."""
        waiting: list[tuple[str, Saved]] = [("", self)]
        for _ in range(MOST_LAYERS):
            if not waiting:
                return
            prefix, layer = waiting.pop()
            yield prefix, layer
            inner = [(f"{prefix}{name}.", part) for name, part in layer.part("_modules").items()]
            if len(prefix) > 2000 or len(waiting) + len(inner) > MOST_LAYERS:
                break
            waiting += [(name, part) for name, part in reversed(inner) if isinstance(part, Saved)]
        raise InputError(
            f"a network has more than {MOST_LAYERS} layers within each other, expected one of the StyleGAN line: give "
            "another file"
        )

    def part(self, name: str) -> dict[str, Any]:
        """Of its attributes one that is a dictionary; empty if it is none."""
        found = self.state.get(name)
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that it was made with; empty if the file does not tell."""
        told = self.state.get("_init_kwargs")
        return dict(told) if isinstance(told, Mapping) else {}

    @property
    def passing(self) -> set[Any]:
        """Names of the buffers that are not stored."""
        found = self.state.get("_non_persistent_buffers_set")
        return found if isinstance(found, set) else set()


class _Passive(Saved):
    """Stands for a class or a function of a program that is not at hand."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def call(self, *_: Any) -> "_Passive":
        return _Passive()

    def put(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass


class _Attributes(dict[str, Any]):
    """Stands for the dictionary class of the StyleGAN line, whose keys are attributes too."""


class _NumberType(Stand):
    """Stands for numpy.dtype; remembers its name alone."""

    def __init__(self, name: str = "", *_: Any) -> None:
        self.name, self.order = name, "<"

    def take(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def read_pickle(path: str | Path, passive: re.Pattern[str] | None = None) -> Any:
    """The content of a pickle file. Raises InputError if it is missing, cut short, or names anything unknown.

    passive: full names of the classes and functions that are replaced by stand-ins.
    """
    path = Path(path)
    kind = describe(check_beginning(path, EXPECTED))
    if kind not in ("", "a pickle"):
        raise InputError(f"{path} is {kind}, expected {EXPECTED}: give the file that the training wrote")
    reader = _Reader(path, passive)
    try:
        return Machine(reader.names, reader.outside).load(Stream(mapped(path)))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a pickle of networks ({shorten(error)}): fetch it again") from error


class _Reader:
    """What stands for the names in such a file."""

    def __init__(self, path: Path, passive: re.Pattern[str] | None) -> None:
        self.path, self.passive = path, passive
        self.known: dict[str, Callable[..., Any]] = {
            "torch_utils.persistence._reconstruct_persistent_obj": _rebuild_saved,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch.storage._load_from_bytes": self._load_storage,
            "numpy.core.multiarray.scalar": _rebuild_number,
            "numpy._core.multiarray.scalar": _rebuild_number,
            "dnnlib.util.EasyDict": lambda *_: _Attributes(),
            "numpy.dtype": _NumberType,
        }
        self.plain = names_of(self.refusal, self._more)
        self.inner = names_of(self.refusal)

    def names(self, full: str) -> Any:
        return Known(full, self.known[full]) if full in self.known else self.plain(full)

    def outside(self, _: Any) -> Any:
        raise self.refusal("what is outside of it")

    def refusal(self, name: str) -> InputError:
        return InputError(
            f"{self.path} would run {shorten(name)} on loading, expected nothing but networks of tensors: it was not "
            "opened, get the weights from a source that you trust"
        )

    def _more(self, full: str) -> Any:
        if LAYERS.fullmatch(full):
            name = full.rpartition(".")[2]
            return Known(full, lambda *_: Saved(name))
        if self.passive is not None and self.passive.fullmatch(full):
            return Known(full, _Passive)
        return None

    def _load_storage(self, data: Any) -> Storage:
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        view = memoryview(data)
        found = read_old(view, Memory(view), self.inner)
        if not isinstance(found, Storage):
            raise ValueError("it has bytes of torch.save that are no storage")
        return found


def _rebuild_saved(meta: Mapping[str, Any]) -> Saved:
    return Saved(str(meta["class_name"]), meta["state"])


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    return Stored.of(storage, offset, shape, stride).read()


def _rebuild_number(kind: Any, data: Any) -> int | float | bool:
    if not isinstance(kind, _NumberType) or not NUMBERS.fullmatch(str(kind.name)) or len(data) > 8:
        raise ValueError("it has a number of a type that is none")
    return np.frombuffer(data, np.dtype(kind.name).newbyteorder(kind.order))[0].item()  # type: ignore[arg-type]
