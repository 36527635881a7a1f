"""Networks of transformers from folders that were checked: quietly, and never with weights that the files lack.

The library draws what is missing and says so in a warning; a score or a loss by such a network would be a lottery.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from star.data.errors import InputError
from star.data.pretrained import SAFE, SAFE_MODEL, check_size


def read_network(
    kind: Any,
    folder: Path,
    part: str,
    *,
    source: str | Path = "",
    dtype: Any = "auto",
    spare: Sequence[str] = (),
    **options: Any,
) -> Any:
    """A network with all weights of a folder, frozen, in evaluation mode.

    kind: its class, or AutoModel. part: what it is of its source, for messages ("its text tower"). dtype: as stored by
    default. spare: beginnings of names of what may be missing, since nobody reads it. options: for the constructor.
    Raises InputError where weights are missing; the library's own RuntimeError for weights of other shapes than the
    config tells, which `star.data.pretrained.loading` turns into one.
    """
    with quiet_transformers():
        if kind is AutoModel:
            config = AutoConfig.from_pretrained(folder, **SAFE)
            check_size(folder, lambda: AutoModel.from_config(config, trust_remote_code=False))
        else:
            config = kind.config_class.from_pretrained(folder, **SAFE)
            check_size(folder, lambda: kind(config, **options))
        network, report = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **SAFE_MODEL, **options)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(tuple(spare)))
    if missing:
        raise InputError(
            f"{source or folder} lacks weights of {part}, {missing[0]} first of {len(missing)}: get it again"
        )
    return network.eval().requires_grad_(False)


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
