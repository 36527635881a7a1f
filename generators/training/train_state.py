"""What a run tracks, to and from its checkpoints.

    snapshot = to_continue(run_folder, config, resume)               # None: a new run
    tracked = TrainState(accelerator, in_pieces=False)
    tracked.add(model=model, optimizer=optimizer)
    counters = tracked.restore(snapshot)                             # fills what is tracked, returns the rest
    tracked.save(checkpoints, step, counters, about, keep=2)         # by all processes together

The files themselves, written whole or not at all, are `snapshots.py`'s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from star.data.errors import InputError
from star.generators.config import differences
from star.generators.renamed import same_weights, translate_config
from star.generators.training import checkpoint as snapshots
from star.generators.training.ema import here

# Fields that may change between a run and its continuation: they change what is shown and kept, never what is learnt.
FREE_FIELDS = frozenset(
    {
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep",
        "trackers",
        "peak_tflops",
        "workers",
        "cache_gib",
        "log_samples",
    }
)
CHECKPOINTS = "checkpoints"  # in the folder of a run


class Stateful(Protocol):
    """What can be tracked: a network, an optimiser, an EMA, or anything else with these two."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def to_continue(out: Path, config: Mapping[str, Any], resume: bool) -> snapshots.Snapshot | None:
    """The newest checkpoint of the run in a folder; None if it has none.

    Raises InputError if there is one and `resume` is false, or `config` (plain values) differs from that of the run.
    """
    found = snapshots.snapshots(out / CHECKPOINTS)
    if not found:
        return None
    newest = found[-1]
    if not resume:
        raise InputError(
            f"{out} holds a run at step {newest.step}, expected an empty folder: continue it with --resume, "
            "or choose another folder"
        )
    changed = [
        (name, old, new)
        for name, old, new in differences(translate_config(newest.about()["config"]), config)
        if name.rsplit(".", 1)[-1] not in FREE_FIELDS
        and not (old is None and new == [])  # a field of later versions
        and not same_weights(name, old, new)
    ]
    if changed:
        told = "; ".join(f"{name} was {old!r} and is now {new!r}" for name, old, new in changed)
        raise InputError(
            f"{out} was begun with another config ({told}): set it back to continue, or choose another folder"
        )
    return newest


class TrainState:
    """Everything that changes while training, under names that stay the same."""

    def __init__(self, accelerator: Accelerator, *, in_pieces: bool) -> None:
        """in_pieces: parameters are cut over the processes, and each writes its own (`fsdp.py`)."""
        self.accelerator, self.in_pieces = accelerator, in_pieces
        self.items: dict[str, Stateful] = {}

    def add(self, **named: Stateful) -> None:
        """Raises ValueError for a name that is tracked already."""
        for name, item in named.items():
            if name in self.items:
                raise ValueError(f"{name!r} is tracked already")
            self.items[name] = item

    def restore(self, snapshot: snapshots.Snapshot) -> dict[str, Any]:
        """Loads a checkpoint into what is tracked, and returns the rest of it, which `save` was given as counters.

        Raises InputError if the names tracked now differ from those saved, or a state does not fit its object.
        """
        state = snapshot.state()
        states = state.pop("tracked")
        if set(states) != set(self.items):
            raise InputError(
                f"checkpoint {snapshot.path} holds {', '.join(sorted(states))}, this run keeps "
                f"{', '.join(sorted(self.items))}: continue it with the version that began it, or choose another folder"
            )
        bare = {name: self._bare(item) for name, item in self.items.items()}
        if (pieces := snapshot.path / "pieces").is_dir():
            from star.generators.training.fsdp import fill

            states = fill(states, bare, pieces)
        for name, item in bare.items():
            try:
                item.load_state_dict(states[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise InputError(f"{name} of checkpoint {snapshot.path} does not fit: {error}") from error
        return state

    def save(
        self, folder: Path, step: int, counters: Mapping[str, Any], about: Mapping[str, Any], *, keep: int
    ) -> None:
        """Writes a checkpoint; every process must ask for it, and none goes on before it is there.

        Raises InputError if the disk refuses.
        """
        self.accelerator.wait_for_everyone()
        states: dict[str, Any] = {name: self._bare(item).state_dict() for name, item in self.items.items()}
        is_main = self.accelerator.is_main_process
        if self.in_pieces:
            from star.generators.training import fsdp as sharding

            states, pieces = sharding.split(states)
            with snapshots.refusals(folder, step):
                if is_main:
                    snapshots.begin(folder, step)
                self.accelerator.wait_for_everyone()
                sharding.write(pieces, snapshots.unfinished(folder, step) / "pieces")
                if is_main:
                    snapshots.finish(folder, step, {"tracked": states, **counters}, about, keep)
        elif is_main:
            snapshots.write(folder, step, {"tracked": states, **counters}, about, keep)
        self.accelerator.wait_for_everyone()

    def not_finite(self) -> list[str]:
        """Names of the networks of which a weight is not finite; of one in pieces, in this process's pieces."""
        networks = {name: item for name, item in self.items.items() if isinstance(item, nn.Module)}
        weights = {name: [here(weight) for weight in item.parameters()] for name, item in networks.items()}
        return [
            name
            for name, found in weights.items()
            if found and not bool(torch.stack([weight.isfinite().all() for weight in found]).all())
        ]

    def _bare(self, item: Any) -> Any:
        return self.accelerator.unwrap_model(item) if isinstance(item, nn.Module) else item
