"""Pickles of the StyleGAN line, which bring the source of their networks along to be run on loading: read as data.

    state = read_pickle("cifar10.pkl")          # dicts, lists, numbers, tensors, and a `Saved` for each network
    tensors = state["G_ema"].tensors()

Whatever a pickle names is looked up in one table of harmless stand-ins, and refused by name if it is not there. A
network comes as one dictionary with its source and its state; the source is never looked at. Tensors carry bytes of
torch.save inside, which torch's weights-only reader reads.

Programs that pickle their networks as they are name their own modules all over the file. For those a reader is told a
pattern: what it fits is replaced by something that takes everything and does nothing.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError
from generators.restricted import HARMLESS, names_in

NUMBERS = re.compile(r"[biuf][1248]")  # types of numpy, as they call themselves
TYPES = re.compile(r"torch\.(b?float\d+|u?int\d+|bool)")
LAYERS = re.compile(r"torch\.nn\.modules\.\w+\.\w+")


class Saved:
    """A network or a layer as it was saved: its attributes, whatever its class was."""

    def __init__(self, class_name: str = "", state: Any = None) -> None:
        self.class_name = class_name
        self.state: dict[str, Any] = dict(state) if isinstance(state, Mapping) else {}

    def __setstate__(self, state: Any) -> None:
        Saved.__init__(self, type(self).__name__, state)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and lasting buffers by their dotted names, as a state dict has them."""
        return dict(self._named(""))

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that it was made with; empty if the file does not tell."""
        told = self.state.get("_init_kwargs")
        return dict(told) if isinstance(told, Mapping) else {}

    def _named(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        passing = self.state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, tensor in (self.state.get(kind) or {}).items():
                if isinstance(tensor, Tensor) and name not in passing:
                    yield prefix + name, tensor
        for name, layer in (self.state.get("_modules") or {}).items():
            if isinstance(layer, Saved):
                yield from layer._named(f"{prefix}{name}.")


class _Passive(Saved):
    """Stands for a class or a function of a program that is not at hand."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> "_Passive":
        return _Passive()

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _item: Any) -> None:
        pass

    def extend(self, _items: Any) -> None:
        pass


class _Attributes(dict[str, Any]):
    """Stands for the dictionary class of the StyleGAN line, whose keys are attributes too."""


class _NumberType:
    """Stands for numpy.dtype; remembers its name alone."""

    def __init__(self, name: str = "", *_: Any) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def read_pickle(path: str | Path, passive: re.Pattern[str] | None = None) -> Any:
    """The content of a pickle file. Raises InputError if it is missing, cut short, or names anything unknown.

    passive: full names of the classes and functions that are replaced by stand-ins.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Reader(file, path, passive).load()
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a pickle file: correct the path"
        ) from error
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"{path} cannot be read as a pickle of networks ({reason}): fetch it again") from error


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path, passive: re.Pattern[str] | None) -> None:
        super().__init__(file)
        self.path, self.passive = path, passive
        self.known: dict[str, Callable[..., Any]] = {
            "torch_utils.persistence._reconstruct_persistent_obj": _rebuild_saved,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch.storage._load_from_bytes": self._load_storage,
            "numpy.core.multiarray.scalar": _rebuild_number,
            "numpy._core.multiarray.scalar": _rebuild_number,
        }
        self.classes: dict[str, type] = {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "dnnlib.util.EasyDict": _Attributes,
            "numpy.dtype": _NumberType,
        }

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Always a fresh object, so that a file which changes it changes nothing of ours."""
        full = f"{module}.{name}"
        if full in self.known:
            return partial(self.known[full])
        if full in self.classes:
            return type(name, (self.classes[full],), {})
        if LAYERS.fullmatch(full):
            return type(name, (Saved,), {})
        if TYPES.fullmatch(full):
            return getattr(torch, name)
        if self.passive is not None and self.passive.fullmatch(full):
            return type(name, (_Passive,), {})
        raise self._refusal(full)

    def persistent_load(self, pid: Any) -> Any:
        raise self._refusal("what is outside of it")

    def _load_storage(self, data: bytes) -> Any:
        for name in names_in(io.BytesIO(data)):
            if not HARMLESS.fullmatch(name):
                raise self._refusal(name)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def _refusal(self, name: str) -> InputError:
        return InputError(
            f"{self.path} would run {name} on loading, expected nothing but networks of tensors: it was not opened, "
            "get the weights from a source that you trust"
        )


def _rebuild_saved(meta: Mapping[str, Any]) -> Saved:
    return Saved(str(meta["class_name"]), meta["state"])


def _rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _rebuild_number(kind: _NumberType, data: bytes) -> int | float | bool:
    if not NUMBERS.fullmatch(kind.name):
        raise ValueError(f"a number of the type {kind.name!r}")
    return np.frombuffer(data, np.dtype(kind.name).newbyteorder(kind.order))[0].item()  # type: ignore[arg-type]
