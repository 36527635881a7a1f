"""A CUDA graph in miniature for a CPU: operators are written down with what they read and write, then called again.

What Python does in between is not repeated: a number that comes from the host stays what it was when it was recorded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from star.data.text import TextFeatures
from star.generators.protocol import SampleOptions
from star.sampling.graphs import Graphs, Step
from star.sampling.sampler import draw_codes
from star.tiny import tiny_tokenizer, tiny_transformer

OPTIONS = SampleOptions(guidance_scale=4.0, top_k=9, top_p=0.9)
PROMPTS = ["a red circle", "a blue square on a green table", "", "five cats"]

HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class Tape(TorchDispatchMode):
    """Operators in their order. Raises AssertionError for one that a graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in HOST, f"{function} asks the device"
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Every operator again, into the memory that its results had."""
        for function, args, kwargs, results in self.calls:
            given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
            if all(tensor.untyped_storage().data_ptr() in given for tensor in _tensors(results)) and not any(
                one.alias_info is not None and one.alias_info.is_write for one in function._schema.returns
            ):
                continue  # a view
            if function is torch.ops.aten.empty.memory_format:
                results.fill_(torch.nan if results.is_floating_point() else 0)
                continue
            again = function(*args, **kwargs)
            for old, new in zip(_tensors(results), _tensors(again), strict=True):
                if old is not new:  # not in place
                    old.copy_(new)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Emulated:
    """The recorder."""

    bytes: int | None = None

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.runs = 0

    def record(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Each step as a tape, after a run that does not count."""
        for step in steps:
            step()
        replays = []
        for step in steps:
            tape = Tape()
            with tape:
                step()
            self.tapes.append(tape)
            replays.append(tape.replay)
        return replays

    def begin(self) -> None:
        """Counts."""
        self.runs += 1

    def end(self) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing runs."""


class Side:
    """A network that is drawn with in both ways."""

    def __init__(self, graphs: Graphs, *, bits: bool = False, **changes: Any) -> None:
        self.graphs = graphs
        kind: dict[str, Any] = {"bits": 4, "vocabulary": 2} if bits else {}
        self.transformer, self.quantizer = tiny_transformer(**kind, **changes), tiny_tokenizer(bits=bits).quantizer

    def check(self, text: TextFeatures | Tensor, null: TextFeatures | Tensor, seeds: list[int], **how: Any) -> None:
        """Both ways, and that the recorded one was one."""
        given: dict[str, Any] = {"options": OPTIONS, "batch": len(seeds)} | how
        expected, latent = draw_codes(self.transformer, self.quantizer, text, null, seeds=seeds, **given)
        for _ in range(3):  # the usual way, recorded, replayed
            found, found_latent = draw_codes(
                self.transformer, self.quantizer, text, null, seeds=seeds, graphs=self.graphs, **given
            )
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert torch.equal(found_latent, latent)
