"""STAR: next-scale autoregression from a prompt to a picture, and the command line.

    import star

    pipe = star.load("star-emoji")
    pipe("a blue fish", seed=3).images[0].save("fish.png")

Importing it loads nothing heavy; `load` does.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from star.pipeline import Pipeline

__all__ = ["__version__", "load"]

try:
    __version__ = version("star-t2i")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def load(model: str = "star-emoji", **options: Any) -> "Pipeline":
    """A pipeline that draws with a model: a name of `star list`, a model directory or a hub id.

    options: `device`, `dtype` and `graphs`, see star.pipeline.Pipeline.from_pretrained. Raises
    star.data.errors.InputError, a ValueError, for a model that is not there.
    """
    from star.pipeline import Pipeline

    return Pipeline.from_pretrained(model, **options)
