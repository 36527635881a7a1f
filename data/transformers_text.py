"""Text towers and tokenizers that need transformers: T5 encoders, and CLIPs that star.data.clip_text leaves to it."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from star.data.pretrained import SAFE, as_saved
from star.data.transformers_network import quiet_transformers, read_network


def read_tower(folder: Path, model: Any, source: str | Path) -> Any:
    """The tower of a folder that was checked, its weights as stored; model: its class.

    Raises InputError where weights are missing.
    """
    return read_network(model, folder, "its text tower", source=source)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that was checked."""
    with quiet_transformers():
        return as_saved(AutoTokenizer.from_pretrained(folder, **SAFE))
