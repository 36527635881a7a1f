"""How long a generator takes for a picture, where the time goes, and how much memory it needs at its peak.

    for speed in measure_speed(build("star-emoji"), ["a red apple"], batch_sizes=(1, 8)):
        print(speed.batch, speed.total, speed.text, speed.generator, speed.decoder)

Time is taken on the wall clock around the whole of `generate`, from prompts to pixels on the CPU, after warm-up, with
the device synchronised at every reading. Parts are timed by wrapping the methods that do them (`PARTS`) while the
measurement lasts; what is left over is the generator's own. A family without a part spends 0 seconds in it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch

from star.data.errors import InputError
from star.eval.run.record import Speed
from star.generators.measuring import device_name, peak, reset_peak
from star.generators.protocol import Generator, SampleOptions

PARTS = {  # part of the time: attribute of the generator, and the method that does the work
    "text": ("text_encoder", "encode"),
    "decoder": ("tokenizer", "latent_to_pixels"),
}


def measure_speed(
    generator: Generator,
    prompts: Sequence[str],
    batch_sizes: Sequence[int] = (1, 8),
    repetitions: int = 5,
    warmup: int = 1,
    options: SampleOptions = SampleOptions(),
) -> tuple[Speed, ...]:
    """One Speed for every batch size; prompts are taken in turn, and again from the first when they run out.

    warmup: calls before the first that counts, at each batch size. Seconds are medians over repetitions; those of the
    generator are the rest of the total, so that the three parts add up. Raises InputError for numbers below 1, or no
    prompts.
    """
    if not prompts or not batch_sizes or min(*batch_sizes, repetitions) < 1 or warmup < 0:
        raise InputError(
            f"{len(prompts)} prompts, batch sizes {', '.join(map(str, batch_sizes)) or 'none'}, {repetitions} "
            f"repetitions and {warmup} warm-up calls were given, expected at least 1, 1, 1 and 0: correct them"
        )
    device = torch.device(getattr(generator, "device", "cpu"))
    return tuple(_measure(generator, prompts, size, repetitions, warmup, options, device) for size in batch_sizes)


def _measure(
    generator: Generator,
    prompts: Sequence[str],
    size: int,
    repetitions: int,
    warmup: int,
    options: SampleOptions,
    device: torch.device,
) -> Speed:
    spent: dict[str, float] = {}
    totals: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    with ExitStack() as wrapped:
        for part, (attribute, method) in PARTS.items():
            owner = getattr(generator, attribute, None)
            if hasattr(owner, method):
                wrapped.enter_context(_timed(owner, method, spent, part, device))
        for call in range(-warmup, repetitions):
            if call == 0:
                reset_peak(device)
            chosen = [prompts[(max(call, 0) * size + i) % len(prompts)] for i in range(size)]
            spent.update(dict.fromkeys(PARTS, 0.0))
            start = _now(device)
            generator.generate(chosen, seeds=range(size), options=options)
            total = _now(device) - start
            if call >= 0:
                totals.append(total / size)
                for part, seconds in spent.items():
                    parts[part].append(seconds / size)
    total, text, decoder = median(totals), median(parts["text"]), median(parts["decoder"])
    return Speed(
        batch=size,
        total=total,
        text=text,
        generator=max(0.0, total - text - decoder),
        decoder=decoder,
        repetitions=repetitions,
        peak_bytes=peak(device),
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        kernels=getattr(generator, "kernels", tuple)(),
    )


@contextmanager
def _timed(owner: Any, method: str, spent: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    """Adds the seconds of every call of owner.method to spent[part], for as long as the context lasts."""
    work: Callable[..., Any] = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = _now(device)
        try:
            return work(*args, **kwargs)
        finally:
            spent[part] += _now(device) - start

    setattr(owner, method, timed)  # of this object alone: it hides the method of the class
    try:
        yield
    finally:
        delattr(owner, method)


def _now(device: torch.device) -> float:
    """The wall clock, once everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
