"""What an evaluation costs by the number of pictures: `python -m star.eval.run.scaling`, on folders made on the spot.

Pictures and references are read, decoded, seen by a network of no weight (so that the harness is what is measured), and
scored. Each count runs in a process of its own, whose peak memory is that of the whole evaluation.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from star.data.images import save_png
from star.eval.extractors.extractor import Extractor
from star.eval.run.benchmark import EvaluationRequest, evaluate
from star.eval.run.processes import Processes

CATEGORIES = 10
METRICS = ("fd/means", "fd_infinity/means", "clip_score/means")


class Means:
    """Mean colours of a 4 x 4 grid; of prompts, anything."""

    name, width, digest, resize = "means", 48, "means", "none"

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels_B3HW.float(), 4).flatten(1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.ones(len(prompts), self.width)


def make(folder: Path, count: int, side: int) -> None:
    """A benchmark in folder/benchmark and pictures for it in folder/drawn, of noise."""
    meta = {}
    for number in range(count):
        key, category = f"{number:06d}", f"category-{number % CATEGORIES}"
        meta[key] = {"category": category, "prompt": f"picture {number}"}
        generator = torch.Generator().manual_seed(number)
        for place in (folder / "benchmark" / category, folder / "drawn"):
            pixels_3HW = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
            save_png(pixels_3HW, place / f"{key}.png")
    (folder / "benchmark" / "meta_data.json").write_text(json.dumps(meta), encoding="utf-8")


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds, and peak memory in MiB of an evaluation in this process."""
    start, used = time.monotonic(), time.process_time()
    request = EvaluationRequest(
        benchmark=folder / "benchmark", external=folder / "drawn", out=folder / "record.json", metrics=METRICS, grid=0
    )
    evaluate(request, Processes(), _load)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return time.monotonic() - start, time.process_time() - used, peak


def _load(name: str, device: str) -> Extractor:
    return Means()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 3000, 10_000, 30_000], metavar="N")
    parser.add_argument("--side", type=int, default=16, metavar="PIXELS")
    args = parser.parse_args()
    print("| pictures | seconds | processor seconds | ms per picture | peak MiB |\n|---|---|---|---|---|")
    for count in args.counts:
        with tempfile.TemporaryDirectory() as folder, get_context("spawn").Pool(1) as pool:
            make(Path(folder), count, args.side)
            seconds, used, peak = pool.apply(measure, (Path(folder),))
        print(f"| {count:,} | {seconds:.1f} | {used:.1f} | {1000 * used / count:.2f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
