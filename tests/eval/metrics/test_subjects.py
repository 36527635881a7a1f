"""Subjects named right: ranks among a classifier's labels, whose truth counts, and what is left out with its reason."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from star.eval.metrics import subjects
from star.eval.metrics.registry import alignment, metric, plan_of, score, sentences

LABELS = tuple("abcdefgh")
NAMES = ["subject_1/net", "subject_5/net"]


class Namer:
    """A classifier whose features are its logits, and which reads a prompt's first letter."""

    def labels(self, head: str) -> Sequence[str]:
        return LABELS if head == "subject" else ()

    def label_logits(self, features_BD: Tensor, head: str) -> Tensor:
        assert head == "subject"
        return features_BD * 2

    def labels_meant(self, prompts: Sequence[str], head: str) -> Sequence[str]:
        return [prompt[:1] for prompt in prompts]


def logits(order: str) -> Tensor:
    """Labels in the order in which they are named."""
    return torch.tensor([-float(order.index(label)) for label in LABELS])


def found(
    features: Tensor, truth: Sequence[str], prompts: Sequence[str] | None = None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    notes: dict[str, str] = {}
    values = alignment(
        NAMES,
        list(prompts or [""] * len(features)),
        {"net": features},
        {},
        {},
        labels={"net": Namer()},
        subjects=truth,
        notes=notes,
        seed=0,
    )
    return {name: rows.tolist() for name, rows in values.items()}, notes


def test_the_right_subject_is_the_first_or_among_five() -> None:
    features = torch.stack([logits("abcdefgh")] * 8)
    values, notes = found(features, LABELS)
    assert values["subject_1/net"] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert values["subject_5/net"] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert notes == {}


def test_a_classifier_that_tells_nothing_names_nothing_right() -> None:
    values, _ = found(torch.zeros(8, 8), LABELS)
    assert sum(values["subject_1/net"]) == sum(values["subject_5/net"]) == 0


def test_a_picture_without_a_subject_that_is_known_is_not_counted() -> None:
    values, notes = found(torch.stack([logits("abcdefgh")] * 4), ["a", "", "unheard of", "b"])
    rows = torch.tensor(values["subject_1/net"])
    assert rows[[0, 3]].tolist() == [1, 0]
    assert rows[[1, 2]].isnan().all()
    assert notes == {}
    estimates = score({}, {}, ["x"] * 4, NAMES, values={"subject_1/net": rows}, bootstrap=20, seed=0)["overall"]
    assert (estimates["subject_1/net"].value, estimates["subject_1/net"].pictures) == (0.5, 2)


def test_prompts_are_read_only_where_the_benchmark_names_no_subject() -> None:
    features = torch.stack([logits("abcdefgh"), logits("bcdefgha")])
    values, notes = found(features, ["", ""], ["a thing", "a thing"])
    assert values == {"subject_1/net": [1, 0], "subject_5/net": [1, 0]}
    assert notes == dict.fromkeys(NAMES, subjects.READ)
    values, notes = found(features, ["b", ""], ["a thing", "a thing"])
    assert values["subject_1/net"][0] == 0
    assert torch.tensor(values["subject_1/net"])[1].isnan()
    assert notes == {}


@pytest.mark.parametrize(
    ("truth", "reason"), [(["", ""], subjects.UNKNOWN), (["unheard of", "unseen"], subjects.STRANGE)]
)
def test_without_any_subject_the_metric_is_left_out_and_says_why(truth: list[str], reason: str) -> None:
    values, notes = found(torch.zeros(2, 8), truth, ["the one", "the other"])
    assert values == {}
    assert notes == dict.fromkeys(NAMES, f"left out: {reason}")
    assert sentences(notes) == [f"subject named right by net, subject among its first five by net: left out: {reason}"]


def test_parts_are_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(23, 8, generator=torch.Generator().manual_seed(0))
    truth = [LABELS[number % 8] for number in range(23)]
    whole = found(features, truth)
    monkeypatch.setattr(subjects, "ROWS", 7)
    assert found(features, truth) == whole
    right = (features.argmax(dim=1) == torch.arange(23) % 8).tolist()
    assert whole[0]["subject_1/net"] == right


def test_metrics_ask_for_labels_and_not_for_references() -> None:
    plan = plan_of(NAMES)
    assert (plan.generated, plan.labels, plan.references, plan.texts) == (("net",), ("net",), (), ())
    assert metric("subject_1/net").binary
    assert metric("subject_5/net").title == "subject among its first five"
