"""Named protocols: all that turns pictures into the numbers of a table, decided once and written into every record.

MJHQ FID moves by points with the size of the references, the filter of the resize and the network's own resize, so two
protocols never share a table. A protocol says which metrics (and so which networks), how large pictures are when the
networks see them, how many prompts, and which seed each picture has.

    emoji-64        The project's own benchmark: judge-emoji, which no training loss knows, and clip-emoji, at 64 x 64;
                    retrieval among the real pictures of a style, by judge-emoji and by thumbnails without a network;
                    subjects named right by judge-emoji, where they are known (star.eval.metrics.subjects).
    mjhq-30k        All 30,000 prompts, references as published, networks with an antialiased resize of their own. The
                    features of DINOv2 and CLIP agree with people better than Inception's (Stein et al. 2023).
    star-table      The table of Ma et al. 2024 (STAR), as the released evaluation does it: references bilinear to the
                    size of the generated pictures, PNG, pytorch-fid's Inception, cosine of CLIP ViT-L/14, one seed for
                    all pictures. Deviation: our pictures are rounded to 8 bits, theirs cut off.
    prompt-rank-20  How often CLIP finds a picture's own prompt among 20. Small, quick, for any model.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pil_to_pixels, pixels_to_pil, resize
from star.eval.run.layout import Item, prompts_digest
from star.eval.run.record import Protocol
from star.generators.registry import near

Size = tuple[int, int] | Literal["generated"] | None
ResizeRule = Literal["lanczos-antialias", "bilinear-antialias"]
SeedRule = Literal["by-id", "same"]

CLIP_L = "clip:openai/clip-vit-large-patch14"
DINO_L = "dino:facebook/dinov2-large"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """One row of the table below."""

    metrics: tuple[str, ...]  # "<kind>/<extractor>", see star.eval.metrics.registry
    size: Size  # (H, W) that networks see; "generated": references become as large; None: all stay
    resize: ResizeRule = "lanczos-antialias"  # after a central cut to the aspect of the size
    pictures: int | None = None  # prompts, evenly spread over the benchmark; None: all
    seeds: SeedRule = "by-id"
    bootstrap: int = 200  # resamples behind each interval


def _all_of(extractor: str, *kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}/{extractor}" for kind in kinds)


SET_KINDS = ("fd", "fd_infinity", "kid", "precision", "recall", "density", "coverage")

PROTOCOLS: dict[str, Rules] = {
    "emoji-64": Rules(
        metrics=_all_of("thumbnail", "retrieval_1", "retrieval_5")
        + _all_of("judge-emoji", "subject_1", "subject_5", "retrieval_1", "retrieval_5", *SET_KINDS)
        + _all_of("clip-emoji", "cmmd", "prompt_rank_20", "clip_score", "clip_score_100"),
        size=(64, 64),
    ),
    "mjhq-30k": Rules(
        metrics=_all_of(DINO_L, *SET_KINDS)
        + _all_of(CLIP_L, "cmmd", "clip_score", "clip_score_100")
        + _all_of("inception", "fid", "fd_infinity", "kid"),
        size=None,
        pictures=30_000,
    ),
    "star-table": Rules(
        metrics=_all_of("inception-pytorch-fid", "fid", "fd_infinity") + _all_of(CLIP_L, "clip_score"),
        size="generated",
        resize="bilinear-antialias",
        pictures=30_000,
        seeds="same",
    ),
    "prompt-rank-20": Rules(
        metrics=_all_of("clip-emoji", "prompt_rank_20", "clip_score"), size="generated", pictures=256, bootstrap=2000
    ),
}


def rules_of(name: str) -> Rules:
    """Raises InputError with near misses for an unknown name."""
    if name not in PROTOCOLS:
        raise InputError(f"there is no protocol {name!r}{near(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_of(
    name: str,
    rules: Rules,
    *,
    benchmark: str,
    items: Sequence[Item],
    references: str,
    size: tuple[int, int] | None,
    file_format: str,
    extractors: Mapping[str, str],
) -> Protocol:
    """What a record says about how it was made. references: digest of their files. extractors: name -> digest."""
    return Protocol(
        name=name,
        benchmark=benchmark,
        prompts=prompts_digest(items),
        references=references,
        pictures=len(items),
        reference_size=size,
        resize=rules.resize if size else "none",
        file_format=file_format,
        extractors=dict(sorted(extractors.items())),
    )


def seed_of(key: str, seed: int) -> int:
    """The seed of an item's picture: the same for every model, and whatever else is drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:6])


SEEDS: dict[SeedRule, Callable[[str, int], int]] = {"by-id": seed_of, "same": lambda key, seed: seed}


def resized(pixels_3HW: Tensor, size: tuple[int, int] | None, rule: ResizeRule) -> Tensor:
    """pixels_3HW at a protocol's size, cut centrally to its aspect; untouched if they have it already."""
    H, W = pixels_3HW.shape[-2:]
    if size is None or size == (H, W):
        return pixels_3HW
    picture = pixels_to_pil(pixels_3HW)
    if rule == "lanczos-antialias":
        return pil_to_pixels(resize(picture, size))
    scale = max(size[0] / H, size[1] / W)
    height, width = min(size[0] / scale, H), min(size[1] / scale, W)
    top, left = (H - height) / 2, (W - width) / 2
    # PIL's filters widen with the scale, which is the antialiasing; torch's interpolate has none unless asked
    cut = (left, top, left + width, top + height)
    return pil_to_pixels(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=cut))
