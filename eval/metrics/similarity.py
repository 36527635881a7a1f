"""How near generated pictures come to real ones: `python -m star.eval.metrics.similarity RECORD.json --benchmark B
[--classifier NAME]`.

Style: whether a classifier names the same for a generated picture as it most often does for real ones of the style
asked for. Outline and colour: for pictures of one thing on white, whose outline is what is not white. Each generated
picture is compared with the real picture of its prompt and with real pictures of other prompts of the same style, which
say what is worth nothing: a blot in the middle overlaps with everything. The style is what the prompt says behind its
last comma. Pixel for pixel at 64 x 64, so a shape that is right in another place counts as wrong: numbers for models
that learnt these very designs.

N generated pictures, M real ones, S pixels a side, n others that each is compared with.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.files import READ_ERRORS
from star.data.images import pil_to_pixels, resize
from star.eval.extractors.extractor import Classifier, extractor
from star.eval.metrics.estimates import mean
from star.eval.run.generation import picture_of
from star.eval.run.layout import read_layout
from star.eval.run.pictures import decode_bounded, read_encoded
from star.eval.run.record import folder_of

SIDE = 64
WHITE = 235  # of 255; a pixel whose darkest channel is below is part of the thing
OTHERS = 20

Classify = Callable[[Tensor], Tensor]  # uint8 pictures (N, 3, S, S) to one integer label each, (N,)


def outlines(pixels_N3SS: Tensor) -> Tensor:
    """bool (N, S, S): what is not white in uint8 pictures (N, 3, S, S)."""
    return pixels_N3SS.amin(dim=1) < WHITE


def overlap(first_NSS: Tensor, second_NSS: Tensor) -> Tensor:
    """Intersection over union of outlines, (N,) in 0..1; 0 where both are empty."""
    union_N = (first_NSS | second_NSS).sum(dim=(1, 2))
    return (first_NSS & second_NSS).sum(dim=(1, 2)) / union_N.clamp(min=1)


def colours(pixels_N3SS: Tensor) -> Tensor:
    """Mean colour (N, 3) in 0..1 of what is not white; 0 where all is white."""
    inside_N1SS = outlines(pixels_N3SS).unsqueeze(1)
    total_N3 = (pixels_N3SS.float() / 255 * inside_N1SS).sum(dim=(2, 3))
    return total_N3 / inside_N1SS.sum(dim=(2, 3)).clamp(min=1)


def difference(first_N3: Tensor, second_N3: Tensor) -> Tensor:
    """Mean absolute difference of colours, (N,) in 0..1."""
    return (first_N3 - second_N3).abs().mean(dim=1)


def others(styles: Sequence[str], count: int, seed: int) -> dict[int, list[int]]:
    """For each picture so many others of its style, with repeats where there are few; without those that have none."""
    alike: dict[str, list[int]] = {}
    for i, name in enumerate(styles):
        alike.setdefault(name, []).append(i)
    chance = random.Random(seed)
    rivals = ((i, [j for j in alike[name] if j != i]) for i, name in enumerate(styles))
    return {i: chance.choices(row, k=count) for i, row in rivals if row}


def style(prompt: str) -> str:
    """What a prompt says behind its last comma."""
    return prompt.rpartition(",")[2].strip()


def named(generated_N: Tensor, real_M: Tensor, own: Sequence[int], styles: Sequence[str]) -> dict[str, Tensor]:
    """name -> 0 or 1, (N,): is the label that of most real pictures of the style; of generated and of their real ones.

    generated_N, real_M: labels. own: row of the real picture of each generated one. styles: of the M real ones.
    """
    labels: dict[str, Counter[int]] = {}
    for name, label in zip(styles, real_M.tolist(), strict=True):
        labels.setdefault(name, Counter())[label] += 1
    asked_N = torch.tensor([labels[styles[i]].most_common(1)[0][0] for i in own])
    return {"style named": (generated_N == asked_N).float(), "style named, real ones": (real_M[own] == asked_N).float()}


def compare(generated_N3SS: Tensor, real_M3SS: Tensor, rivals: Mapping[int, Sequence[int]]) -> dict[str, Tensor]:
    """name -> (N,): of the real picture, mean over the others, and the share of those that the real picture beats.

    rivals: row of the real picture of each generated one -> rows of the others, in the order of the generated ones.
    """
    own, columns_nN = list(rivals), torch.tensor(list(rivals.values())).T
    found = {}
    for name, describe, near, sign in (
        ("outline overlap", outlines, overlap, 1),
        ("colour difference", colours, difference, -1),
    ):
        generated, real = describe(generated_N3SS), describe(real_M3SS)
        own_N = near(generated, real[own])
        other_nN = torch.stack([near(generated, real[column_N]) for column_N in columns_nN])
        found[name] = own_N
        found[f"{name}, others of the style"] = other_nN.mean(dim=0)
        found[f"{name}, nearer than those"] = (sign * own_N > sign * other_nN).float().mean(dim=0)
    return found


def measure(record: Path, benchmark: Path, classify: Classify, *, seed: int = 0) -> dict[str, Tensor]:
    """What `named` and `compare` find for the pictures of a record. Raises InputError where there are too few."""
    folder = folder_of(record)
    items = [item for item in read_layout(benchmark) if picture_of(folder, item).is_file()]
    styles = [style(item.prompt) for item in items]
    rivals = others(styles, OTHERS, seed)
    if not rivals:
        raise InputError(f"{folder} holds no two pictures of one style of {benchmark}: name a record made with it")
    generated = torch.stack([_small(picture_of(folder, items[i])) for i in rivals])
    real = torch.stack([_small(item.picture) for item in items])
    return named(classify(generated), classify(real), list(rivals), styles) | compare(generated, real, rivals)


def by_classifier(name: str) -> Classify:
    """The style that a classifier sees. Raises InputError if the name is not that of one, or it knows no styles."""
    classifier = extractor(name)
    if not isinstance(classifier, Classifier) or not classifier.network.config.styles:
        raise InputError(f"{name} names no styles: give judge-emoji, or judge:DIR of one that learnt styles")
    return lambda pixels_N3SS: torch.cat(
        [classifier.logits(part)["style"].argmax(dim=1) for part in pixels_N3SS.split(64)]
    )


def _small(file: Traversable) -> Tensor:
    try:
        return pil_to_pixels(resize(decode_bounded(read_encoded(file)), (SIDE, SIDE)))
    except (InputError, *READ_ERRORS) as error:
        raise InputError(f"{file} cannot be read ({error}): remove or restore it, and run again") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the means with 95 % intervals."""
    parser = argparse.ArgumentParser(description="How near drawn pictures come to real ones: style, outline, colour.")
    parser.add_argument("record", type=Path, help="what `star eval --out` wrote, its pictures beside it")
    parser.add_argument("--benchmark", type=Path, required=True, help="the folder or zip with the real pictures")
    parser.add_argument("--classifier", default="judge-emoji", help="judge:DIR, or judge-emoji, the one that ships")
    options = parser.parse_args(arguments)
    try:
        found = measure(options.record, options.benchmark, by_classifier(options.classifier))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(next(iter(found.values())))} pictures")
    for name, values_N in found.items():
        value, interval = mean(values_N, 1000, 0, binary=name.startswith("style named"))
        around = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "no interval"
        print(f"{name:<42} {value:.3f} ({around})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
