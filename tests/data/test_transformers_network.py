"""Networks of transformers are never read with weights that the files lack, whoever reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from star.clip.locked_text import load_pair
from star.clip.metrics import main
from star.clip.network import ClipConfig
from star.data.errors import InputError
from star.data.pretrained import loading
from star.data.transformers_network import read_network
from star.eval.extractors.extractor import extractor
from star.eval.metrics.alignment import ClipScorer
from star.generators.gan.clip_guidance import ClipGuidance
from star.tokenizer.losses import FeatureDistance
from tests.data.test_clip_pair import dual, resnet, save

SMALL: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}


def renamed(folder: Path, name: str, new: str) -> Path:
    """The same numbers, so that their count tells nothing, one tensor under a name that nobody asks for."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[new] = tensors.pop(name)
    save_file(tensors, file, {"format": "pt"})
    return folder


def vision_folder(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


PAIR_READERS: dict[str, Callable[[Path], Any]] = {
    "scorer": ClipScorer,
    "extractor": lambda folder: extractor(f"clip:{folder}"),
    "guidance": ClipGuidance,
    "training": lambda folder: load_pair(str(folder), ClipConfig()),
    "metrics": lambda folder: main([str(folder), "no-shards"]),
}


@pytest.mark.parametrize("reader", PAIR_READERS)
def test_a_pair_with_a_weight_under_another_name_is_refused(reader: str, tmp_path: Path) -> None:
    folder = renamed(save(tmp_path, dual(resnet())), "visual_projection.weight", "visual_projection.gain")
    with pytest.raises(InputError, match=r"lacks weights of .*, visual_projection\.weight first of 1"):
        PAIR_READERS[reader](folder)


def test_a_dino_with_a_weight_under_another_name_is_refused(tmp_path: Path) -> None:
    Dinov2Model(Dinov2Config(**SMALL)).save_pretrained(tmp_path)
    extractor(f"dino:{tmp_path}")
    renamed(tmp_path, "layernorm.weight", "norm.weight")
    with pytest.raises(InputError, match=r"lacks weights of its network, layernorm\.weight first of 1"):
        extractor(f"dino:{tmp_path}")


def test_of_a_vision_model_only_what_is_compared_must_be_there(tmp_path: Path) -> None:
    """Hidden states: many vision models come without their pooling layer."""
    folder = vision_folder(tmp_path, ViTModel(ViTConfig(**SMALL)))
    image_B3HW = torch.rand(2, 3, 8, 8) * 2 - 1
    expected = FeatureDistance.from_pretrained(str(folder))(image_B3HW, -image_B3HW)
    renamed(folder, "pooler.dense.weight", "classifier.weight")
    assert torch.equal(FeatureDistance.from_pretrained(str(folder))(image_B3HW, -image_B3HW), expected)
    with pytest.raises(InputError, match=r"lacks weights of its network, pooler\.dense\.weight first of 1"):
        read_network(AutoModel, folder, "its network")
    renamed(folder, "layernorm.weight", "norm.weight")
    with pytest.raises(InputError, match=r"lacks weights of its network, layernorm\.weight first of 1"):
        FeatureDistance.from_pretrained(str(folder))


def test_a_network_is_read_as_stored_and_frozen(tmp_path: Path) -> None:
    model: Any = ViTModel(ViTConfig(**SMALL))
    model.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    stored = read_network(AutoModel, tmp_path, "its network")
    wide = read_network(ViTModel, tmp_path, "its network", dtype=torch.float32, add_pooling_layer=False)
    assert {value.dtype for value in stored.state_dict().values()} == {torch.bfloat16}
    assert {value.dtype for value in wide.state_dict().values()} == {torch.float32}
    assert not any(name.startswith("pooler") for name in wide.state_dict())
    for network in (stored, wide):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_weight_of_another_shape_is_the_library_s_own_error(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**SMALL)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"intermediate_size": 7}))
    with pytest.raises(RuntimeError, match="mismatch"):
        read_network(AutoModel, tmp_path, "its network")
    with pytest.raises(InputError, match="could not be loaded as a vision model"), loading(tmp_path, "a vision model"):
        read_network(AutoModel, tmp_path, "its network")
