"""What a STAR model directory brings along or refers to beside the transformer: text encoder and wordings."""

import os
from pathlib import Path

import torch

from star.clip.wordings import Expansion
from star.data.errors import InputError
from star.data.text import TextEncoder
from star.generators.pretrained import ModelDirectory

WORDINGS = "wordings.json"


def read_expansion(directory: ModelDirectory, digest: str) -> Expansion | None:
    """wordings.json, whose sha256 the config names; None where it names none. Raises InputError for another one."""
    if not digest:
        return None
    expansion = Expansion.read(directory.path / WORDINGS)
    if expansion.digest != digest:
        raise InputError(f"{directory.path / WORDINGS} is not the one that the model came with: get the model again")
    return expansion


def read_text_encoder(directory: ModelDirectory, device: str | torch.device, dtype: torch.dtype | None) -> TextEncoder:
    """The text encoder that it refers to. Raises InputError that says where it was looked for."""
    place = directory.resolve("text_encoder")
    try:
        return TextEncoder.from_pretrained(place, device=device, dtype=dtype)
    except InputError as error:
        where = Path(os.path.normpath(directory.path / directory.references["text_encoder"].location))
        reason = str(error).removesuffix(".")
        raise InputError(f"{reason}; {directory.path} looks for it at {where} before it asks the hub") from error
