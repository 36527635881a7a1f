"""Which records may stand side by side, what they are called there, and which differences count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star.cli import main
from star.data.errors import InputError
from star.eval.report.comparison import Comparison, Entry, differ, gather
from star.eval.run.record import Record, write
from tests.eval.records import PROTOCOL, digest, estimate, record, save


def compared(*records: Record) -> Comparison:
    entries = (Entry(label=str(number), path=Path(f"{number}.json"), record=one) for number, one in enumerate(records))
    return Comparison(entries=tuple(entries), mixed={})


def test_records_of_one_protocol_stand_in_the_order_given(tmp_path: Path) -> None:
    comparison = gather(save(tmp_path, record("b"), record("a")))
    assert [entry.label for entry in comparison.entries] == ["b", "a"]
    assert comparison.mixed == {}
    assert comparison.names() == ["fd/judge-emoji", "clip_score/clip-emoji", "prompt_rank_20/clip-emoji"]
    assert comparison.categories() == ["animals", "food", "logo"]
    assert len(comparison.entries[0].pictures) == 12


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pictures": 1000}, "pictures is 12 in 0.json and 1000 in 1.json"),
        ({"name": "mjhq-30k"}, "name is emoji-mjhq in 0.json and mjhq-30k in 1.json"),
        ({"reference_size": None}, "reference_size is 64 x 64 in 0.json and none in 1.json"),
        ({"reference_size": (64, 96)}, "reference_size is 64 x 64 in 0.json and 64 x 96 in 1.json"),
        ({"prompts": digest("x")}, f"prompts is {digest('prompts')[:12]} in 0.json and {digest('x')[:12]} in 1.json"),
        ({"resize": "area", "file_format": "jpg"}, "resize is lanczos-antialias in 0.json and area in 1.json; file"),
        ({"extractors": PROTOCOL.extractors | {"dino:a/b.c": digest("d")}}, "extractors.dino:a/b.c is none in 0.json"),
        ({"extractors": {"clip-emoji": digest("clip")}}, "extractors.judge-emoji is"),
    ],
)
def test_each_field_of_a_protocol_is_told_when_it_differs(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    paths = save(tmp_path, record("a"), record("b", **change))
    with pytest.raises(InputError) as refused:
        gather(paths)
    assert told in str(refused.value)
    assert "--mix-protocols" in str(refused.value)
    assert set(gather(paths, mix_protocols=True).mixed) >= {told.split(" ")[0]}


def test_a_third_record_may_be_the_odd_one(tmp_path: Path) -> None:
    paths = save(tmp_path, record("a"), record("b"), record("c", pictures=7))
    with pytest.raises(InputError, match=r"pictures is 12 in 0\.json, 1\.json and 7 in 2\.json"):
        gather(paths)


def test_nothing_is_ranked_among_mixed_protocols(tmp_path: Path) -> None:
    paths = save(tmp_path, record("a", fd=10), record("b", fd=90, pictures=7))
    assert gather(paths, mix_protocols=True).marks("overall", "fd/judge-emoji") == ["", ""]


def test_every_unreadable_record_is_named(tmp_path: Path) -> None:
    (good,) = save(tmp_path, record())
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "old.json").write_text('{"format": 1}')
    with pytest.raises(InputError) as refused:
        gather([good, tmp_path / "gone.json", tmp_path / "broken.json", tmp_path / "old.json"])
    for told in ("gone.json cannot be read", "broken.json is no JSON", "old.json has format 1, expected 2"):
        assert told in str(refused.value)


def test_a_file_given_twice_is_refused_and_an_evaluation_made_twice_is_shown_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = save(tmp_path, record())
    copy = tmp_path / "copy.json"
    write(replace(record(), times={"draw": 3.0}), copy)  # what may differ between two runs of one evaluation
    (tmp_path / "link.json").symlink_to(path)
    for again in (path, tmp_path / "link.json", tmp_path / ".." / tmp_path.name / "0.json"):
        with pytest.raises(InputError, match=r"is the same file as .*0\.json: name each record once"):
            gather([path, again])
    assert caplog.records == []
    comparison = gather([path, copy])
    assert [entry.label for entry in comparison.entries] == ["one #1", "one #2"]
    assert "copy.json tells the same evaluation as" in caplog.text


def test_no_record_is_refused() -> None:
    with pytest.raises(InputError, match="no record was given"):
        gather([])


def test_a_kind_of_metric_that_is_not_known_is_refused(tmp_path: Path) -> None:
    odd = replace(record(), metrics={"overall": {"beauty/eye": estimate(1.0)}})
    with pytest.raises(InputError, match="beauty/eye"):
        gather(save(tmp_path, odd)).names()


def test_records_of_one_model_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    plain, other = record("star"), record("gan")
    guided = replace(plain, measured=replace(plain.measured, options={"guidance_scale": 3.0}))
    seeded = replace(plain, measured=replace(plain.measured, options={"guidance_scale": 6.0}, seed=1))
    comparison = gather(save(tmp_path, guided, seeded, other))
    labels = [entry.label for entry in comparison.entries]
    assert labels == ["star (seed 0, guidance_scale 3.0)", "star (seed 1, guidance_scale 6.0)", "gan"]
    retrained = replace(plain, measured=replace(plain.measured, digest=digest("other weights")))
    labels = [entry.label for entry in gather(save(tmp_path, plain, retrained)).entries]
    assert labels == [f"star (digest {digest('star')[:12]})", f"star (digest {digest('other weights')[:12]})"]


def test_estimates_are_apart_where_each_value_lies_outside_the_other_interval() -> None:
    assert differ(estimate(10, 1), estimate(12, 1))
    assert not differ(estimate(10, 1), estimate(11, 0.5))  # 11 is the end of the first interval
    assert not differ(estimate(10, 0.1), estimate(12, 3))  # inside the second interval only
    assert not differ(estimate(10, None), estimate(99, 1))


def test_marks_follow_the_direction_of_the_metric() -> None:
    comparison = compared(record("a", fd=30, rank=0.5), record("b", fd=31.0, rank=0.9), record("c", fd=40, rank=0.7))
    assert comparison.marks("overall", "fd/judge-emoji") == ["best", "tied", ""]
    assert comparison.marks("overall", "prompt_rank_20/clip-emoji") == ["", "best", ""]


def test_a_row_in_which_a_figure_has_no_interval_is_not_ranked() -> None:
    bare = replace(record("b", fd=31), metrics={"overall": {"fd/judge-emoji": estimate(31, None)}})
    assert compared(record("a", fd=30), bare).marks("overall", "fd/judge-emoji") == ["", ""]


def test_a_missing_metric_takes_no_part() -> None:
    comparison = compared(record("a", fd=30), replace(record("b"), metrics={}), record("c", fd=50))
    assert comparison.marks("overall", "fd/judge-emoji") == ["best", "", ""]


def test_the_command_tells_in_one_line_and_writes_only_what_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in save(tmp_path, record("a"), record("b", pictures=7))]
    out = tmp_path / "out"
    assert main(["compare", *paths, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pictures is 12 in 0.json and 7 in 1.json" in told
    assert not out.exists()
    assert main(["compare", *paths, "--out", str(out), "--rows", "-1"]) == 2
    assert main(["compare", *paths, "--out", str(out), "--mix-protocols"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["comparison.html", "comparison.md"]
