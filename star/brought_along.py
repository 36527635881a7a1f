"""What a STAR model directory says of its generator, and brings along: text encoder and wordings."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from star.clip.wordings import Expansion
from star.data.errors import InputError
from star.data.text import TextEncoder
from star.generators.config import LONGEST, UNLESS_DEFAULT, check_ranges
from star.generators.pretrained import ModelDirectory, sha256
from star.model.refiner import RefinerConfig
from star.model.transformer import TransformerConfig
from star.sampling.sampler import CrossAttentionMode

WORDINGS = "wordings.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StarConfig:
    """What a model directory says about its generator; see sampler.draw_codes for the two in the middle.

    aspects: as "3:2", width:height, of the pictures that it learnt from; empty: squares. wordings: sha256 of the file
    wordings.json (star.clip.wordings); empty: there is none. completion: rank of star.completion's addition; 0: none.
    """

    transformer: TransformerConfig
    cross_attention: CrossAttentionMode = "per-sample"
    unguided_last: int = 0
    refiner: RefinerConfig | None = None
    aspects: tuple[str, ...] = ()
    wordings: str = ""
    completion: int = field(default=0, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        check_ranges(self, unguided_last=(0, LONGEST), completion=(0, LONGEST))
        if len(self.aspects) > LONGEST:
            raise ValueError(f"{len(self.aspects)} aspects are given, expected at most {LONGEST}; drop some")
        for aspect in self.aspects:
            self.transformer.schedule.of_aspect(aspect)


def read_expansion(directory: ModelDirectory, digest: str) -> Expansion | None:
    """wordings.json, whose sha256 the config names; None where it names none. Raises InputError for another one."""
    if not digest:
        return None
    file = directory.path / WORDINGS
    if file.is_file() and sha256(file) != digest:
        raise InputError(f"{file} is not the one that the model came with: get the model again")
    return Expansion.read(file)


def read_text_encoder(directory: ModelDirectory, device: str | torch.device, dtype: torch.dtype | None) -> TextEncoder:
    """The text encoder that it refers to. Raises InputError that says where it was looked for."""
    place = directory.resolve("text_encoder")
    try:
        return TextEncoder.from_pretrained(place, device=device, dtype=dtype)
    except InputError as error:
        where = Path(os.path.normpath(directory.path / directory.references["text_encoder"].location))
        reason = str(error).removesuffix(".")
        raise InputError(f"{reason}; {directory.path} looks for it at {where} before it asks the hub") from error
