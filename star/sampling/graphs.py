"""Passes that are recorded once and replayed: on a GPU each scale of a picture is then one launch instead of hundreds.

    graphs = Graphs(CudaRecorder(device))
    results = graphs.run(key, make, values)   # None: draw it in the usual way

A CUDA graph is a list of kernels with the addresses that they read and write. So a `Program` owns memory for what goes
in; what comes out lies where it lay when the program was recorded, until the next run. Values that change from picture
to picture (text, uniform numbers, strengths, temperatures) go in as tensors; all that decides which kernels run is the
key. Programs are recorded when a key comes the second time, since recording costs as much as some pictures. All of one
`Graphs` share their memory for what is in between, and run one at a time, whatever thread asks.

`Called` records nothing and calls the steps anew: the same path without a GPU.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

GraphMode = Literal["auto", "off"]
Step = Callable[[], None]
MOST, SHARE = 8, 0.25  # programs that are kept, and the share of a GPU's memory that their fixed memory may take
logger = logging.getLogger(__name__)


class Program(Protocol):
    """A computation in steps, on memory of its own."""

    @property
    def inputs(self) -> Sequence[Tensor]:
        """What is copied in before a run."""
        ...

    def steps(self) -> Sequence[Step]:
        """In their order; each reads the inputs and what the steps before it left."""
        ...

    def results(self) -> tuple[Tensor, ...]:
        """What the steps left, where it lies."""
        ...


class Recorder(Protocol):
    """Makes replays of steps, and keeps runs of several threads apart."""

    def record(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Runs nothing that counts; afterwards the replays, in their order, do what the steps do."""
        ...

    def begin(self) -> None:
        """Before a run: waits, on the device, for the one before."""
        ...

    def end(self) -> None:
        """After a run."""
        ...

    def wait(self) -> None:
        """Until all runs are over, before what they use is let go."""
        ...

    @property
    def bytes(self) -> int | None:
        """Of the device's memory."""
        ...


class Called:
    """Calls the steps anew: for a CPU."""

    bytes: int | None = None

    def record(self, steps: Sequence[Step]) -> Sequence[Step]:
        """The steps."""
        return steps

    def begin(self) -> None:
        """Nothing to wait for."""

    def end(self) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing runs."""


class CudaRecorder:
    """CUDA graphs on a stream of their own, with one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.pool, self.stream, self._done = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), torch.cuda.Event()

    @property
    def bytes(self) -> int:
        """Of the GPU."""
        return torch.cuda.get_device_properties(self.device).total_memory

    def record(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Each step as a graph, after one run in which libraries set up what they cannot set up while recording."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                for step in steps:
                    step()
            current.wait_stream(self.stream)
            try:
                return [self._graph(step).replay for step in steps]
            finally:
                torch.cuda.set_stream(current)  # which a failure leaves as it was while recording

    def _graph(self, step: Step) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            step()
        return graph

    def begin(self) -> None:
        """The current stream waits for the last run, which another thread may have asked of another stream."""
        self._done.wait(torch.cuda.current_stream(self.device))

    def end(self) -> None:
        """Marks the place that the next run waits for."""
        self._done.record(torch.cuda.current_stream(self.device))

    def wait(self) -> None:
        """Until the last run is over."""
        self._done.synchronize()


@dataclass(frozen=True, slots=True)
class _Recorded:
    program: Program
    replays: Sequence[Step]
    size: int


class Graphs:
    """Recorded programs by their keys: the last used `most` of them."""

    def __init__(self, recorder: Recorder, *, most: int = MOST, share: float = SHARE, after: int = 1) -> None:
        """share: of the device's memory, above which a program's fixed memory is not held. after: uses before it is
        recorded."""
        self.recorder, self.most, self.share, self.after = recorder, most, share, after
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._uses: OrderedDict[Hashable, int] = OrderedDict()
        self._refused: set[Hashable] = set()
        self._addresses: tuple[int, ...] = ()
        self._told: set[str] = set()
        self._lock = Lock()

    def run(
        self, key: Hashable, make: Callable[[], Program], values: Sequence[Tensor], *, size: int = 0
    ) -> tuple[Tensor, ...] | None:
        """Copies of the results for these inputs; None where the caller has to compute them itself.

        make: builds the program of the key. size: bytes that it holds between runs. A program that cannot be recorded
        is told once, and never tried again.
        """
        with self._lock, torch.inference_mode():
            if key not in self._recorded and not self._record(key, make, values, size):
                return None
            self._recorded.move_to_end(key)
            recorded = self._recorded[key]
            self.recorder.begin()
            _load(recorded.program, values)
            for number, replay in enumerate(recorded.replays):
                self.replay(number, replay)
            results = tuple(result.clone() for result in recorded.program.results())
            self.recorder.end()
            return results

    def replay(self, _number: int, step: Step) -> None:
        """One step of a run; a place for whoever measures time."""
        step()

    def check(self, networks: Sequence[nn.Module]) -> None:
        """Forgets everything if parameters or buffers have moved since the last call: graphs know their addresses."""
        addresses = tuple(
            tensor.data_ptr() for network in networks for tensor in (*network.parameters(), *network.buffers())
        )
        with self._lock:
            if self._addresses != addresses:
                self.recorder.wait()
                self._recorded.clear()
                self._addresses = addresses

    def tell(self, reason: str) -> None:
        """Says once why something is drawn without graphs."""
        if reason not in self._told:
            self._told.add(reason)
            logger.info("no CUDA graphs are used while %s", reason)

    def __len__(self) -> int:
        return len(self._recorded)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        return Graphs(self.recorder, most=self.most, share=self.share, after=self.after)

    def _record(self, key: Hashable, make: Callable[[], Program], values: Sequence[Tensor], size: int) -> bool:
        """Whether the program is there now."""
        self._uses[key] = uses = self._uses.pop(key, 0) + 1
        while len(self._uses) > 64 * self.most:
            self._uses.popitem(last=False)
        room = None if self.recorder.bytes is None else self.share * self.recorder.bytes
        if uses <= self.after or key in self._refused:
            return False
        if room is not None and size > room:
            self.tell(
                f"a batch holds {size / 2**30:.1f} GiB, more than the {room / 2**30:.1f} that are set aside for them"
            )
            return False
        while self._recorded and (
            len(self._recorded) >= self.most or (room is not None and self._held() + size > room)
        ):
            self.recorder.wait()
            self._recorded.popitem(last=False)
        try:
            program = make()
            _load(program, values)  # what lies there by chance may be no input at all
            self._recorded[key] = _Recorded(program, self.recorder.record(program.steps()), size)
        except RuntimeError as error:  # of CUDA, a library that cannot be recorded, or memory that is not enough
            self._refused.add(key)
            self._recorded.clear()
            logger.warning("no CUDA graphs are used for a batch of this shape: %s", str(error).partition("\n")[0])
            return False
        return True

    def _held(self) -> int:
        return sum(recorded.size for recorded in self._recorded.values())


def _load(program: Program, values: Sequence[Tensor]) -> None:
    for fixed, value in zip(program.inputs, values, strict=True):
        fixed.copy_(value, non_blocking=True)
