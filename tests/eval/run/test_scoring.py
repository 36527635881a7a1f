"""Labels in a whole evaluation: what the real pictures reach stands beside it, and the record says what it lacks."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.eval.commands.evaluate import summary
from star.eval.extractors.extractor import Extractor
from star.eval.run.benchmark import EvaluationRequest, evaluate
from star.eval.run.layout import survey
from star.eval.run.processes import Processes
from star.eval.run.record import OVERALL, Record, read
from star.eval.run.scoring import Load
from star.generators import registry
from tests.eval.painting import FAMILY, Tiny, _colours, load, make_benchmark

COUNT = 24
NAMES = ("subject_1/tiny", "subject_5/tiny")


class Naming(Tiny):
    """Names the prompt whose colours are nearest; `subjects` are the prompts, cut."""

    prompts = tuple(f"picture number {number} of all" for number in range(COUNT))

    def labels(self, head: str) -> Sequence[str]:
        return tuple(prompt.split()[2] for prompt in self.prompts)

    def label_logits(self, features_BD: Tensor, head: str) -> Tensor:
        colours = torch.stack([_colours(prompt).flatten() for prompt in self.prompts]).float()
        return features_BD @ torch.nn.functional.normalize(colours - 127.5).T

    def labels_meant(self, prompts: Sequence[str], head: str) -> Sequence[str]:
        return [""] * len(prompts)


def naming(name: str, device: str) -> Extractor:
    return Naming()


@pytest.fixture(autouse=True)
def painter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._shared._families, *FAMILY)


def evaluated(benchmark: Path, out: Path, load: Load = naming) -> Record:
    request = EvaluationRequest(benchmark=benchmark, out=out, model="painter-test", metrics=NAMES, bootstrap=20, grid=0)
    record = evaluate(request, Processes(), load)
    assert record is not None
    assert read(out).notes == record.notes
    return record


def with_subjects(benchmark: Path, shift: int) -> Path:
    """Each entry says its number, or that of another one."""
    meta = json.loads((benchmark / "meta_data.json").read_text())
    for entry in meta.values():
        entry["subject"] = str((int(entry["prompt"].split()[2]) + shift) % COUNT)
    (benchmark / "meta_data.json").write_text(json.dumps(meta))
    return benchmark


def test_what_is_drawn_and_what_is_real_is_named(tmp_path: Path) -> None:
    record = evaluated(with_subjects(make_benchmark(tmp_path / "made", COUNT), 0), tmp_path / "record.json")
    for groups in (record.metrics, record.references):
        assert groups[OVERALL]["subject_1/tiny"].value > 0.9
        assert groups[OVERALL]["subject_1/tiny"].pictures == COUNT
        assert groups[OVERALL]["subject_1/tiny"].low is not None
        assert groups["food"]["subject_5/tiny"].value == 1
    assert record.notes == {}
    assert sum("subject named right by tiny" in line and "; the real pictures" in line for line in summary(record)) == 1


def test_wrong_subjects_are_noticed(tmp_path: Path) -> None:
    record = evaluated(with_subjects(make_benchmark(tmp_path / "made", COUNT), 1), tmp_path / "record.json")
    assert record.metrics[OVERALL]["subject_1/tiny"].value < 0.2


def test_without_subjects_the_record_says_why_there_is_no_number(tmp_path: Path) -> None:
    benchmark = make_benchmark(tmp_path / "made", COUNT)
    record = evaluated(benchmark, tmp_path / "record.json")
    assert record.metrics[OVERALL] == {}
    assert set(record.notes) == set(NAMES)
    assert "left out: the benchmark names no subjects" in summary(record)[-1]
    assert record.protocol.prompts == survey(benchmark).prompts


def test_an_extractor_without_labels_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    benchmark = make_benchmark(tmp_path / "made", 4)
    with pytest.raises(InputError, match="tiny tells no labels, expected a classifier"):
        evaluated(benchmark, tmp_path / "record.json", load)
    assert not (tmp_path / "record").exists()
