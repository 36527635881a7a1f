"""Records made on the spot, with pictures, for the tests of comparison and report."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from star.data.images import save_png
from star.eval.run.record import Estimate, Measured, Picture, Protocol, Record, Speed, write, write_pictures

CATEGORIES = ("animals", "food", "logo")
SCORE = "clip_score/clip-emoji"
PROMPTS = {f"{number:04x}": f"picture number {number} of all" for number in range(12)}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


PROTOCOL = Protocol(
    name="emoji-mjhq",
    benchmark="emoji-mjhq",
    prompts=digest("prompts"),
    references=digest("references"),
    pictures=12,
    reference_size=(64, 64),
    resize="lanczos-antialias",
    extractors={"judge-emoji": digest("judge"), "clip-emoji": digest("clip")},
)


def estimate(value: float, width: float | None = 1.0, pictures: int = 12) -> Estimate:
    if width is None:
        return Estimate(value=value, pictures=pictures)
    return Estimate(value=value, low=value - width, high=value + width, pictures=pictures)


def metrics(fd: float, rank: float) -> dict[str, dict[str, Estimate]]:
    groups = {}
    for place, group in enumerate(("overall", *CATEGORIES)):
        pictures = 30 if place else 12  # as many as a category needs to be ranked
        groups[group] = {
            "fd/judge-emoji": estimate(fd + place, pictures=pictures),
            SCORE: estimate(rank / 2, 0.01, pictures),
            "prompt_rank_20/clip-emoji": estimate(rank, 0.05, pictures),
        }
    return groups


def speed(batch: int, total: float) -> Speed:
    return Speed(
        batch=batch,
        total=total,
        text=total / 10,
        generator=total / 2,
        decoder=total * 0.4,
        repetitions=5,
        peak_bytes=300 * 2**20,
        device="CPU (of the test)",
        threads=1,
    )


def record(model: str = "one", fd: float = 30.0, rank: float = 0.5, **changes: Any) -> Record:
    """changes: fields of the protocol."""
    return Record(
        protocol=replace(PROTOCOL, **changes),
        measured=Measured(
            name=model, source="model", digest=digest(model), family="star", parameters=1_234_567, resolution=(64, 64)
        ),
        metrics=metrics(fd, rank),
        speed=(speed(1, fd / 100), speed(8, fd / 200)),
    )


def save(folder: Path, *records: Record, prompts: dict[str, str] = PROMPTS) -> list[Path]:
    """Writes <name>.json of each, its pictures and their scores."""
    paths = []
    for number, one in enumerate(records):
        path = folder / f"{number}.json"
        write(one, path)
        for place, key in enumerate(prompts):
            pixels_3HW = torch.full((3, 8, 8), (20 * place + number) % 256, dtype=torch.uint8)
            save_png(pixels_3HW, path.with_suffix("") / "pictures" / f"{key}.png")
        pictures = (
            Picture(key=key, category=CATEGORIES[place % 3], prompt=prompt, scores={SCORE: place / 100})
            for place, (key, prompt) in enumerate(prompts.items())
        )
        write_pictures(pictures, path)
        paths.append(path)
    return paths
