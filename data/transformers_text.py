"""Text towers and tokenizers that need transformers: T5 encoders, and CLIPs that star.data.clip_text leaves to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
from transformers.utils import logging

from star.data.errors import InputError
from star.data.pretrained import SAFE, SAFE_MODEL, check_size

TOWERS: dict[str, Any] = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}


def read_tower(folder: Path, kind: str, source: str | Path) -> Any:
    """The tower of a folder that was checked, its weights as stored. Raises InputError where some are missing."""
    with quiet_transformers():
        config = TOWERS[kind].config_class.from_pretrained(folder, **SAFE)
        check_size(folder, lambda: TOWERS[kind](config))
        tower, report = TOWERS[kind].from_pretrained(folder, dtype="auto", output_loading_info=True, **SAFE_MODEL)
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise InputError(f"{source} lacks weights of its text tower, {missing[0]} first of {len(missing)}.")
    return tower


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that was checked."""
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(folder, **SAFE)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no list of unused weights while loading; what matters of it is checked and raised here."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
