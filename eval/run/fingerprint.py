"""A model's fingerprint, without drawing a benchmark: the digest of all it draws with, and the parameters it uses."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from star.generators import registry
from star.generators.pretrained import CARD, ModelDirectory, sha256
from star.generators.protocol import Generator, SampleOptions


def model_digest(model: str) -> str:
    """sha256 of a model's family, config and files, of its parts, and of every model it refers to.

    The card and what the directory says about itself do not count. A `<family>-test`, whose weights are fixed, is known
    by its name; a reference that is not on this machine by its place and the digest it must have.
    """
    if is_test(model):
        return hashlib.sha256(model.encode()).hexdigest()
    directory = ModelDirectory.read(registry.locate(model))
    content: dict[str, Any] = {"family": directory.family, "config": directory.config}
    content["files"] = {name: sha256(directory.path / name) for name in directory.files}
    content["parts"] = {name: dict(_files(directory.path / name)) for name in directory.parts}
    content["references"] = {
        name: dict(_files(place)) if (place := Path(directory.resolve(name))).is_dir() else [str(place), wanted.digest]
        for name, wanted in directory.references.items()
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def family_of(model: str) -> str:
    """The family of a name, a folder or a hub id."""
    return model.removesuffix("-test") if is_test(model) else ModelDirectory.read(registry.locate(model)).family


def is_test(model: str) -> bool:
    """Whether this is the tiny network of a family."""
    return model.endswith("-test") and model.removesuffix("-test") in registry.families()


def parameters_of(generator: Generator, options: SampleOptions) -> int:
    """Numbers in all parameters that take part in drawing one picture, whatever networks a family consists of."""
    prompt = {"text": "a", "class": "0", "none": ""}[generator.conditioning]
    with _Used() as used:
        generator.generate([prompt], seeds=[0], options=options)
    return sum(parameter.numel() for parameter in used.parameters.values())


class _Used(TorchFunctionMode):
    """Notes every parameter that any function of torch is given."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[int, nn.Parameter] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, nn.Parameter):
                self.parameters[id(value)] = value
        return function(*args, **(kwargs or {}))


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != CARD:
            yield file.relative_to(folder).as_posix(), sha256(file)
