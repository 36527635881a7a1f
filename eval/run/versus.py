"""Two ways to draw the same prompts, in turn: A B A B ..., so that a machine whose speed drifts is fair to both.

first, second = contender("star-emoji", place), contender("star-emoji@baseline", place)
versus = alternate(first, second, ["a red apple"], batch=1, repetitions=5)
versus.ratio  # how many times as long the second takes, median over pairs
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from star.data.errors import InputError
from star.generators import registry
from star.generators.measuring import now
from star.generators.placement import UNTRAINED, dtype_name, placed
from star.generators.protocol import Generator, SampleOptions

BASELINE = "baseline"
EAGER = "eager"  # without CUDA graphs
SETTINGS = ("float32", "bfloat16", BASELINE, EAGER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A model in one setting, ready to draw."""

    name: str
    generator: Generator
    options: SampleOptions
    dtype: str
    device: torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Seconds a picture of every repetition, and of each scale in the transformer (medians; none where it has none)."""

    name: str
    dtype: str
    seconds: tuple[float, ...]
    scales: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Seconds a picture."""
        return median(self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Versus:
    """What was measured in turn. batch: pictures at once."""

    first: Side
    second: Side
    batch: int
    device: str

    @property
    def ratios(self) -> tuple[float, ...]:
        """Time of the second over that of the first, pair by pair."""
        return tuple(two / one for one, two in zip(self.first.seconds, self.second.seconds, strict=True))

    @property
    def ratio(self) -> float:
        """Median of `ratios`."""
        return median(self.ratios)


def split(name: str) -> tuple[str, str]:
    """Model and setting of "model@setting"; the setting is "" where none is given."""
    model, _, setting = name.rpartition("@")
    return (model, setting) if model and setting in SETTINGS else (name, "")


def rival(name: str, against: str) -> str:
    """The second contender: a setting of the first model, or a model of its own."""
    return f"{split(name)[0]}@{against}" if against in SETTINGS else against


def contender(name: str, device: str | None, dtype: str) -> Contender:
    """Loads "model" or "model@setting". dtype: where no setting says it. Raises InputError for what there is not."""
    model, setting = split(name)
    asked = {"": dtype, EAGER: dtype, BASELINE: "float32"}.get(setting, setting)
    place = placed(device, asked, model)
    generator: Any = load(model, place.device, place.dtype)
    if setting == BASELINE:
        if not hasattr(generator, "baseline"):
            raise InputError(f"{model} has no baseline, expected a next-scale model: give another setting")
        generator = generator.baseline()
    if setting == EAGER:
        without_graphs(generator)
    options = SampleOptions() if model.startswith(UNTRAINED) else registry.recommended(model)
    return Contender(
        name=name,
        generator=generator,
        options=options,
        dtype=dtype_name(place.dtype),
        device=torch.device(place.device),
    )


def load(model: str, device: str, dtype: torch.dtype) -> Generator:
    """A model by name, folder or hub id, or "untrained:d16-256", see star.untrained."""
    if model.startswith(UNTRAINED):
        family: Any = registry.family("star")
        generator: Generator = family.untrained(model.removeprefix(UNTRAINED), device, dtype)
        return generator
    return registry.build(model, device=device, dtype=dtype)


def alternate(
    first: Contender, second: Contender, prompts: Sequence[str], *, batch: int = 1, repetitions: int = 5
) -> Versus:
    """Both in turn, after one picture each that does not count, or as many as it takes until graphs are recorded.

    Scales are timed in the same pictures on a CPU, and on a GPU in others: there each reading waits for all work.
    """
    found: dict[int, list[float]] = {0: [], 1: []}
    scales: dict[int, list[tuple[float, ...]]] = {0: [], 1: []}
    for call in range(-max(map(warmups, (first.generator, second.generator))), repetitions):
        chosen = [prompts[(max(call, 0) * batch + i) % len(prompts)] for i in range(batch)]
        for side, one in enumerate((first, second)):
            if one.device.type != "cpu":
                start = now(one.device)
                one.generator.generate(chosen, seeds=range(batch), options=one.options)
                seconds = now(one.device) - start
            with scale_times(one) as spent:
                start = now(one.device)
                one.generator.generate(chosen, seeds=range(batch), options=one.options)
                seconds = now(one.device) - start if one.device.type == "cpu" else seconds
            if call >= 0:
                found[side].append(seconds / batch)
                scales[side].append(tuple(value / batch for _, value in sorted(spent.items())))
    sides = [
        Side(
            name=one.name,
            dtype=one.dtype,
            seconds=tuple(found[side]),
            scales=tuple(map(median, zip(*scales[side], strict=True))),
        )
        for side, one in enumerate((first, second))
    ]
    return Versus(first=sides[0], second=sides[1], batch=batch, device=str(first.device))


@contextmanager
def scale_times(one: Contender) -> Iterator[dict[int, float]]:
    """Seconds in the blocks of a next-scale transformer by the tokens of each scale, while the context lasts.

    Where scales are replayed, those of each scale as a whole, by its number.
    """
    spent: dict[int, float] = {}
    transformer: Any = getattr(one.generator, "transformer", None)
    graphs: Any = one.generator.recorded() if hasattr(one.generator, "recorded") else None
    if graphs is not None:
        with _replays_timed(graphs, one.device, spent):
            yield spent
        return
    if not hasattr(transformer, "run_blocks"):
        yield spent
        return
    work = transformer.run_blocks

    def timed(x_BlC: Any, *args: Any, **named: Any) -> Any:
        start = now(one.device)
        result = work(x_BlC, *args, **named)
        tokens = x_BlC.shape[1]
        spent[tokens] = spent.get(tokens, 0.0) + now(one.device) - start
        return result

    transformer.run_blocks = timed  # of this object alone
    try:
        yield spent
    finally:
        del transformer.run_blocks


@contextmanager
def _replays_timed(graphs: Any, device: torch.device, spent: dict[int, float]) -> Iterator[None]:
    """Number 0 is what comes before the first scale, or the decoder."""
    replay = graphs.replay

    def timed(number: int, step: Any) -> None:
        start = now(device)
        replay(number, step)
        if number:
            spent[number] = spent.get(number, 0.0) + now(device) - start

    graphs.replay = timed
    try:
        yield
    finally:
        del graphs.replay


def without_graphs(generator: Any) -> None:
    """Draws with it kernel by kernel from now on; of a family without graphs it means nothing."""
    if hasattr(generator, "graphs"):
        generator.graphs = "off"


def warmups(generator: Generator) -> int:
    """Pictures of a shape after which a generator draws as it will go on."""
    recorded = getattr(generator, "recorded", None)
    return 1 if recorded is None or recorded() is None else 2
