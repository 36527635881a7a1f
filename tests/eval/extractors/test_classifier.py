"""A judge's labels: told from stored features as from the pictures; subjects of prompts as its captions call them."""

import json
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.eval.extractors.classifier import ClassifierConfig, ClassifierNetwork, phrases_of, subject_meant
from star.eval.extractors.extractor import Classifier, extractor
from star.eval.extractors.train_classifier import save_classifier
from star.eval.metrics.metric import LabelExtractor

TINY = ClassifierConfig(
    image_size=16,
    widths=(4, 8),
    blocks=(1, 1),
    subjects=("man", "red heart", "star"),
    styles=("flat", "line"),
    categories=("single",),
    tags=("red",),
)
PHRASES = {"a man": "man", "a man, dark": "man", "a heart": "red heart"}


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_classifier(tmp_path / "judge", ClassifierNetwork(TINY).eval(), phrases=PHRASES)
    return tmp_path / "judge"


def test_logits_of_features_are_those_of_the_pictures(judge: Path) -> None:
    network = extractor(f"judge:{judge}")
    assert isinstance(network, Classifier)
    assert isinstance(network, LabelExtractor)
    assert not isinstance(extractor("thumbnail"), LabelExtractor)
    pixels = torch.randint(0, 256, (5, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for head, logits in network.logits(pixels).items():
        told = network.label_logits(network(pixels), head)
        assert told.shape == (5, len(network.labels(head)))
        torch.testing.assert_close(told, logits)
    assert list(network.labels("subject")) == ["man", "red heart", "star"]
    assert list(network.labels("nothing")) == []
    prompts = ["a man, light, line style", "a star, flat style"]
    assert network.labels_meant(prompts, "subject") == ["man", ""]
    assert network.labels_meant(prompts, "style") == ["", ""]


def test_phrases_are_captions_without_their_style_and_mean_one_subject() -> None:
    told = [
        ("a man, dark, flat style", "man"),
        ("a man, dark, line style", "man"),
        ("a heart", "red heart"),
        ("a bat, flat style", "bat, the animal"),
        ("a bat, line style", "bat, for a ball"),
        (", odd", "odd"),
    ]
    assert phrases_of(told) == {", odd": "odd", "a heart": "red heart", "a man, dark": "man"}


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("a man, flat style", "man"),
        ("a man, dark, flat style", "man"),
        ("a man, light, flat style", "man"),
        ("a heart", "red heart"),
        ("a heart of a man, flat style", ""),
        ("a cat, a man", ""),
        ("", ""),
    ],
)
def test_the_longest_known_beginning_of_a_prompt_is_its_subject(prompt: str, subject: str) -> None:
    assert subject_meant(prompt, PHRASES) == subject


def test_phrases_change_no_digest_and_damaged_ones_are_refused(judge: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_classifier(tmp_path / "without", ClassifierNetwork(TINY).eval())
    without = extractor(f"judge:{tmp_path / 'without'}")
    assert without.digest == extractor(f"judge:{judge}").digest
    assert isinstance(without, LabelExtractor)
    assert list(without.labels_meant(["a man"], "subject")) == [""]
    values = json.loads((judge / "config.json").read_text(encoding="utf-8"))
    damaged: list[object] = [[], "a man", {"a cat": "cat"}, {"a cat": ["man"]}]
    for phrases in damaged:
        values["about"]["phrases"] = phrases
        (judge / "config.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(InputError, match="phrases that lead to no subject"):
            extractor(f"judge:{judge}")


def test_the_shipped_judge_knows_every_subject_by_some_phrase() -> None:
    judge = extractor("judge-emoji")
    assert isinstance(judge, Classifier)
    assert set(judge.phrases.values()) == set(judge.labels("subject"))
    assert judge.labels_meant(["the flag of Oman, noto emoji style", "a dark, stormy night"], "subject") == [
        "flag: Oman",
        "",
    ]
