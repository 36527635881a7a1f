"""Folders of others in transformers' format: no code of theirs, no size beyond their weights, files alone."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from star.data.errors import InputError
from star.data.pretrained import check_folder
from star.data.text import TextEncoder, text_projection
from star.data.text_towers import TOWERS
from star.data.tiny import tiny_text_encoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    tiny_text_encoder().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "text"))


def spoil(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


def test_a_good_folder_is_read(folder: Path) -> None:
    assert check_folder(folder, TOWERS) == "clip_text_model"
    assert TextEncoder.from_pretrained(folder).digest == tiny_text_encoder().digest


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "x.Config"}}, "has auto_map, by which code of others"),
        ("config.json", {"text_config": {"auto_map": {"a": "b"}}}, "has auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.T", None]}}, "has auto_map"),
        ("config.json", {"_attn_implementation": "someone/kernels"}, "has _attn_implementation"),
        ("config.json", {"quantization_config": {"quant_method": "x"}}, "has quantization_config"),
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "asks for a BertJapaneseTokenizer"),
        ("config.json", {"model_type": "llama"}, "is of a 'llama' model, expected one of clip"),
        ("config.json", {"model_type": ["clip"]}, "expected one of clip"),
        ("config.json", {"num_hidden_layers": 10**9}, "has num_hidden_layers 1000000000"),
        ("config.json", {"hidden_size": -8}, "has hidden_size -8"),
        ("config.json", {"hidden_size": "32"}, "has hidden_size '32'"),
        ("config.json", {"num_attention_heads": 0}, "could not be loaded as a text encoder"),
        ("config.json", {"num_hidden_layers": 256, "intermediate_size": 2**17}, "describes a network of"),
        ("config.json", {"hidden_act": "nothing"}, "could not be loaded as a text encoder"),
        ("adapter_config.json", {"base_model_name_or_path": "/"}, "holds an adapter of another model"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../b.safetensors"}}, "names files outside"),
    ],
)
def test_a_description_that_asks_for_more(folder: Path, name: str, change: dict[str, Any], message: str) -> None:
    spoil(folder / name, **change)
    with pytest.raises(InputError, match=message):
        TextEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replace] * 8}},
            "repeat or lengthen a prompt",
        )
        for replace in ({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},)
    ]
    + [
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed"}}, "repeat or"),
        ({"model": {"type": "BPE"}}, "could not be loaded|ends a prompt with id"),
        ({"model": None}, "could not be loaded as a text encoder"),
        (
            {"added_tokens": [{"id": 10**6, "content": "zzzz", "special": False}]},
            "could not be loaded|tokens and the text tower",
        ),
    ],
)
def test_a_tokenizer_beyond_measure(folder: Path, change: dict[str, Any], message: str) -> None:
    spoil(folder / "tokenizer.json", **change)
    with pytest.raises(InputError, match=message):
        TextEncoder.from_pretrained(folder)


def test_only_files_are_read(folder: Path) -> None:
    (folder / "merges.txt").unlink(missing_ok=True)
    os.mkfifo(folder / "merges.txt")
    with pytest.raises(InputError, match="is a pipe or a device"):
        TextEncoder.from_pretrained(folder)
    with pytest.raises(InputError, match="is a pipe or a device"):
        text_projection(folder)


def test_weights_that_are_a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="a git-LFS pointer, not the file itself"):
        TextEncoder.from_pretrained(folder)
