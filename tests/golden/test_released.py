"""The names and shapes of every released checkpoint against the networks that are built for them."""

import json
import math
from typing import Any

import pytest
import torch

from star.convert.convert import network_of
from star.convert.published import RELEASED, Released
from star.generators import registry
from star.generators.pickle_loader import Shapes
from star.model.refiner import Refiner
from star.model.transformer import NextScaleTransformer
from star.tokenizer.convert import config_of
from star.tokenizer.convert import our_key as our_tokenizer_key
from star.tokenizer.tokenizer import MultiScaleTokenizer
from tests.golden.cases import SHIPPED

KNOWN: dict[str, dict[str, Any]] = json.loads((SHIPPED / "star" / "checkpoint_keys.json").read_text())


def shapes_of(known: dict[str, Any]) -> Shapes:
    """All names with their shapes; one with {i} stands for every block."""
    return {
        key.replace("{i}", str(i)): tuple(shape)
        for key, shape in known["keys"].items()
        for i in (range(known["depth"]) if "{i}" in key else [0])
    }


def released_as(name: str) -> Released:
    """The entry of our catalogue for a checkpoint of the table."""
    kind = "var" if name.startswith("var") else "star-sampler" if "sampler" in name else "star"
    known = KNOWN[name]
    fits = [
        entry
        for entry in RELEASED.values()
        if (entry.kind, entry.sizes, entry.depth) == (kind, tuple(known["patch_nums"]), known["depth"])
    ]
    assert len(fits) == 1
    return fits[0]


@pytest.mark.parametrize("name", [name for name in KNOWN if not name.startswith("vae")])
def test_transformers_take_every_tensor(name: str) -> None:
    shapes = shapes_of(KNOWN[name])
    network = network_of(shapes, released_as(name))
    assert (network.transformer.depth, network.transformer.width) == (KNOWN[name]["depth"], KNOWN[name]["width"])
    assert (network.refiner is not None) == ("sampler" in name)
    with torch.device("meta"):
        modules = [NextScaleTransformer(network.transformer)]
        if network.refiner:
            modules.append(Refiner(network.refiner, network.transformer))  # type: ignore[arg-type]
    own = sum(parameter.numel() for module in modules for parameter in module.parameters())
    aside = set(shapes) - set(network.names.values())
    assert aside <= {"class_emb.weight", "lvl_1L", "attn_bias_for_masking"}
    unread = math.prod(shapes["class_emb.weight"]) if "class_emb.weight" in aside else 0
    assert own + unread == KNOWN[name]["num_parameters"]


@pytest.mark.parametrize("name", [name for name in KNOWN if name.startswith("vae")])
def test_the_tokenizer_takes_every_tensor(name: str) -> None:
    known = KNOWN[name]
    shapes = {key: tuple(shape) for key, shape in known["keys"].items()}
    config = config_of(shapes, RELEASED["var-d16"].sizes)
    with torch.device("meta"):
        tokenizer = MultiScaleTokenizer(config)
    renamed = {our_tokenizer_key(key): shape for key, shape in shapes.items()}
    assert renamed.pop(None) == (10, 4096)  # hit counts
    assert renamed == {key: tuple(tensor.shape) for key, tensor in tokenizer.state_dict().items()}

    def count(*parts: str) -> int:
        return sum(p.numel() for key, p in tokenizer.named_parameters() if key.startswith(parts))

    parts = (count("encoder."), count("decoder."), count("quantizer."))
    assert parts == (known["enc"], known["dec"], known["quant"])
    assert count("") == known["num_parameters"]


def test_every_release_has_a_name_in_the_registry() -> None:
    entries = {name: entry for name, entry in registry.entries().items() if entry.weights.fetch}
    assert set(entries) == set(RELEASED)
    for name, released in RELEASED.items():
        entry = entries[name]
        assert (entry.family, entry.conditioning) == (("var", "class") if released.kind == "var" else ("star", "text"))
        assert entry.resolution == (released.resolution, released.resolution)
        assert entry.weights.location == released.hub
