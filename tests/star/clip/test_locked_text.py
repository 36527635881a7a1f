"""A new image tower for a frozen text tower: what is frozen stays to the bit, and all captions are the classes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer, VisionTextDualEncoderModel

import star.clip.train as trainer
from star.clip.captions import PictureText
from star.clip.config import CLIP_PRESETS, ClipTrainConfig
from star.clip.locked_text import (
    FORMS,
    CaptionClasses,
    LockedTextConfig,
    caption_states,
    class_loss,
    load_locked,
    matching_loss,
    style_loss,
)
from star.clip.network import ConvTowerConfig, embed_images, embed_texts
from star.clip.train import token_ids, train
from star.data.errors import InputError
from star.data.text import TextEncoder
from star.generators.config import from_dict, to_dict
from tests.star.clip.shapes import records, write_shards

LEARNT = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def first(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of eight steps, which knows next to nothing."""
    return train(CLIP_PRESETS["test"], data=[str(shards)], out=tmp_path_factory.mktemp("first"))


def locked(first: Path, **fields: object) -> ClipTrainConfig:
    config = replace(CLIP_PRESETS["test"], locked=LockedTextConfig(init_from=str(first)))
    return replace(config, **fields)  # type: ignore[arg-type]


def pictures() -> list[PictureText]:
    return [PictureText(record["captions"], record) for record in records()]


def test_only_the_text_tower_stays_and_the_pictures_are_learnt(first: Path, shards: Path, tmp_path: Path) -> None:
    run = replace(CLIP_PRESETS["test"].run, steps=60, batch_size=16, sample_every=60, log_every=10)
    config = locked(first, run=run, learning_rate=3e-3, whole_pictures=0.5, warmup=5)
    path = train(config, data=[str(shards)], out=tmp_path)
    before, after = load_file(first / "model.safetensors"), load_file(path / "model.safetensors")
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(LEARNT) for name in changed)
    assert {"visual_projection.weight", "text_projection.weight", "logit_scale"} <= changed
    assert TextEncoder.from_pretrained(path).digest == TextEncoder.from_pretrained(first).digest
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation/image_to_text"] >= 0.6  # chance: 1 in 16
    assert lines[-1]["found/phrases"] >= 0.8


def test_a_killed_run_ends_as_the_whole_one(first: Path, shards: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    original, calls = trainer.locked_loss, []

    def failing(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 6:  # after the checkpoint of step 4, inside step 6
            raise KilledError
        return original(*arguments)  # type: ignore[arg-type]

    config = locked(first)
    whole = load_file(train(config, data=[str(shards)], out=tmp_path / "whole") / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "locked_loss", failing)
        with pytest.raises(KilledError):
            train(config, data=[str(shards)], out=tmp_path / "cut")
    resumed = load_file(train(config, data=[str(shards)], out=tmp_path / "cut", resume=True) / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_states_are_those_of_the_text_tower_whatever_their_company(first: Path) -> None:
    model, tokenizer = load_locked(LockedTextConfig(init_from=str(first)), CLIP_PRESETS["test"].network)
    texts = ["a red circle, solid style", "blue", "a green square, lemon, outline drawing style", ""]
    states_MD = caption_states(model, tokenizer, texts, chunk=3)
    with torch.no_grad():
        ids_BT = token_ids(tokenizer, texts, 32)
        torch.testing.assert_close(
            F.normalize(model.text_projection(states_MD), dim=-1), embed_texts(model, ids_BT), atol=1e-5, rtol=1e-4
        )
        tower = model.text_model(input_ids=ids_BT).pooler_output
    torch.testing.assert_close(states_MD, tower, atol=1e-5, rtol=1e-4)


def test_the_classes_are_all_captions_and_true_ones_are_no_negatives(first: Path) -> None:
    model, tokenizer = load_locked(LockedTextConfig(init_from=str(first)), CLIP_PRESETS["test"].network)
    classes = CaptionClasses(pictures(), model, tokenizer)
    assert [len(rows) for rows in classes.rows] == [16, 16, 16, 16, 8]  # 8 subjects, in 2 styles
    assert [len(states_MD) for states_MD in classes.states_MD] == [16, 16, 16, 16, 8]
    solid, outline = pictures()[:2]  # of the same subject
    target_B, excluded_BM = classes.targets([solid, outline], 0)
    assert [list(classes.rows[0])[row] for row in target_B] == [solid.captions[0], outline.captions[0]]
    assert not excluded_BM.any()
    phrase_B, _ = classes.targets([solid, outline], FORMS)
    assert phrase_B[0] == phrase_B[1] == classes.rows[FORMS]["a red circle"]

    twin = PictureText([solid.captions[0], "a blue circle, solid style"], {})  # two first captions are true of it
    target_B, excluded_BM = classes.targets([twin], 0)
    other = classes.rows[0]["a blue circle, solid style"]
    assert excluded_BM.nonzero().tolist() == [[0, other]]
    assert target_B.tolist() == [classes.rows[0][solid.captions[0]]]


def test_the_losses_leave_out_what_is_true() -> None:
    torch.manual_seed(0)
    image_BD, text_MD = (F.normalize(torch.randn(count, 8), dim=-1) for count in (3, 5))
    excluded_BM = torch.zeros(3, 5, dtype=torch.bool)
    excluded_BM[0, 4] = True
    target_B = torch.tensor([1, 0, 1])
    loss, _ = class_loss(image_BD, text_MD, torch.tensor(5.0), target_B, excluded_BM)
    logits_BM = 5 * image_BD @ text_MD.T
    by_hand = [
        F.cross_entropy(logits_BM[:1, :4], target_B[:1]),
        F.cross_entropy(logits_BM[1:2], target_B[1:2]),
        F.cross_entropy(logits_BM[2:], target_B[2:]),
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())

    matched = matching_loss(image_BD, text_MD[target_B], torch.tensor(5.0), target_B)
    logits_BB = 5 * text_MD[target_B] @ image_BD.T
    rows = [logits_BB[0, :2].log_softmax(0)[0], logits_BB[1].log_softmax(0)[1], logits_BB[2, 1:].log_softmax(0)[1]]
    torch.testing.assert_close(matched, -torch.stack(rows).mean())  # the first and the last have the same caption


def test_an_image_tower_of_other_sizes_starts_afresh(first: Path) -> None:
    config, stored = LockedTextConfig(init_from=str(first)), load_file(first / "model.safetensors")
    same, _ = load_locked(config, CLIP_PRESETS["test"].network)
    assert torch.equal(same.visual_projection.weight, stored["visual_projection.weight"].float())
    wider, tokenizer = load_locked(config, replace(CLIP_PRESETS["test"].network, vision_width=64))
    assert isinstance(wider, CLIPModel)
    assert isinstance(tokenizer, CLIPTokenizer)
    assert wider.visual_projection.weight.shape == (16, 64)
    name = "text_model.embeddings.token_embedding.weight"
    assert torch.equal(wider.state_dict()[name], stored[name].float())
    assert {name.split(".")[0] for name, value in wider.named_parameters() if value.requires_grad} == {
        part.rstrip(".") for part in LEARNT
    }


def test_a_picture_is_told_from_its_words_in_every_style(first: Path, shards: Path, tmp_path: Path) -> None:
    model, tokenizer = load_locked(LockedTextConfig(init_from=str(first)), CLIP_PRESETS["test"].network)
    classes = CaptionClasses(pictures(), model, tokenizer, styles=True)
    assert classes.styles == ["outline drawing style", "solid style"]
    without = PictureText(["a red circle"], {})  # its words are known, its style is not
    asked = [*pictures()[:3], without]
    states_BSD, target_B = classes.in_styles(asked), classes.style_targets(asked)
    assert target_B.tolist() == [1, 0, 1, -100]
    expected = caption_states(model, tokenizer, ["a red circle, outline drawing style", "a red circle, solid style"])
    for row in (0, 1, 3):
        torch.testing.assert_close(states_BSD[row], expected, atol=1e-5, rtol=1e-4)

    torch.manual_seed(0)
    image_BD = F.normalize(torch.randn(4, 8), dim=-1)
    text_MD = F.normalize(torch.randn(8, 8), dim=-1)
    loss = style_loss(image_BD, text_MD, torch.tensor(5.0), target_B)
    by_hand = [F.cross_entropy(5 * text_MD[2 * row : 2 * row + 2] @ image_BD[row], target_B[row]) for row in range(3)]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    assert style_loss(image_BD, text_MD, torch.tensor(5.0), torch.full((4,), -100)) == 0

    plain = [PictureText(["a red circle"], {}), PictureText(["a blue circle"], {})]
    with pytest.raises(InputError, match="tell of 0 styles"):
        CaptionClasses(plain, model, tokenizer, styles=True)

    run = replace(CLIP_PRESETS["test"].run, steps=60, batch_size=16, sample_every=60, log_every=10)
    config = locked(first, run=run, learning_rate=3e-3, whole_pictures=0.5, warmup=5)
    assert config.locked is not None
    config = replace(config, locked=replace(config.locked, styles=1.0, first_captions=0.0, phrases=0.0, matching=0.0))
    train(config, data=[str(shards)], out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/styles"] < 0.3 < 0.5 < lines[0]["loss/styles"]
    assert lines[-1]["validation/style"] >= 0.9


CONV = ConvTowerConfig(stem=8, widths=(8, 16), blocks=(1, 1))


def test_a_convolutional_image_tower_is_learnt_to_a_frozen_text_tower(
    first: Path, shards: Path, tmp_path: Path
) -> None:
    run = replace(CLIP_PRESETS["test"].run, steps=60, batch_size=16, sample_every=60, log_every=10)
    network = replace(CLIP_PRESETS["test"].network, conv=CONV)
    config = locked(first, run=run, network=network, learning_rate=1e-2, warmup=5)
    assert from_dict(ClipTrainConfig, to_dict(config)) == config
    path = train(config, data=[str(shards)], out=tmp_path / "run")
    assert TextEncoder.from_pretrained(path).digest == TextEncoder.from_pretrained(first).digest
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation/image_to_text"] >= 0.6  # chance: 1 in 16
    assert lines[0]["scale"] < 16  # the temperature begins anew with the tower, at 14.3

    model = VisionTextDualEncoderModel.from_pretrained(path, dtype=torch.float32)
    again, _ = load_locked(LockedTextConfig(init_from=str(path)), network)  # and goes on from what was written
    image_B3HW = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        pooled_BD = model.eval().vision_model(image_B3HW).pooler_output.flatten(1)
        expected_BD = F.normalize(model.visual_projection(pooled_BD), dim=-1)
        torch.testing.assert_close(embed_images(again.eval(), image_B3HW), expected_BD)
    assert torch.equal(again.logit_scale, model.logit_scale)


def test_a_run_with_a_convolutional_tower_goes_on_to_the_bit(first: Path, shards: Path, tmp_path: Path) -> None:
    """Its norms' running means, and that measuring in between leaves them alone."""
    config = locked(first, network=replace(CLIP_PRESETS["test"].network, conv=CONV))
    whole = load_file(train(config, data=[str(shards)], out=tmp_path / "whole") / "model.safetensors")
    unmeasured = replace(config, run=replace(config.run, sample_every=100))
    same = load_file(train(unmeasured, data=[str(shards)], out=tmp_path / "unmeasured") / "model.safetensors")
    assert all(torch.equal(whole[name], same[name]) for name in whole)
    (tmp_path / "cut").mkdir()
    cut = train(config, data=[str(shards)], out=tmp_path / "cut")
    for checkpoint in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(cut)
    resumed = load_file(train(config, data=[str(shards)], out=tmp_path / "cut", resume=True) / "model.safetensors")
    assert any("running_mean" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_cannot_be_locked_is_refused(first: Path, tmp_path: Path) -> None:
    config = LockedTextConfig(init_from=str(first))
    with pytest.raises(InputError, match="has other sizes than the network"):
        load_locked(config, replace(CLIP_PRESETS["test"].network, text_layers=2))
    with pytest.raises(InputError, match="has other sizes than the network"):
        load_locked(config, replace(CLIP_PRESETS["test"].network, text_width=64))
    with pytest.raises(InputError, match="init_from is empty"):
        LockedTextConfig(init_from="")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="expected one of clip"):
        load_locked(LockedTextConfig(init_from=str(tmp_path)), CLIP_PRESETS["test"].network)


def test_configs_from_before_say_nothing_of_it() -> None:
    assert "locked" not in to_dict(CLIP_PRESETS["emoji-cpu"])
    assert "styles" not in to_dict(LockedTextConfig(init_from="x"))
    shown = to_dict(CLIP_PRESETS["emoji-image-tower"])
    assert from_dict(ClipTrainConfig, shown) == CLIP_PRESETS["emoji-image-tower"]
