"""What a STAR model directory brings along or refers to beside the transformer: text encoder and wordings."""

import os
from pathlib import Path

import torch

from star.clip.wordings import Expansion
from star.data.errors import InputError
from star.data.text import TextEncoder
from star.generators.pretrained import ModelDirectory, sha256

WORDINGS = "wordings.json"


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
