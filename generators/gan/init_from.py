"""Weights of an earlier training to start from: of the same network, or of a smaller one that grows."""

from typing import Any

from star.generators.config import from_dict
from star.generators.gan.generator import PROJECTION, GanGenerator, GanNetwork
from star.generators.pretrained import ModelDirectory, load_into
from star.generators.registry import place_of


def init_from(family: type[GanGenerator], network: GanNetwork, path: str) -> str:
    """Loads a model directory of the family into the network; one that `grows` takes a smaller one's weights too.

    path: a folder, or the name of a model that ships. Returns a line that says what was loaded. Raises InputError where
    it does not fit.
    """
    path = place_of(path)
    directory = ModelDirectory.read(path, family.family)
    values = {name: value for name, value in directory.config.items() if name != "labels"}
    before: Any = from_dict(family.config_class, values)
    tensors = directory.tensors()
    tensors.pop(PROJECTION, None)
    if network.grows and before.resolution < network.config.resolution:
        network.grow_from(tensors)
        return f"started from {path}, {before.resolution} pixels, with finer blocks that are fresh"
    load_into(network, tensors, path)
    return f"started from {path}"
