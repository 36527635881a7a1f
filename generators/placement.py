"""Where a command computes and how exactly: the options --device and --dtype, and what they mean where none is given.

    add_options(parser)                                   # of a command that draws, scores or times
    place = placed(args.device, args.dtype, args.model)   # before anything is loaded
    generator = registry.build(args.model, device=place.device, dtype=place.dtype)

"auto" is bfloat16 on a GPU. On a CPU it is bfloat16 where the processor multiplies in it and the model gains by it: a
next-scale model of at least `LARGE` numbers. Below that a picture takes a fraction of a second either way, and float32
gives the same picture on every machine; GANs of these sizes are no faster in it (docs/speed.md has the figures).
Whatever the type, codes are chosen from float32 logits.
"""

import argparse
import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from star.data.errors import InputError
from star.generators.devices import usable

if TYPE_CHECKING:
    import torch

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16")
LARGE = 100_000_000  # numbers of the transformer
GAINS = ("star", "var")  # families that bfloat16 makes faster on a CPU
UNTRAINED = "untrained:"  # before the shape of a large next-scale model, see star.untrained
UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, and the type that networks have there."""

    device: str
    dtype: "torch.dtype"

    def told(self) -> dict[str, str]:
        """As records state it."""
        return {"device": self.device, "dtype": dtype_name(self.dtype)}


def add_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup, dtype: str = AUTO) -> None:
    """--device and --dtype. dtype: what counts where none is given."""
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    told = "bfloat16 on a GPU, and on a CPU that multiplies in it for large models, else float32"
    more = f"; auto: {told}" if dtype != AUTO else f", {told}"
    parser.add_argument(
        "--dtype", choices=DTYPES, default=dtype, help=f"type that the network computes in (default: %(default)s{more})"
    )


def placed(device: str | None, dtype: str, model: str) -> Placement:
    """The device that was asked for, or the best there is, and the type. Raises InputError for one that is missing.

    Where float32 is drawn on a GPU, TF32 is allowed for its products; see star.generators.precision.
    """
    import torch

    from star.generators.precision import allow_tf32

    place = usable(device)
    chosen = automatic(place, model) if dtype == AUTO else dtype_of(dtype)
    if chosen == torch.float32:
        allow_tf32(torch.device(place))
    return Placement(place, chosen)


def as_dtype(dtype: "torch.dtype | str | None", device: "str | torch.device", model: str) -> "torch.dtype | None":
    """A type as callers in Python say it: None is the network's own, a name is one of DTYPES.

    Raises InputError for another name.
    """
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected a torch.dtype or one of {', '.join(DTYPES)}: choose one")
    return automatic(str(device), model) if dtype == AUTO else dtype_of(dtype)


def automatic(device: str, model: str) -> "torch.dtype":
    """What "auto" is for a model on a device that is there; see the module's text."""
    import torch

    kind = torch.device(device).type
    if model.endswith("-test"):  # the tiny networks have one type
        return torch.float32
    if kind == "cuda" or (kind == "cpu" and multiplies_in_bfloat16(cpu_flags()) and gains(model)):
        return torch.bfloat16
    return torch.float32


def gains(model: str) -> bool:
    """Whether bfloat16 makes a model faster on a CPU, by its family and the numbers that its files hold."""
    from star.generators import registry
    from star.generators.pretrained import ModelDirectory

    if model.startswith(UNTRAINED):
        return True
    directory = ModelDirectory.read(registry.locate(model))
    return directory.family in GAINS and sum(map(math.prod, directory.shapes().values())) >= LARGE


def multiplies_in_bfloat16(flags: frozenset[str]) -> bool:
    """Whether a processor with these flags has units for products of bfloat16 matrices."""
    return bool(flags & UNITS)


@cache
def cpu_flags() -> frozenset[str]:
    """What Linux says the first processor can do; nothing where nobody says it."""
    with suppress(OSError):
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(values.split())
    return frozenset()


def dtype_of(name: str) -> "torch.dtype":
    """The type of a name that `dtype_name` gave."""
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: "torch.dtype") -> str:
    """As the option and records write it."""
    return str(dtype).removeprefix("torch.")
