"""CUDA graphs themselves: the recorder on a stand-in for torch.cuda, and what a GPU draws, where there is one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from star.data.text import TextFeatures
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.model import heads
from star.sampling.graphs import CudaRecorder, Graphs
from star.sampling.sampler import draw_codes
from star.tiny import tiny_tokenizer, tiny_transformer
from tests.star.sampling.emulated import OPTIONS, PROMPTS, Side, Tape


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What numpy sorts cannot be recorded; both sides do without."""
    monkeypatch.setattr(heads, "sorts_by_numpy", lambda logits: False)


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return tiny_text_encoder().encode(PROMPTS)


class Stream:
    """Of a GPU that is none: it remembers whom it waited for."""

    def __init__(self) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited.append(other)


class Event:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def wait(self, stream: Stream) -> None:
        self.calls.append("wait")

    def record(self, stream: Stream) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")


class Graph:
    def __init__(self) -> None:
        self.tape = Tape()

    def replay(self) -> None:
        self.tape.replay()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """torch.cuda in as far as CudaRecorder uses it, on tapes; the list holds the current stream."""
    current = [Stream()]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, current[0] = current[0], stream
        yield
        current[0] = before

    @contextmanager
    def graph(graph: Graph, *, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        with on(stream), graph.tape:
            yield

    def set_stream(stream: Stream) -> None:
        current[0] = stream

    fakes = {
        "device": lambda device: nullcontext(),
        "graph_pool_handle": lambda: "pool",
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "stream": on,
        "set_stream": set_stream,
        "current_stream": lambda device=None: current[0],
        "get_device_properties": lambda device: SimpleNamespace(total_memory=2**30),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return current


def test_cuda_graphs_are_recorded_on_a_stream_of_their_own(features: TextFeatures, streams: list[Stream]) -> None:
    recorder, usual = CudaRecorder(torch.device("cuda")), streams[0]
    side = Side(Graphs(recorder))
    side.check(features[:2], features[2:3], [1, 2])
    side.check(features[1:3], features[2:3], [3, 4])
    assert len(side.graphs) == 1
    assert streams == [usual]
    assert usual.waited == [recorder.stream]  # after the first run, before anything is recorded
    assert recorder.stream.waited == [usual]  # type: ignore[attr-defined]
    assert recorder._done.calls == ["wait", "record"] * 5  # type: ignore[attr-defined]
    side.graphs.check([side.transformer])
    assert len(side.graphs) == 0
    assert recorder._done.calls[-1] == "synchronize"  # type: ignore[attr-defined]


def test_a_stream_is_given_back_where_recording_fails(features: TextFeatures, streams: list[Stream]) -> None:
    recorder, usual, calls = CudaRecorder(torch.device("cuda")), streams[0], list[int]()

    def step() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record([step])
    assert streams == [usual]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_gpu_replays_what_it_draws(kind: torch.dtype) -> None:
    """The usual way, recording, and replays, in turn with other batches; all equal, whatever was asked for before."""
    device = torch.device("cuda")
    usual, recorded = (StarGenerator.untrained("d2-64", device, kind) for _ in range(2))
    recorded.transformer.load_state_dict(usual.transformer.state_dict())
    recorded.tokenizer.load_state_dict(usual.tokenizer.state_dict())
    recorded.text_encoder.load_state_dict(usual.text_encoder.state_dict())
    usual.graphs = "off"
    for mode in ("per-sample", "released"):
        for seeds in ([1], [1, 2], [3], [4, 5], [1], [1, 2], [6]):
            prompts, options = PROMPTS[: len(seeds)], replace(OPTIONS, top_k=900, cross_attention=mode)
            expected = usual.generate(prompts, seeds=seeds, options=options)
            assert torch.equal(recorded.generate(prompts, seeds=seeds, options=options), expected)
    graphs = recorded.recorded()
    assert graphs is not None
    assert len(graphs) == 6  # two modes of two sizes, and two decoders


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_no_scale_waits_for_a_gpu(mode: str, features: TextFeatures) -> None:
    """torch raises where an operator waits for the device. Nothing is recorded meanwhile."""
    device = torch.device("cuda")
    transformer, quantizer = tiny_transformer().to(device), tiny_tokenizer().quantizer.to(device)
    text, graphs = features.to(device), Graphs(CudaRecorder(device)) if mode == "auto" else None

    def draw(seed: int) -> Tensor:
        return draw_codes(transformer, quantizer, text[:2], text[2:3], seeds=[seed, 9], options=OPTIONS, graphs=graphs)[
            1
        ]

    expected = [draw(seed) for seed in (1, 1, 2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [draw(seed) for seed in (1, 2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[2])


@pytest.mark.gpu
def test_a_gpu_launches_a_graph_for_each_scale() -> None:
    from star.eval.run.launches import launches
    from star.eval.run.versus import Contender

    device = torch.device("cuda")
    generator = StarGenerator.untrained("d2-64", device, torch.bfloat16)
    side = Contender(name="ours", generator=generator, options=OPTIONS, dtype="bfloat16", device=device)
    counts = [launches(side, 1) for _ in range(3)]
    assert counts[2] < 0.5 * counts[0]  # what is left is the text tower's
    assert generator.recorded() is not None


@pytest.mark.gpu
def test_a_gpu_picks_what_a_cpu_picks() -> None:
    """Filters and picks of the same logits, but where a uniform lies within rounding of a border."""
    logits = 3 * torch.randn(4, 256, 4096, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(4, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for top_k, top_p in ((900, 0.95), (0, 0.9), (50, 0.0)):
        picked = [
            heads.pick(heads.filter_logits(logits.to(device), top_k, top_p), uniforms).cpu()
            for device in ("cpu", "cuda")
        ]
        assert (picked[0] != picked[1]).float().mean() < 0.01
