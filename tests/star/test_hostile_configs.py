"""Configs that ask for the impossible or for more than the weights beside them hold: one sentence, nothing built."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from star.clip.network import ClipConfig
from star.data.errors import InputError
from star.eval.extractors.classifier import ClassifierConfig
from star.generators.config import from_dict, to_dict
from star.generators.gan.discriminators.projected import ProjectedConfig
from star.generators.gan.discriminators.stylegan2 import StyleGan2DiscriminatorConfig
from star.generators.gan.discriminators.wavelet import WaveletConfig
from star.generators.pretrained import ModelDirectory
from star.generators.registry import build
from star.generators.styleformer.model import StyleformerConfig
from star.generators.stylegan_t.model import StyleGanTConfig
from star.generators.stylenat.model import StyleNatConfig
from star.model.refiner import RefinerConfig
from star.model.transformer import TransformerConfig
from star.restyle.network import RestyleConfig
from star.tokenizer.autoencoder import AutoencoderConfig
from star.tokenizer.bitwise import BitwiseConfig
from star.tokenizer.quantizer import QuantizerConfig

CONFIGS = (
    *(
        TransformerConfig,
        RefinerConfig,
        AutoencoderConfig,
        QuantizerConfig,
        BitwiseConfig,
        ClipConfig,
        ClassifierConfig,
        StyleGanTConfig,
        RestyleConfig,
    ),
    *(StyleNatConfig, StyleformerConfig, ProjectedConfig, StyleGan2DiscriminatorConfig, WaveletConfig),
)
FREE = {"linformer_from", "condition_width", "classes"}  # 0, or a side that is never reached, means something
NUMBERS = {int: (-1, -(10**9), 10**9, 10**400, "1", 1.5, None), float: (math.nan, math.inf, 1e308, "1", None)}


def odd_values(kind: type) -> dict[str, Any]:
    """For each field with numbers, in turn, values that no network has."""
    found: dict[str, Any] = {}
    for name, value in to_dict(kind()).items():
        if type(value) in NUMBERS:
            found |= {f"{name}={odd!r:.20}": (name, odd) for odd in NUMBERS[type(value)]}
            if type(value) is int and name not in FREE:
                found[f"{name}=0"] = (name, 0)
        elif isinstance(value, list) and value and type(value[0]) is int:
            found |= {f"{name} with {odd}": (name, [odd, *value[1:]]) for odd in (-1, 10**9)}
            found[f"{name} without end"] = (name, [1] * 200_000)
    return found


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range(kind: type) -> None:
    assert from_dict(kind, to_dict(kind())) == kind()
    accepted = []
    optional = {field.name for field in dataclasses.fields(kind) if "None" in str(field.type)}
    for told, (name, odd) in odd_values(kind).items():
        if odd is None and name in optional:
            continue
        try:
            from_dict(kind, to_dict(kind()) | {name: odd})
        except InputError:
            continue
        accepted.append(told)
    assert [told for told in accepted if told not in ALLOWED] == []


# What sounds odd and means something: no refining block, one convolution per scale, plain averages.
ALLOWED = {"depth=0", "encoder_blocks=0", "decoder_blocks=0", "phi_count=0", "minimum_head=0"}


def spoil(place: Path, change: Mapping[str, Any], *way: str) -> None:
    values = json.loads((place / "config.json").read_text())
    inner = values
    for key in way:
        inner = inner[key]
    inner.update(change)
    (place / "config.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    places = {family: folder / family for family in ("star", "stylegan-t", "stylenat", "styleformer")}
    for family, place in places.items():
        build(f"{family}-test").save_pretrained(place)  # type: ignore[attr-defined]
    return places


@pytest.mark.parametrize(
    ("family", "way", "change", "message"),
    [
        ("star", ("config", "transformer"), {"depth": 10**9}, "depth is 1000000000, expected at most"),
        ("star", ("config", "transformer"), {"heads": 0}, "heads is 0, expected at least 1"),
        ("star", ("config", "transformer"), {"sizes": [1] * 200_000}, "200000"),
        ("star", ("config", "transformer"), {"width": 2**14, "vocabulary": 2**20}, "does not fit"),
        ("star", ("config", "transformer"), {"depth": 200}, "lacks blocks"),
        ("star", ("config",), {"refiner": {"depth": 3, "plans": []}}, "it lacks"),
        ("star", ("config",), {"transformer": [[]]}, "expected the fields of|expected Trans"),
        ("stylegan-t", ("config",), {"channel_max": 2**14, "channel_base": 2**20, "groups": 1}, "does not fit"),
        ("stylenat", ("config",), {"latent_width": 2**14}, "does not fit"),
        ("styleformer", ("config",), {"style_width": 2**14}, "does not fit"),
        ("styleformer", ("config",), {"labels": 5}, "no list of names"),
    ],
)
def test_what_the_weights_do_not_hold_is_never_built(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, way: Any, change: Any, message: str
) -> None:
    place = saved[family]
    before, began = (place / "config.json").read_text(), time.monotonic()

    def never(self: ModelDirectory) -> Any:
        if self.path == place:
            raise AssertionError("the tensors were read")
        return read(self)

    read = ModelDirectory.tensors
    monkeypatch.setattr(ModelDirectory, "tensors", never)
    try:
        spoil(place, change, *way)
        with pytest.raises(InputError, match=message):
            build(place)
    finally:
        (place / "config.json").write_text(before)
    assert time.monotonic() - began < 60


def test_a_model_with_values_that_are_no_numbers(saved: dict[str, Path]) -> None:
    from safetensors.torch import load_file, save_file

    from star.generators.pretrained import sha256

    place = saved["stylenat"]
    tensors = load_file(place / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, place / "model.safetensors")
    spoil(place, {"files": {"model.safetensors": sha256(place / "model.safetensors")}})
    with pytest.raises(InputError, match="infinite or not a number"):
        build(place)
