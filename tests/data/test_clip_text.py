"""The text tower and the tokenizer without transformers against those of transformers, to the bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPTextModel

from star.data import clip_text, clip_words
from star.data.clip_text import ClipTextTower
from star.data.clip_words import ClipWords
from star.data.errors import InputError
from star.data.text import PROBES, TextEncoder
from star.data.transformers_network import quiet_transformers
from star.data.transformers_text import read_tokenizer, read_tower
from star.generators.registry import shipped

BOS = {"__type": "AddedToken", "content": "<|startoftext|>", "normalized": False, "special": True}
LONG = "a sleeping cat in a green house with a rocket and a slice of pizza " * 4
STRANGE = (
    *PROBES,
    "It's the dog's; they'll've gone",
    "  two   spaces\tand\na line ",
    "ＦＵＬＬ ｗｉｄｔｈ é é \u200b zero",
    "<|startoftext|>a<|endoftext|>!",
    "日本語 и русский عربى 한국어 🏳️‍🌈👩🏽‍🚀",
    "123 4.5e-6 %$#@ __init__ C++",
    "\x00\x01 control",
    LONG,
)


@pytest.fixture(scope="module")
def folder() -> Path:
    found = shipped("guide-emoji")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def theirs(folder: Path) -> TextEncoder:
    """guide-emoji as transformers has it."""
    tower = read_tower(folder, CLIPTextModel, folder)
    encoder = TextEncoder(tower, read_tokenizer(folder))
    _ = encoder.digest
    return encoder.float()


@pytest.fixture(scope="module")
def ours(folder: Path) -> TextEncoder:
    encoder = TextEncoder.from_pretrained(folder)
    assert type(encoder.tower) is ClipTextTower
    assert type(encoder.tokenizer) is ClipWords
    return encoder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "clip"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("prompt", STRANGE)
def test_features_are_equal_to_the_bit(prompt: str, ours: TextEncoder, theirs: TextEncoder) -> None:
    own, other = ours.encode([prompt]), theirs.encode([prompt])
    assert torch.equal(own.mask_BT, other.mask_BT)
    assert torch.equal(own.tokens_BTD, other.tokens_BTD)
    assert torch.equal(own.pooled_BD, other.pooled_BD)


def test_a_batch_is_equal_too(ours: TextEncoder, theirs: TextEncoder) -> None:
    own, other = ours.encode(STRANGE, chunk=5), theirs.encode(STRANGE, chunk=5)
    assert torch.equal(own.tokens_BTD, other.tokens_BTD)
    assert own.mask_BT.all(dim=1).any()  # one prompt leaves no padding
    assert not own.mask_BT.all()


def test_words_ids_and_digest_are_those_of_the_library(ours: TextEncoder, theirs: TextEncoder) -> None:
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert len(ours.tokenizer) == len(theirs.tokenizer)
    assert ours.tokenizer.pad_token_id == theirs.tokenizer.pad_token_id
    letters = "".join(chr(code) for code in (*range(32, 0x250), *range(0x370, 0x400), *range(0x1F300, 0x1F380)))
    assert [ours._ids(text) for text in (*STRANGE, letters)] == [theirs._ids(text) for text in (*STRANGE, letters)]
    assert ours.digest == theirs.digest


@pytest.mark.parametrize("eos", [2, None])
def test_pooling_follows_the_older_rule_where_a_description_has_it(eos: int | None, copied: Path) -> None:
    if eos is not None:
        values = json.loads((copied / "config.json").read_text())
        change(copied / "config.json", text_config=values["text_config"] | {"eos_token_id": eos})
    own = TextEncoder.from_pretrained(copied)
    with quiet_transformers():
        other = CLIPTextModel.from_pretrained(copied).float()
    ids_BT, mask_BT = own.tokenize(["a red apple", LONG])
    expected = other(input_ids=ids_BT, attention_mask=mask_BT.long()).pooler_output
    assert torch.equal(own.tower(ids_BT, mask_BT.long()).pooler_output, expected)


def test_gradients_are_those_of_the_library(ours: TextEncoder, theirs: TextEncoder) -> None:
    ids_BT, mask_BT = ours.tokenize(["a red apple", "a cat"])
    found = []
    for encoder in (ours, theirs):
        weight = encoder.tower.get_input_embeddings().weight.requires_grad_(True)
        encoder.tower(input_ids=ids_BT, attention_mask=mask_BT.long()).pooler_output.square().sum().backward()
        found.append(weight.grad)
        weight.requires_grad_(False)
        weight.grad = None
    torch.testing.assert_close(found[0], found[1])


def test_the_library_reads_what_is_written(ours: TextEncoder, theirs: TextEncoder, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    with quiet_transformers():
        tower = CLIPTextModel.from_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    again = TextEncoder(tower, tokenizer)
    assert again.digest == ours.digest == TextEncoder.from_pretrained(tmp_path).digest
    assert torch.equal(again.encode([LONG]).tokens_BTD, theirs.encode([LONG]).tokens_BTD)


def test_weights_are_read_from_one_file_or_from_those_of_an_index(copied: Path, ours: TextEncoder) -> None:
    parts = sorted(copied.glob("model-*.safetensors"))
    tensors = {name: value for part in parts for name, value in load_file(part).items()}
    save_file({"text_model.final_layer_norm.bias": torch.ones(256)}, copied / "other.safetensors")  # not in the index
    assert len(parts) == 2
    assert TextEncoder.from_pretrained(copied).digest == ours.digest
    for file in (*parts, copied / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors, copied / "model.safetensors")
    assert TextEncoder.from_pretrained(copied).digest == ours.digest


@pytest.mark.parametrize(
    "values",
    [
        {"text_config_dict": {"hidden_size": 256}},
        {"text_config": {"hidden_act": "gelu_new"}},
        {"text_config": {"layer_norm_eps": "small"}},
        {"model_type": "t5"},
    ],
)
def test_what_is_not_understood_is_left_to_the_library(values: dict[str, Any], copied: Path) -> None:
    assert clip_text.reads(copied)
    change(copied / "config.json", **values)
    assert not clip_text.reads(copied)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<new>"]}),
        ("tokenizer_config.json", {"pad_token": "<pad>"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "<new>"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 9, "content": "<new>"}]}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"model": {"type": "Unigram"}}),
        ("added_tokens.json", {}),
    ],
)
def test_a_tokenizer_with_more_than_clips_is_left_to_the_library(
    name: str, values: dict[str, Any], copied: Path
) -> None:
    assert clip_words.reads(copied)
    if not (copied / name).exists():
        (copied / name).write_text("{}")
    change(copied / name, **values)
    assert not clip_words.reads(copied)


def test_special_tokens_written_as_objects_are_understood(copied: Path, ours: TextEncoder) -> None:
    change(copied / "tokenizer_config.json", bos_token=BOS, pad_token="!")
    assert clip_words.reads(copied)
    own, other = ClipWords.from_folder(copied), read_tokenizer(copied)
    assert own.pad_token_id == other.pad_token_id != ours.tokenizer.pad_token_id
    for prompt in STRANGE:
        assert own.ids(prompt) == other(prompt, verbose=False, split_special_tokens=True).input_ids


def test_a_weight_of_another_shape_counts_as_missing(copied: Path) -> None:
    name = "text_model.final_layer_norm.bias"
    file = next(part for part in copied.glob("model-*.safetensors") if name in load_file(part))
    save_file(load_file(file) | {name: torch.ones(5)}, file)
    with pytest.raises(InputError, match=r"lacks weights of its text tower, final_layer_norm\.bias first of 1"):
        TextEncoder.from_pretrained(copied)
