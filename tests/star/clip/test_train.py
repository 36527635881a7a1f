"""clip-emoji's training: tokenizer, caption variants, the loss and its exclusions, and a whole run that resumes."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPTokenizer, VisionTextDualEncoderModel

from star.clip.captions import CaptionConfig, PictureText, false_negatives, misspell
from star.clip.config import CLIP_PRESETS, ClipTrainConfig
from star.clip.metrics import Names, recalls
from star.clip.network import (
    ClipConfig,
    ConvTowerConfig,
    augment,
    build_clip,
    contrastive_loss,
    embed_images,
    embed_texts,
    image_processor,
    parameter_groups,
)
from star.clip.train import save_clip, token_ids, train
from star.data.clip_tokenizer import BOS, EOS, learn_tokenizer
from star.data.errors import InputError
from star.data.images import pil_to_image
from star.data.text import TextEncoder
from tests.star.clip.shapes import draw, records, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return learn_tokenizer([caption for record in records() for caption in record["captions"]], 600, 32)


def tiny(tokenizer: CLIPTokenizer) -> CLIPModel:
    torch.manual_seed(0)
    model = build_clip(CLIP_PRESETS["test"].network, tokenizer).eval()
    assert isinstance(model, CLIPModel)
    return model


# --- tokenizer ---


def test_the_tokenizer_learns_words_and_loads_from_its_directory(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    prompts = ["a red circle, outline drawing style", "", "A flibbertigibbet 🍎 تفاحة 12:30"]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, CLIPTokenizer)
    assert loaded(prompts).input_ids == tokenizer(prompts).input_ids
    assert loaded.model_max_length == 32
    assert tokenizer.tokenize("Outline circle") == ["outline</w>", "circle</w>"]


def test_any_text_survives_the_tokenizer(tokenizer: CLIPTokenizer) -> None:
    for text in ("flibbertigibbet", "🍎", "تفاحة", "naïve", "дом"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    ids = tokenizer("zyx🍎").input_ids
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == [BOS, EOS]
    assert max(tokenizer.get_vocab().values()) == tokenizer.eos_token_id == ids[-1]


def test_the_tokenizer_belongs_to_the_captions_alone(tokenizer: CLIPTokenizer) -> None:
    captions = [caption for record in records() for caption in record["captions"]]
    again = learn_tokenizer(reversed(captions), 600, 32)
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "a grassy circle in the outlines"
    assert again.tokenize(text) == tokenizer.tokenize(text)
    assert len(learn_tokenizer(captions, 520, 32)) == 520
    with pytest.raises(InputError, match="at least 514"):
        learn_tokenizer(captions, 300, 32)


# --- captions ---


def test_every_variant_is_claimed_by_its_own_picture() -> None:
    pictures = [PictureText(record["captions"], record) for record in records()]
    rng = random.Random(0)
    seen = set()
    for _ in range(40):
        for picture in pictures:
            text, claim = picture.draw(CaptionConfig(drop_words=0, misspell=0), rng)
            assert claim in picture.claims
            seen.add(text)
    assert {"a red circle", "a crimson, solid style", "red circle, crimson, solid style"} <= seen


def test_captions_without_a_record_are_drawn_as_they_are() -> None:
    picture = PictureText(["two words", "three more words"], {})
    drawn = {picture.draw(CaptionConfig(drop_words=0, misspell=0), random.Random(seed))[0] for seed in range(30)}
    assert drawn == {"two words", "three more words"}
    for seed in range(30):
        assert PictureText(["x"], {}).draw(CaptionConfig(drop_words=1, dropped=1, misspell=1), random.Random(seed))[0]


def test_true_pairs_are_no_negatives() -> None:
    a = PictureText(["a cat, flat style", "cat, pet, flat style"], {"subject": "cat", "style": "flat", "tags": ["pet"]})
    b = PictureText(["a dog, flat style"], {"subject": "dog", "style": "flat", "tags": ["pet"]})
    c = PictureText(["a cat, glossy style"], {"subject": "cat", "style": "glossy", "tags": ["pet"]})
    claims = [("tag", "pet", "flat"), ("text", "a dog, flat style"), ("text", "a cat")]
    expected = [
        [False, True, False],  # "a pet, flat style" is true of the dog too, not of the glossy cat
        [False, False, False],
        [True, False, False],  # "a cat" without a style is true of the flat cat
    ]
    assert false_negatives(claims, [a, b, c]).tolist() == expected


def test_a_misspelt_word_is_one_edit_away() -> None:
    assert misspell("a cat", random.Random(0)) == "a cat"
    for seed in range(20):
        text = misspell("a triangle", random.Random(seed))
        assert text.startswith("a t")
        assert len(text) in (len("a triangle") - 1, len("a triangle"))
        assert not set(text) - set("a triangle")


# --- network and loss ---


def test_both_towers_are_transformers_own(tokenizer: CLIPTokenizer) -> None:
    """Our two embedding functions, which training uses, give what CLIPModel itself gives."""
    model = tiny(tokenizer)
    image_B3HW = torch.rand(3, 3, 16, 16) * 2 - 1
    inputs = tokenizer(["a red circle", "", "blue"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=image_B3HW, **inputs)
        torch.testing.assert_close(embed_images(model, image_B3HW), expected.image_embeds)
        torch.testing.assert_close(embed_texts(model, inputs.input_ids), expected.text_embeds)
        order_BP = torch.tensor([[3, 1, 0, 2]]).expand(3, 4)  # every patch, in another order
        torch.testing.assert_close(embed_images(model, image_B3HW, order_BP), expected.image_embeds)
        half = embed_images(model, image_B3HW, order_BP[:, :2])
    assert not torch.allclose(half, expected.image_embeds, atol=1e-3)


def test_the_loss_is_symmetric_cross_entropy_without_the_excluded_pairs() -> None:
    torch.manual_seed(0)
    text_BD, image_BD = (torch.nn.functional.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    none_BB = torch.zeros(4, 4, dtype=torch.bool)
    loss, _ = contrastive_loss(text_BD, image_BD, torch.tensor(5.0), none_BB)
    swapped, _ = contrastive_loss(image_BD, text_BD, torch.tensor(5.0), none_BB)
    torch.testing.assert_close(loss, swapped)

    twin_BD = image_BD.clone()
    twin_BD[1] = image_BD[0]
    pair_BB = none_BB.clone()
    pair_BB[0, 1] = pair_BB[1, 0] = True
    text_BD.requires_grad_()
    loss, _ = contrastive_loss(text_BD, twin_BD, torch.tensor(5.0), pair_BB)
    kept = [5 * text_BD[0] @ twin_BD[column] for column in (0, 2, 3)]
    by_hand = torch.logsumexp(torch.stack(kept), dim=0) - kept[0]
    logits_BB = (5 * text_BD @ twin_BD.T).masked_fill(pair_BB, float("-inf"))
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits_BB[:1], torch.tensor([0])), by_hand)
    loss.backward()
    assert text_BD.grad is not None
    assert text_BD.grad.isfinite().all()


def test_augmentation_moves_and_keeps_the_range() -> None:
    torch.manual_seed(0)
    image_B3HW = torch.ones(8, 3, 16, 16)
    image_B3HW[:, :, 4:12, 4:12] = -1
    moved = augment(image_B3HW, shift=0.1, zoom=0.1)
    assert moved.shape == image_B3HW.shape
    assert moved.min() >= -1
    assert moved.max() <= 1 + 1e-5
    assert not torch.equal(moved[0], moved[1])
    torch.testing.assert_close(augment(image_B3HW, shift=0, zoom=0), image_B3HW)


def test_only_matrices_decay(tokenizer: CLIPTokenizer) -> None:
    model = tiny(tokenizer)
    decayed, plain = parameter_groups(model, 0.1)
    assert {id(model.logit_scale), id(model.vision_model.embeddings.class_embedding)} <= set(map(id, plain["params"]))
    assert id(model.text_model.embeddings.token_embedding.weight) in set(map(id, decayed["params"]))
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_the_image_processor_gives_our_images() -> None:
    picture = draw(records()[0], 0)
    config = ClipConfig(image_size=32)
    processed = image_processor(config)(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(processed, pil_to_image(picture), atol=1e-5, rtol=0)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="do not tile"):
        ClipConfig(image_size=60)
    with pytest.raises(InputError, match="whole number of heads"):
        ClipConfig(text_width=100)
    with pytest.raises(InputError, match="between 0 and 1"):
        replace(CLIP_PRESETS["test"], kept_patches=1.5)
    with pytest.raises(InputError, match="give as many of both"):
        ConvTowerConfig(widths=(64, 128), blocks=(2,))
    with pytest.raises(InputError, match="blocks"):
        ConvTowerConfig(widths=(64,), blocks=(2**20,))
    with pytest.raises(InputError, match="stem"):
        ConvTowerConfig(stem=0)


# --- scores ---


def test_recall_counts_shared_captions_as_right() -> None:
    captions = ["a", "b", "a"]
    cosine_BB = torch.tensor([[0.1, 0.0, 0.9], [0.0, 0.9, 0.0], [0.8, 0.0, 0.2]])
    assert recalls(cosine_BB, captions) == {"text_to_image": 1.0, "image_to_text": 1.0}
    assert recalls(cosine_BB, ["a", "b", "c"])["text_to_image"] == pytest.approx(1 / 3)
    many = [str(index) for index in range(30)]
    scores = recalls(torch.eye(30), many)
    assert scores["image_to_text_20"] == scores["text_to_image_20"] == 1
    assert recalls(-torch.eye(30), many)["image_to_text_20"] == 0


# --- training ---


def quick(**fields: object) -> ClipTrainConfig:
    return replace(CLIP_PRESETS["test"], **fields)  # type: ignore[arg-type]


def test_a_killed_run_ends_as_the_whole_one(shards: Path, tmp_path: Path) -> None:
    config = quick()
    whole = train(config, data=[str(shards)], out=tmp_path / "whole")

    class KilledError(Exception):
        pass

    import star.clip.train as module

    original, calls = module.contrastive_loss, []

    def failing(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        if len(calls) == 6:  # after the checkpoint of step 4, inside step 6
            raise KilledError
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "contrastive_loss", failing)
        with pytest.raises(KilledError):
            train(config, data=[str(shards)], out=tmp_path / "cut")
    resumed = train(config, data=[str(shards)], out=tmp_path / "cut", resume=True)
    for file in sorted(whole.iterdir()):  # the tokenizer's description, too
        assert file.read_bytes() == (resumed / file.name).read_bytes(), file.name
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    losses = [[json.loads(line)["loss"] for line in several] for several in lines]
    assert losses[0] == losses[1]


def test_it_learns_and_what_it_writes_is_a_clip(shards: Path, tmp_path: Path) -> None:
    config = quick(
        run=replace(CLIP_PRESETS["test"].run, steps=60, batch_size=16, sample_every=60, log_every=10),
        learning_rate=3e-3,
        whole_pictures=0.5,
        warmup=5,
    )
    path = train(config, data=[str(shards)], out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 1.0 < 2.0 < lines[0]["loss"]
    assert lines[-1]["validation/image_to_text"] >= 0.6  # chance: 1 in 16
    assert lines[-1]["validation/style"] >= 0.8

    model = CLIPModel.from_pretrained(path, dtype="auto")
    assert model.dtype == torch.bfloat16
    processor, loaded = AutoImageProcessor.from_pretrained(path), CLIPTokenizer.from_pretrained(path)
    model.float().eval()
    prompts = [record["caption"] for record in records()]
    pictures = [draw(record, 0) for record in records()]
    inputs = loaded(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=processor(pictures, return_tensors="pt").pixel_values, **inputs)
    assert (output.logits_per_image.argmax(dim=1) == torch.arange(len(prompts))).float().mean() >= 0.6

    encoder = TextEncoder.from_pretrained(path)
    assert encoder.max_tokens == config.network.max_tokens
    text = encoder.encode(prompts)
    torch.testing.assert_close(
        text.pooled_BD,
        output.text_model_output.last_hidden_state[torch.arange(len(prompts)), inputs.attention_mask.sum(dim=1) - 1],
        atol=1e-5,
        rtol=1e-4,
    )
    names = Names(model, loaded, records())
    assert names.nearest(["red circle"], 1) == [["red circle"]]
    assert names.synonyms()["synonym_at_5"] >= 0.5


def test_saving_leaves_the_model_as_it_is(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    model = tiny(tokenizer)
    save_clip(tmp_path, model, tokenizer, CLIP_PRESETS["test"].network)
    assert model.dtype == torch.float32
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    ids_BT = token_ids(tokenizer, ["a red circle", "x" * 200], 32)
    assert ids_BT.shape == (2, 32)
    assert (ids_BT == tokenizer.eos_token_id).any(dim=1).all()


@pytest.mark.parametrize("name", sorted(CLIP_PRESETS))
def test_every_preset_builds(name: str, tokenizer: CLIPTokenizer) -> None:
    config = CLIP_PRESETS[name].network
    with torch.device("meta"):
        model = build_clip(config, tokenizer)
    assert model.text_model.config.max_position_embeddings == config.max_tokens
    assert model.text_model.config.eos_token_id == tokenizer.eos_token_id
    if config.conv:
        assert isinstance(model, VisionTextDualEncoderModel)
        assert model.visual_projection.in_features == config.conv.widths[-1]
    else:
        assert isinstance(model, CLIPModel)
        assert model.vision_model.embeddings.num_patches == config.patches
