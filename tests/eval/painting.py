"""A benchmark in small: prompts that mean four colours, a generator that paints them, and a network that reads them.

A picture is four quadrants; the colours of a prompt are its hash: what a good model and a perfect scorer do is known.
`python -m tests.eval.painting BENCHMARK OUT` is an evaluation with a generator that takes its time.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from star.data.images import save_png
from star.eval.extractors.extractor import Extractor
from star.generators import registry
from star.generators.protocol import Conditioning, SampleOptions, check_request

SIDE = 16
CATEGORIES = ("animals", "food", "logo")
METRICS = ("fd/tiny", "kid/tiny", "clip_score/tiny", "prompt_rank_20/tiny")


def painted(prompt: str, seed: int, noise: float) -> Tensor:
    """pixels_3HW: the four colours of a prompt, each off by about `noise` of 255."""
    off = np.random.default_rng(seed).normal(0, noise, (3, 2, 2))
    colours_322 = (_colours(prompt) + torch.from_numpy(off)).clamp(0, 255).round().to(torch.uint8)
    return colours_322.repeat_interleave(SIDE // 2, 1).repeat_interleave(SIDE // 2, 2)


def _colours(prompt: str) -> Tensor:
    return torch.tensor(list(hashlib.sha256(prompt.encode()).digest()[:12])).double().view(3, 2, 2)


def make_benchmark(folder: Path, count: int) -> Path:
    """A folder in the MJHQ-30k layout."""
    meta = {}
    for number in range(count):
        key, category, prompt = f"{number:04x}", CATEGORIES[number % 3], f"picture number {number} of all"
        meta[key] = {"category": category, "prompt": prompt}
        save_png(painted(prompt, 10_000 + number, 8), folder / category / f"{key}.png")
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


class Tiny:
    """Mean colours of the quadrants, centred, as a direction; those that a prompt means, likewise."""

    name, width, digest, resize = "tiny", 12, "0" * 64, "none"

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        pooled_B322 = nn.functional.adaptive_avg_pool2d(pixels_B3HW.double(), 2)
        return nn.functional.normalize(pooled_B322.flatten(1) - 127.5).float()

    def texts(self, prompts: Sequence[str]) -> Tensor:
        return nn.functional.normalize(torch.stack([_colours(p).flatten() for p in prompts]) - 127.5).float()


def load(name: str, device: str) -> Extractor:
    assert name == "tiny"
    return Tiny()


class Painter(nn.Module):
    """Paints; stops like a killed one before picture `stop_at`, and takes `seconds` for each."""

    conditioning: Conditioning = "text"
    resolution = (SIDE, SIDE)
    stop_at: ClassVar[int | None] = None
    seconds: ClassVar[float] = 0.0
    painted: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Parameter(torch.tensor([8.0]), requires_grad=False)

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        check_request(self, prompts, seeds)
        if prompts[0] == "a":  # asked by who counts parameters
            return torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8).add(self.noise.to(torch.uint8).view(1, 1, 1, 1))
        pictures = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            if self.stop_at is not None and len(self.painted) == self.stop_at:
                raise KeyboardInterrupt
            time.sleep(self.seconds)
            self.painted.append(prompt)
            pictures.append(painted(prompt, seed, float(self.noise) * options.temperature))
        return torch.stack(pictures)

    @classmethod
    def for_test(cls) -> "Painter":
        return cls()


FAMILY = ("painter", "tests.eval.painting:Painter")


def main(benchmark: str, out: str, seconds: str) -> None:
    from star.eval.run.benchmark import EvaluationRequest, evaluate
    from star.eval.run.processes import join, leave

    Painter.seconds = float(seconds)
    registry.register_family(*FAMILY)
    request = EvaluationRequest(
        benchmark=Path(benchmark), out=Path(out), model="painter-test", metrics=METRICS, bootstrap=20, grid=4
    )
    evaluate(request, join("cpu"), load)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
