"""Which pictures of a prompt fit it best: their order by the cosine of a contrastive network.

Choosing the best of several by a CLIP is as old as text to image (Ramesh et al. 2021, section 2.6). A network that
guided a model or reads its prompts is no judge of its pictures: it finds all of them good.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from star.data.errors import InputError
from star.data.images import read_png, read_text
from star.eval.extractors.extractor import Extractor, TextExtractor, extractor
from star.eval.run.scoring import by_shape

PROMPT = "prompt"  # where a PNG of `star sample` says what it shows


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A picture, its prompt, how well it fits (the larger, the better), and its place among those of the prompt."""

    path: Path
    prompt: str
    score: float
    rank: int


def scorer(name: str, device: str | torch.device = "cpu") -> Extractor:
    """The network of a name that reads both pictures and prompts. Raises InputError for one that reads no prompts."""
    network = extractor(name, device)
    if not isinstance(network, TextExtractor):
        raise InputError(f"{name} reads no prompts, expected a CLIP: give clip-emoji, clip:DIR, pick:DIR or hps:DIR")
    return network


def pictures_in(places: Iterable[str | Path]) -> list[Path]:
    """Files as they are, of folders their PNGs by name. Raises InputError where one is missing, or there are none."""
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise InputError(f"{place} is missing, expected a PNG or a folder of them: correct the path")
        found += sorted(place.glob("*.png")) if place.is_dir() else [place]
    if not found:
        raise InputError("there are no PNGs in the folders that were given: give others")
    return list(dict.fromkeys(found))


def prompt_of(path: Path) -> str:
    """What a PNG says that it was drawn from; "" if it says nothing. Raises InputError for what is no picture."""
    return read_text(path).get(PROMPT, "")


def rank(pictures: Sequence[tuple[Path, str]], network: Extractor, batch: int = 64) -> list[Ranked]:
    """Pictures with their prompts, prompt by prompt as they were first given, the best of each first.

    What fits alike stays in the order given. Raises InputError for what cannot be read.
    """
    assert isinstance(network, TextExtractor)
    prompts = list(dict.fromkeys(prompt for _, prompt in pictures))
    row = {prompt: index for index, prompt in enumerate(prompts)}
    text_MD = network.texts(prompts)
    scores: list[float] = []
    for part in (pictures[first : first + batch] for first in range(0, len(pictures), batch)):
        loaded = [read_png(path) for path, _ in part]
        rows = by_shape(loaded, lambda pixels_B3HW, _: network(pixels_B3HW), network.width)
        scores += (torch.from_numpy(rows) * text_MD[[row[prompt] for _, prompt in part]]).sum(dim=1).tolist()
    # Rounded, since a picture's score depends on its batch in the seventh place.
    scored = [(path, prompt, round(score, 6)) for (path, prompt), score in zip(pictures, scores, strict=True)]
    ordered = sorted(scored, key=lambda one: (row[one[1]], -one[2]))
    return [
        Ranked(path=path, prompt=prompt, score=score, rank=place)
        for _, several in groupby(ordered, key=lambda one: one[1])
        for place, (path, prompt, score) in enumerate(several, start=1)
    ]
