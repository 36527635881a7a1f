"""Learnt points of subjects, phrases and styles: what they are told from, who moves them, and runs that use them."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPModel

from star.clip.captions import CaptionConfig, PictureText
from star.clip.config import CLIP_PRESETS, ClipTrainConfig
from star.clip.locked_text import LockedTextConfig, load_pair
from star.clip.network import (
    ConvTowerConfig,
    embed_texts,
    image_processor,
    parameter_groups,
)
from star.clip.proxies import Points, Proxies, ProxyConfig, embed_by_length, image_loss, label_loss, text_loss
from star.clip.train import token_ids, train
from star.data.errors import InputError
from star.eval.extractors.extractor import extractor
from star.generators.config import from_dict, to_dict
from tests.star.clip.shapes import draw, records, write_shards

TEST = CLIP_PRESETS["test"]
CONV = ConvTowerConfig(stem=8, widths=(8, 16), blocks=(1, 2))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def first(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(TEST, data=[str(shards)], out=tmp_path_factory.mktemp("first"))


def with_proxies(first: Path, **fields: object) -> ClipTrainConfig:
    network = replace(TEST.network, conv=CONV)
    config = replace(TEST, network=network, init_from=str(first), proxies=ProxyConfig(share=0.5))
    return replace(config, **fields)  # type: ignore[arg-type]


def pictures() -> list[PictureText]:
    return [PictureText(record["captions"], record) for record in records()]


def random_proxies(told: list[PictureText] | None = None) -> Proxies:
    torch.manual_seed(0)
    proxies = Proxies(told or pictures(), 8)
    torch.nn.init.normal_(proxies.phrase_PD)
    return proxies


def test_cosines_are_those_of_the_points() -> None:
    proxies = random_proxies()
    assert list(proxies.styles) == ["solid style", "outline drawing style"]
    assert len(proxies.phrases) == len(proxies.subject_QD) == 8
    points = proxies()
    one_ND = F.normalize(torch.randn(3, 8), dim=-1)
    said_N2 = torch.tensor([[0, 0], [5, 1], [7, 2]])  # the last in no style
    for one_D, (phrase, style), told_P, told_S in zip(
        one_ND,
        said_N2.tolist(),
        points.phrase_cosines(one_ND, said_N2[:, 1]),
        points.style_cosines(one_ND, said_N2[:, 0]),
        strict=True,
    ):
        phrases = points.of(torch.tensor([[row, style] for row in range(8)]))
        styles = points.of(torch.tensor([[phrase, row] for row in range(3)]))
        torch.testing.assert_close(told_P, phrases @ one_D)
        torch.testing.assert_close(told_S, styles @ one_D)
    bare_D = proxies.subject_QD[proxies.subject_P[7]] + proxies.phrase_PD[7]  # type: ignore[index]
    torch.testing.assert_close(points.of(said_N2)[2], F.normalize(bare_D, dim=0))


def test_phrases_of_a_subject_begin_in_one_place() -> None:
    toned = [
        PictureText([f"waving hand, {tone}, solid style"], {"subject": "waving hand", "style": "solid"})
        for tone in ("dark skin tone", "light skin tone")
    ]
    other = PictureText(["a red heart, solid style"], {"subject": "red heart", "style": "solid"})
    points = Proxies([*toned, other], 8)()
    assert torch.equal(points.phrase_PD[0], points.phrase_PD[1])
    assert not torch.equal(points.phrase_PD[0], points.phrase_PD[2])


def test_pictures_without_records_have_their_captions_as_phrases() -> None:
    plain = [PictureText(["a red circle, by hand", "red"], {}), PictureText(["a blue circle"], {})]
    proxies = random_proxies(plain)
    assert list(proxies.phrases) == ["a red circle, by hand", "a blue circle"]
    assert proxies.of(plain).tolist() == [[0, 0], [1, 0]]
    image_BD = F.normalize(torch.randn(2, 8), dim=-1)
    _, styles, _ = label_loss(ProxyConfig(), proxies(), image_BD, torch.tensor(5.0), proxies.of(plain))
    assert styles == 0
    drawn = proxies.draw(plain, CaptionConfig(), random.Random(0))
    assert set(drawn.texts[2:]) <= set(proxies.phrases)
    with pytest.raises(InputError, match="no pictures to learn from"):
        Proxies([], 8)


def test_texts_say_what_they_are_drawn_for() -> None:
    proxies, told = random_proxies(), pictures()
    phrases, styles = list(proxies.phrases), [*proxies.styles, ""]
    plain = CaptionConfig(tag=0, bare=0.5, drop_words=0, misspell=0)
    drawn = proxies.draw(told, plain, random.Random(1))
    assert len(drawn.texts) == len(drawn.said_N2) == 2 * len(told)
    assert len(drawn.claims) == len(told)
    kinds = {"bare": 0, "own": 0}
    for picture, text, (phrase, style) in zip(told, drawn.texts, drawn.said_N2.tolist(), strict=False):
        assert phrases[phrase] == picture.phrase
        assert styles[style] == ("" if text == picture.phrase else picture.parts[1])
        kinds["bare" if text == picture.phrase else "own"] += 1
    assert min(kinds.values()) > 0
    made = list(zip(drawn.texts, drawn.said_N2.tolist(), strict=True))[len(told) :]
    assert all(text == ", ".join(filter(None, (phrases[phrase], styles[style]))) for text, (phrase, style) in made)
    assert {style for _, (_, style) in made} == {0, 1, 2}


def test_the_losses_by_hand() -> None:
    proxies = random_proxies()
    points = Points(*(part.detach() for part in proxies()))
    image_BD, text_ND = (F.normalize(torch.randn(count, 8), dim=-1) for count in (3, 2))
    asked_B2, said_N2 = torch.tensor([[0, 0], [3, 1], [4, 2]]), torch.tensor([[1, 1], [2, 2]])
    scale, config = torch.tensor(5.0), ProxyConfig(smoothing=0.2, texts=0.5, distance=3.0)
    told, values = image_loss(config, points, image_BD, scale, asked_B2)
    said, more = text_loss(config, points, text_ND, scale, said_N2)
    values |= more

    def by_hand(one_ND: torch.Tensor, said_N2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        phrases, styles = [], []
        for one_D, (phrase, style) in zip(one_ND, said_N2.tolist(), strict=True):
            rows = points.of(torch.tensor([[row, style] for row in range(8)])) @ one_D * 5
            phrases.append(-(0.8 * rows.log_softmax(0)[phrase] + 0.2 * rows.log_softmax(0).mean()))
            if style < 2:  # what has no style is not asked for one
                rows = points.of(torch.tensor([[phrase, row] for row in range(2)])) @ one_D * 5
                styles.append(-(0.8 * rows.log_softmax(0)[style] + 0.2 * rows.log_softmax(0).mean()))
        return torch.stack(phrases).mean(), torch.stack(styles).mean()

    torch.testing.assert_close((values["loss/phrases"], values["loss/styles"]), by_hand(image_BD, asked_B2))
    torch.testing.assert_close((values["loss/text_phrases"], values["loss/text_styles"]), by_hand(text_ND, said_N2))
    distance = 1 - (points.of(said_N2) * text_ND).sum(dim=1).mean()
    torch.testing.assert_close(values["loss/distance"], distance)
    text = by_hand(text_ND, said_N2)
    torch.testing.assert_close(told, sum(by_hand(image_BD, asked_B2)))
    torch.testing.assert_close(said, 0.5 * sum(text) + 3 * distance)


def test_pictures_move_the_points_and_texts_do_not() -> None:
    proxies = random_proxies()
    said_N2 = torch.tensor([[0, 0], [3, 1]])
    config = ProxyConfig()
    for loss_of, moved in ((image_loss, True), (text_loss, False)):
        scale = torch.tensor(5.0, requires_grad=True)
        vectors_ND = F.normalize(torch.randn(2, 8), dim=-1).requires_grad_()
        proxies.zero_grad()
        loss_of(config, proxies(), vectors_ND, scale, said_N2)[0].backward()
        moves = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in proxies.parameters()]
        assert moves == [moved] * 3
        assert (scale.grad is not None) is moved
        assert vectors_ND.grad is not None
        assert vectors_ND.grad.any()


def test_a_run_learns_and_leaves_the_points_behind(first: Path, shards: Path, tmp_path: Path) -> None:
    run = replace(TEST.run, steps=120, batch_size=16, sample_every=120, log_every=10)
    config = with_proxies(first, run=run, learning_rate=1e-2, text_rate=0.3, warmup=5)
    assert from_dict(ClipTrainConfig, to_dict(config)) == config
    path = train(config, data=[str(shards)], out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation/image_to_text"] >= 0.6  # chance: 1 in 16
    assert lines[-1]["validation/style"] >= 0.9
    assert lines[-1]["found/phrases"] >= 0.9 > 0.4 > lines[0]["found/phrases"]
    assert lines[-1]["loss/distance"] < 0.5 * lines[0]["loss/distance"]
    stored = load_file(path / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {
        *("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale")
    }
    red, outline = (record["captions"][0] for record in records()[:2])
    network = extractor(f"clip:{path}")
    picture = image_processor(TEST.network)(draw(records()[0], 0), return_tensors="pt").pixel_values
    pixels_B3HW = ((picture + 1) * 127.5).round().to(torch.uint8)
    cosine_2 = network.texts([red, outline]) @ network(pixels_B3HW)[0]  # type: ignore[attr-defined]
    assert cosine_2[0] > cosine_2[1]


def test_the_text_tower_alone_learns_to_say_the_points_of_a_run(first: Path, shards: Path, tmp_path: Path) -> None:
    network = replace(TEST.network, conv=CONV)
    begun = train(with_proxies(first, learning_rate=1e-2), data=[str(shards)], out=tmp_path / "begun")
    proxies = ProxyConfig(share=1.0, points=str(tmp_path / "begun" / "points"))
    run = replace(TEST.run, steps=100, batch_size=16, log_every=10)
    config = replace(TEST, network=network, init_from=str(begun), proxies=proxies, run=run, learning_rate=1e-2)
    assert from_dict(ClipTrainConfig, to_dict(config)) == config
    path = train(config, data=[str(shards)], out=tmp_path / "run")
    before, after = load_file(begun / "model.safetensors"), load_file(path / "model.safetensors")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"text_model", "text_projection"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/distance"] < 0.3 * lines[0]["loss/distance"]
    assert "loss/phrases" not in lines[0]
    assert not (tmp_path / "run" / "points").exists()


def test_points_are_read_by_their_names(tmp_path: Path) -> None:
    proxies = random_proxies()
    proxies.write(tmp_path / "points")
    turned = Proxies(reversed(pictures()), 8)
    turned.read(tmp_path / "points")
    assert not any(parameter.requires_grad for parameter in turned.parameters())
    for one, other in zip(proxies().of(proxies.of(pictures())), turned().of(turned.of(pictures())), strict=True):
        torch.testing.assert_close(one, other)
    fewer = Proxies(pictures()[:4], 8)  # of which all are there
    fewer.read(tmp_path / "points")
    torch.testing.assert_close(fewer().of(fewer.of(pictures()[:4])), proxies().of(proxies.of(pictures()[:4])))

    strange = PictureText(["a pink circle, solid style"], {"style": "solid"})
    with pytest.raises(InputError, match="no point for 'a pink circle' and 0 more of the phrases"):
        Proxies([*pictures(), strange], 8).read(tmp_path / "points")
    with pytest.raises(InputError, match=r"has phrase_PD \(8, 8\), not \(8, 16\)"):
        Proxies(pictures(), 16).read(tmp_path / "points")
    with pytest.raises(InputError, match="is missing, expected the points of an earlier run"):
        proxies.read(tmp_path)
    (tmp_path / "points" / "points.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError, match=r"points\.safetensors"):
        proxies.read(tmp_path / "points")


def test_texts_of_a_length_go_together(first: Path) -> None:
    model, tokenizer = load_pair(str(first), TEST.network)
    texts = ["", "a red circle, solid style", "blue", "a green square, lemon, outline drawing style", "red", "a blue"]
    ids_NT = token_ids(tokenizer, texts, 32)
    for count in (1, 4, 9):
        with torch.no_grad():
            together = embed_by_length(model, ids_NT, chunks=count)
            torch.testing.assert_close(together, embed_texts(model, ids_NT), atol=1e-5, rtol=1e-4)


def test_a_run_goes_on_to_the_bit(first: Path, shards: Path, tmp_path: Path) -> None:
    config = with_proxies(first)
    whole = load_file(train(config, data=[str(shards)], out=tmp_path / "whole") / "model.safetensors")
    cut = train(config, data=[str(shards)], out=tmp_path / "cut")
    for checkpoint in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(cut)
    resumed = load_file(train(config, data=[str(shards)], out=tmp_path / "cut", resume=True) / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_text_tower_may_learn_at_a_rate_of_its_own(first: Path, shards: Path, tmp_path: Path) -> None:
    given = load_file(first / "model.safetensors")
    model, _ = load_pair(str(first), TEST.network)
    assert [group.get("lr_scale", 1.0) for group in parameter_groups(model, 0.1, 0.5)] == [1.0, 1.0, 0.5, 0.5]
    assert len(parameter_groups(model, 0.1)) == 2
    still = load_file(train(with_proxies(first, text_rate=0.0), data=[str(shards)], out=tmp_path) / "model.safetensors")
    texts = [name for name in given if name.startswith("text_model.")]
    assert all(torch.equal(given[name], still[name]) for name in texts)
    assert not torch.equal(given["text_projection.weight"], still["text_projection.weight"])


def test_without_proxies_a_run_may_start_from_another(first: Path, shards: Path, tmp_path: Path) -> None:
    config = replace(TEST, init_from=str(first), learning_rate=0.0, weight_decay=0.0)
    path = train(config, data=[str(shards)], out=tmp_path)
    given, after = load_file(first / "model.safetensors"), load_file(path / "model.safetensors")
    assert all(torch.equal(given[name], after[name]) for name in given)
    assert isinstance(load_pair(str(path), TEST.network)[0], CLIPModel)


def test_what_cannot_be_learnt_is_refused() -> None:
    with pytest.raises(InputError, match="share"):
        ProxyConfig(share=1.5)
    with pytest.raises(InputError, match="phrases"):
        ProxyConfig(phrases=-1)
    with pytest.raises(InputError, match="text_rate"):
        replace(TEST, text_rate=-0.1)
    with pytest.raises(InputError, match="points was given without init_from"):
        replace(TEST, proxies=ProxyConfig(points="x"))
    for field in ({"proxies": ProxyConfig()}, {"init_from": "x"}, {"text_rate": 0.5}):
        with pytest.raises(InputError, match="give locked alone"):
            replace(TEST, locked=LockedTextConfig(init_from="guide-emoji"), **field)


def test_configs_from_before_say_nothing_of_it() -> None:
    told = to_dict(CLIP_PRESETS["emoji-image-tower"])
    assert not {"proxies", "init_from", "text_rate"} & set(told)
    shown = to_dict(CLIP_PRESETS["emoji-proxies"])
    assert from_dict(ClipTrainConfig, shown) == CLIP_PRESETS["emoji-proxies"]
