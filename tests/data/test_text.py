"""Laws of the text encoders, on tiny towers with random weights and a tokenizer made here."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from star.data.errors import InputError
from star.data.text import TextEncoder, TextFeatures

BYTES = sorted(ByteLevel.alphabet())
MERGES = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
TOKENS = [
    *BYTES,
    *(byte + "</w>" for byte in BYTES),
    *("".join(merge) for merge in MERGES),
    "<|startoftext|>",
    "<|endoftext|>",
]
EOS = len(TOKENS) - 1
LENGTH = 12
PROMPTS = ["a red cat", "", "cat", "🍎 تفاحة", "a red cat a red cat a red cat a red cat"]


def clip_tokenizer(**options: str) -> CLIPTokenizer:
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(TOKENS)}, merges=MERGES, **options)  # type: ignore[arg-type]


def text_config(**options: int) -> CLIPTextConfig:
    sizes = {
        "vocab_size": len(TOKENS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
        "projection_dim": 8,
        "bos_token_id": EOS - 1,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
    }
    return CLIPTextConfig.from_dict(sizes | options)


def clip_tower(**options: int) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(text_config(**options))


def t5_encoder() -> TextEncoder:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)] + [(letter, -2.0) for letter in "acdert"]
    backend = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    return TextEncoder(T5EncoderModel(config), tokenizer, max_tokens=LENGTH)


def clip_encoder() -> TextEncoder:
    return TextEncoder(clip_tower(), clip_tokenizer())


ENCODERS = {"clip": clip_encoder, "t5": t5_encoder}


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    return ENCODERS[request.param]()


def test_shapes_do_not_depend_on_the_prompts(encoder: TextEncoder) -> None:
    for prompts in ([""], PROMPTS):
        text = encoder.encode(prompts)
        assert text.tokens_BTD.shape == (len(prompts), LENGTH, encoder.width)
        assert text.mask_BT.shape == (len(prompts), LENGTH)
        assert text.pooled_BD.shape == (len(prompts), encoder.width)
        assert not text.tokens_BTD.requires_grad
        assert text.tokens_BTD.masked_select(~text.mask_BT[..., None]).eq(0).all()


def test_a_prompt_does_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    together = encoder.encode(PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt])
        assert torch.equal(alone.tokens_BTD[0], together.tokens_BTD[index])
        assert torch.equal(alone.pooled_BD[0], together.pooled_BD[index])
    chunked = encoder.encode(PROMPTS, chunk=3)
    torch.testing.assert_close(chunked.tokens_BTD, together.tokens_BTD, rtol=1e-4, atol=1e-5)


def test_the_mask_reaches_the_tower(encoder: TextEncoder) -> None:
    """What stands in the padding must not matter; without the mask it would, in T5 everywhere."""
    ids_BT, mask_BT = encoder.tokenize(["a red cat"])
    text = encoder._forward(ids_BT, mask_BT)
    other = encoder._forward(ids_BT.masked_fill(~mask_BT, 3), mask_BT)
    assert torch.equal(text.tokens_BTD, other.tokens_BTD)
    assert torch.equal(text.pooled_BD, other.pooled_BD)
    seen = encoder._forward(ids_BT.masked_fill(~mask_BT, 3), torch.ones_like(mask_BT))
    causal = encoder.kind.ends_at_eos  # CLIP never looks ahead
    assert causal or not torch.allclose(seen.tokens_BTD[mask_BT], text.tokens_BTD[mask_BT], atol=1e-4)


def test_padding_does_not_change_a_prompt(encoder: TextEncoder) -> None:
    text = encoder.encode(["a red cat"])
    length = int(text.mask_BT.sum())
    ids_BT, mask_BT = encoder.tokenize(["a red cat"])
    short = encoder._forward(ids_BT[:, :length], mask_BT[:, :length])
    torch.testing.assert_close(short.tokens_BTD, text.tokens_BTD[:, :length], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(short.pooled_BD, text.pooled_BD, rtol=1e-5, atol=1e-5)


def test_clip_pools_at_eos() -> None:
    text = clip_encoder().encode(PROMPTS)
    for row in range(len(PROMPTS)):
        end = int(text.mask_BT[row].sum()) - 1
        assert torch.equal(text.pooled_BD[row], text.tokens_BTD[row, end])


def test_both_conventions_of_eos_pool_alike() -> None:
    """Configurations before transformers 4.31 say eos_token_id 2, and SD-2.1 pads with a low id instead of EOS."""
    ours = clip_encoder().encode(PROMPTS)
    older = TextEncoder(clip_tower(eos_token_id=2), clip_tokenizer(pad_token="!")).encode(PROMPTS)
    assert torch.equal(ours.pooled_BD, older.pooled_BD)
    assert torch.equal(ours.tokens_BTD, older.tokens_BTD)


def test_t5_pools_the_mean_of_the_prompt() -> None:
    text = t5_encoder().encode(["a red cat", ""])
    for row in range(2):
        expected = text.tokens_BTD[row, text.mask_BT[row]].mean(dim=0)
        torch.testing.assert_close(text.pooled_BD[row], expected)


def test_an_empty_prompt_is_bos_and_eos() -> None:
    encoder = clip_encoder()
    ids_BT, mask_BT = encoder.tokenize([""])
    assert ids_BT[0, :2].tolist() == [EOS - 1, EOS]
    assert mask_BT[0].tolist() == [True, True] + [False] * (LENGTH - 2)
    assert encoder.encode([""]).pooled_BD.isfinite().all()


def test_a_long_prompt_is_cut_and_keeps_its_end(caplog: pytest.LogCaptureFixture) -> None:
    encoder = clip_encoder()
    long = "cat " * 2500
    assert encoder.truncated([long, "cat"]) == [2502 - LENGTH, 0]
    with caplog.at_level(logging.WARNING, logger="star.data.text"):
        ids_BT, mask_BT = encoder.tokenize([long])
    assert ids_BT[0, -1] == EOS
    assert mask_BT.all()
    assert "2502 tokens; the first 11 are kept" in caplog.text
    assert torch.equal(encoder.encode([long]).tokens_BTD, encoder.encode(["cat " * (LENGTH - 2)]).tokens_BTD)


def test_special_words_in_a_prompt_are_plain_text() -> None:
    """Else a prompt could end itself early, and the tower would pool there."""
    ids_BT, _ = clip_encoder().tokenize(["<|endoftext|>", "<|startoftext|>cat"])
    for ids in ids_BT.tolist():
        words = ids[1 : ids.index(EOS)]
        assert ids[0] == EOS - 1
        assert len(words) > 1
        assert EOS - 1 not in words


def test_text_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="half a character"):
        clip_encoder().encode(["cat \ud83c"])
    with pytest.raises(TypeError, match="list of prompts"):
        clip_encoder().encode("cat")


def test_frozen_whatever_surrounds_it(encoder: TextEncoder) -> None:
    around = torch.nn.ModuleList([encoder]).train()
    assert around.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_features_select_join_and_move() -> None:
    text = clip_encoder().encode(PROMPTS)
    again = TextFeatures.cat([text[:2], text[2], text[torch.tensor([3, 4])]])
    assert len(text[2]) == 1
    assert len(again) == len(PROMPTS)
    assert torch.equal(again.tokens_BTD, text.tokens_BTD)
    assert torch.equal(text[[4, 0]].pooled_BD, text.pooled_BD[[4, 0]])
    half = text.to(dtype=torch.bfloat16)
    assert (half.tokens_BTD.dtype, half.pooled_BD.dtype, half.mask_BT.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.bool,
    )
    with pytest.raises(ValueError, match="mask_BT must be bool"):
        TextFeatures(text.tokens_BTD, text.mask_BT.long(), text.pooled_BD)
    with pytest.raises(ValueError, match="does not belong"):
        TextFeatures(text.tokens_BTD, text.mask_BT, text.pooled_BD[:1])


# --- directories ---


def save_pipeline(root: Path) -> Path:
    """The layout of a diffusion pipeline, weights named as transformers 4 saved them (prefix text_model)."""
    clip_tower(eos_token_id=2).save_pretrained(root / "text_encoder")
    clip_tokenizer(pad_token="!").save_pretrained(root / "tokenizer")
    weights = root / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    return root


def save_whole(root: Path) -> Path:
    """A CLIPModel, both towers, the text tower with the weights of clip_tower()."""
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    model = CLIPModel(CLIPConfig(text_config=text_config().to_dict(), vision_config=vision, projection_dim=8))
    model.text_model.load_state_dict(clip_tower().state_dict())
    model.save_pretrained(root)
    clip_tokenizer().save_pretrained(root)
    return root


def save_tower(root: Path) -> Path:
    clip_tower().save_pretrained(root)
    clip_tokenizer().save_pretrained(root)
    return root


@pytest.mark.parametrize("save", [save_pipeline, save_whole, save_tower])
def test_every_layout_gives_the_same_features(
    save: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = clip_encoder().encode(PROMPTS)
    save(tmp_path)
    capfd.readouterr()
    encoder = TextEncoder.from_pretrained(tmp_path)
    assert capfd.readouterr().err == ""
    text = encoder.encode(PROMPTS)
    assert torch.equal(text.tokens_BTD, expected.tokens_BTD)
    assert torch.equal(text.pooled_BD, expected.pooled_BD)
    assert (encoder.width, encoder.max_tokens) == (16, LENGTH)


def test_a_t5_directory_gives_the_same_features(tmp_path: Path) -> None:
    encoder = t5_encoder()
    encoder.tower.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = TextEncoder.from_pretrained(tmp_path, max_tokens=LENGTH)
    assert torch.equal(loaded.encode(["a red cat"]).tokens_BTD, encoder.encode(["a red cat"]).tokens_BTD)
    assert loaded.digest == encoder.digest
    loaded.save_pretrained(tmp_path / "again")
    told = (tmp_path / "again" / "tokenizer_config.json").read_text()
    assert not any(word in told for word in ("local", "trust_remote_code"))  # nothing of how it was loaded


def test_the_digest_knows_weights_and_tokenizer_but_not_the_dtype(tmp_path: Path) -> None:
    save_tower(tmp_path / "a")
    digest = TextEncoder.from_pretrained(tmp_path / "a").digest
    assert TextEncoder.from_pretrained(tmp_path / "a").digest == digest
    assert TextEncoder.from_pretrained(save_whole(tmp_path / "whole")).digest == digest
    narrow = TextEncoder.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    assert narrow.tower.dtype == torch.bfloat16
    assert narrow.digest == digest

    clip_tower().bfloat16().save_pretrained(tmp_path / "b")
    clip_tokenizer().save_pretrained(tmp_path / "b")
    rounded = TextEncoder.from_pretrained(tmp_path / "b")
    assert rounded.tower.dtype == torch.float32
    assert rounded.digest != digest
    assert rounded.digest == TextEncoder.from_pretrained(tmp_path / "b", dtype=torch.bfloat16).digest
    rounded.tower.save_pretrained(tmp_path / "c")  # the same values, now stored as float32
    rounded.tokenizer.save_pretrained(tmp_path / "c")
    assert TextEncoder.from_pretrained(tmp_path / "c").digest == rounded.digest

    fewer = CLIPTokenizer(vocab={token: index for index, token in enumerate(TOKENS)}, merges=MERGES[:2])  # type: ignore[arg-type]
    assert TextEncoder(clip_tower(), fewer).digest != clip_encoder().digest


def test_a_directory_without_an_encoder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="is of a 'bert' model, expected one of clip"):
        TextEncoder.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="neither a folder here nor a hub repository"):
        TextEncoder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="neither a folder here nor a hub repository"):
        TextEncoder.from_pretrained("nobody/nothing")


def test_a_missing_or_broken_weight_is_refused(tmp_path: Path) -> None:
    """transformers would fill it with random numbers and go on."""
    save_tower(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    save_file({name: value for name, value in tensors.items() if name != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights of its text tower, .*layers\.1\.mlp\.fc1\.weight"):
        TextEncoder.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="could not be loaded as a text encoder"):
        TextEncoder.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="could not be loaded as a text encoder"):
        TextEncoder.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_tower_is_refused() -> None:
    with pytest.raises(InputError, match=r"tokens and the text tower only 100"):
        TextEncoder(clip_tower(vocab_size=100), clip_tokenizer())
    with pytest.raises(InputError, match="looks for EOS 7"):
        TextEncoder(clip_tower(eos_token_id=7), clip_tokenizer())
    with pytest.raises(InputError, match="has 12 positions"):
        TextEncoder(clip_tower(), clip_tokenizer(), max_tokens=77)
