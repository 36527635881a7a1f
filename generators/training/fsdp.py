"""Parameters, gradients and optimiser state cut into a piece for each process (FSDP2), and checkpoints of the pieces.

    shard(model, model.blocks, device)              # in place: every block is gathered when it computes, then let go
    bare, pieces = split(tracked_state)             # what one process can write alone, and what each has a piece of
    write(pieces, folder); fill(bare, tracked, folder)

Zhao et al. 2023 (PyTorch FSDP); the second version, `fully_shard`, keeps each parameter as a DTensor of its own. A
checkpoint of pieces is read by any number of processes, one alone included. Imported only by runs that shard: what it
needs of torch takes a second to import.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as pieces_io
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from star.generators.pickle_loader import check_pieces

MARK = "piece of"  # in place of a tensor that is written in pieces: {MARK: its name}


def shard(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Cuts a network in place, block by block and then what is left, over all processes; one process keeps it whole.

    Parameters are gathered as they are kept, in float32, and gradients added up so; there is no MixedPrecisionPolicy.
    Its bfloat16 parameters would compute another network than one process does: positions and levels that are added to
    the residual stream, the stream with them, temperatures and the classifier would all be rounded. Here autocast alone
    lowers what it lowers in one process, the products of matrices. That costs 12 instead of 8 bytes of communication
    for each parameter in a step. Optimisers must be made after this.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether the network's parameters are pieces."""
    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The whole of what may be a piece; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's piece, sharing its memory; an undivided tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors on the CPU, gathered one after the other; every process must ask for it."""
    return {name: whole(value.detach()).cpu() for name, value in module.state_dict().items()}


def split(state: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """The same nested state with every DTensor replaced by a mark, and those tensors by name."""
    if isinstance(state, DTensor):
        return {MARK: name}, {name: state}
    if isinstance(state, Mapping):
        bare: dict[str, Any] = {}
        pieces: dict[str, Tensor] = {}
        for key, value in state.items():
            bare[key], found = split(value, f"{name}/{key}")
            pieces |= found
        return bare, pieces
    return state, {}


def write(pieces: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the pieces of all processes; each must call it. Raises OSError in every process if any disk refuses."""
    writer = pieces_io.FileSystemWriter(folder)
    try:
        pieces_io.save(dict(pieces), storage_writer=writer, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # no Exception, so it would pass by those who handle full disks
        first = next(iter(error.failures.values()))[0]
        raise OSError(f"the pieces could not be written: {first}") from error


def fill(bare: Mapping[str, Any], tracked: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A state from `split` with its tensors read back, cut as what is tracked now is cut; each process must call it.

    Raises KeyError if what is tracked has no place for a tensor, InputError if the pieces' list would run code.
    """
    check_pieces(folder / ".metadata")
    places = {name: _places(item) for name, item in tracked.items()}
    wanted: dict[str, Tensor] = {}
    for name in _marks(bare):
        item, _, place = name.removeprefix("/").partition("/")
        wanted[name] = torch.zeros_like(places[item][place])
    pieces_io.load(wanted, storage_reader=pieces_io.FileSystemReader(folder), no_dist=not dist.is_initialized())
    return _filled(bare, wanted)


def _places(item: Any) -> dict[str, Tensor]:
    """For each name of a tensor inside an object's state, a tensor that is shaped and cut like it."""
    if isinstance(item, torch.optim.Optimizer):
        parameters = [parameter for group in item.param_groups for parameter in group["params"]]
        return _Moments(parameters)
    return item.state_dict()


class _Moments(dict[str, Tensor]):
    """Moments of an optimiser, "state/<number of the parameter>/<name>": like the parameter, before there are any."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters

    def __missing__(self, place: str) -> Tensor:
        return self.parameters[int(place.split("/")[1])].detach()


def _marks(state: Any) -> list[str]:
    if isinstance(state, Mapping):
        if state.keys() == {MARK}:
            return [state[MARK]]
        return [name for value in state.values() for name in _marks(value)]
    return []


def _filled(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(state, Mapping):
        if state.keys() == {MARK}:
            return tensors[state[MARK]]
        return {key: _filled(value, tensors) for key, value in state.items()}
    return state
