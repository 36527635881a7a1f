"""Tensors of released networks: their names to ours by tables, held against the network that they are for."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.config import to_dict
from star.generators.gan.layers import fir_kernel
from star.generators.gan.snapshot_pickles import Saved
from star.generators.pickle_loader import Shapes, check_fit
from star.generators.pretrained import ModelDirectory, write

Table = tuple[tuple[str, str | None], ...]  # pattern of a released name, and ours; None: what our networks do not store
OurKeys = Callable[[Iterable[str]], dict[str, str | None]]


def find(name: str, table: Table, unknown: str) -> str | None:
    """Our name, by the first pattern that matches the whole name. Raises ValueError(unknown) if there is none."""
    for pattern, ours in table:
        if match := re.fullmatch(pattern, name):
            return None if ours is None else match.expand(ours)
    raise ValueError(unknown)


def check_low_pass(key: str, tensor: Tensor) -> None:
    """Raises ValueError unless a filter of a file is ours, 1, 3, 3, 1 in both directions."""
    kernel_kk = fir_kernel()
    if tensor.shape != kernel_kk.shape or not torch.allclose(tensor.float(), kernel_kk, atol=1e-6):
        raise ValueError(f"{key} is another filter than 1, 3, 3, 1")


def shape_of(shapes: Shapes, key: str, of: str, file: str | Path) -> tuple[int, ...]:
    """Of a tensor that decides. of: what the file should hold, for the message. Raises InputError if it is missing."""
    if key not in shapes:
        raise InputError(f"{file} lacks {key}, expected all tensors of a {of}: give the whole file")
    return shapes[key]


def averaged_generator(content: Any, of: str, file: str | Path) -> Saved:
    """The network G_ema of a pickle that StyleGAN's code wrote. Raises InputError if there is none."""
    saved = content.get("G_ema") if isinstance(content, dict) else None
    if not isinstance(saved, Saved):
        raise InputError(f"{file} has no network G_ema, expected {of}: give another file")
    return saved


def fitted(
    released: Mapping[str, Tensor],
    shapes: Shapes,
    build: Callable[[], nn.Module],
    our_keys: OurKeys,
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    file: str | Path,
    absent: Iterable[str] = (),
) -> dict[str, Tensor]:
    """A released state dict under our names, of exactly the tensors that the network has.

    build: makes the network; called on the meta device. absent: names of ours that no release has. Raises InputError
    for an unknown name, a missing tensor, another shape or another filter; tensors are read after names and shapes.
    """
    try:
        names = {ours: key for key, ours in our_keys(shapes).items() if ours is not None}
        with torch.device("meta"):
            wanted = build().state_dict()
        check_fit({name: tensor for name, tensor in wanted.items() if name not in absent}, names, shapes, file)
        return rename(released)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file} is not what it was given as: {error}") from error


def write_released(
    out: str | Path, family: str, config: Any, tensors: Mapping[str, Tensor], title: str, text: str, source: str
) -> ModelDirectory:
    """Writes the model directory of a released network. config: the dataclass; text: of the card below its title."""
    side = config.resolution
    return write(
        out,
        family=family,
        config=to_dict(config),
        tensors=tensors,
        card=f"# {title} at {side} x {side} pixels\n\n{text}\n",
        about={"resolution": [side, side], "conditioning": config.conditioning, "source": source},
    )
