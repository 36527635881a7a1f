"""Text towers and tokenizers that need transformers: T5 encoders, and CLIPs that star.data.clip_text leaves to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging

from star.data.errors import InputError
from star.data.pretrained import SAFE, SAFE_MODEL, as_saved, check_size


def read_tower(folder: Path, model: Any, source: str | Path) -> Any:
    """The tower of a folder that was checked, its weights as stored; model: its class.

    Raises InputError where weights are missing.
    """
    with quiet_transformers():
        config = model.config_class.from_pretrained(folder, **SAFE)
        check_size(folder, lambda: model(config))
        tower, report = model.from_pretrained(folder, dtype="auto", output_loading_info=True, **SAFE_MODEL)
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise InputError(f"{source} lacks weights of its text tower, {missing[0]} first of {len(missing)}.")
    return tower


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that was checked."""
    with quiet_transformers():
        return as_saved(AutoTokenizer.from_pretrained(folder, **SAFE))


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
