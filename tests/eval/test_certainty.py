"""No number is surer than what it was computed from: one picture, few resamples, values all alike, NaN, odd prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.cli import main
from star.data.errors import InputError
from star.data.images import save_png
from star.eval.extractors.extractor import Extractor
from star.eval.metrics.estimates import mean
from star.eval.metrics.registry import alignment, estimates, score
from star.eval.metrics.resampling import FEWEST, wilson
from star.eval.report import tables
from star.eval.report.comparison import gather
from star.eval.run.benchmark import EvaluationRequest, evaluate
from star.eval.run.layout import JOINED
from star.eval.run.processes import Processes
from star.eval.run.record import OVERALL, read, read_pictures
from star.generators import registry
from tests.eval.painting import FAMILY, METRICS, Painter, Tiny, load, make_benchmark, painted
from tests.eval.records import SCORE, estimate, record, save

SETS = ("fd", "fd_infinity", "kid", "cmmd", "precision", "recall", "density", "coverage")


@pytest.fixture(autouse=True)
def painter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._shared._families, *FAMILY)
    Painter.painted.clear()


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def request_of(benchmark: Path, out: Path, **changes: Any) -> EvaluationRequest:
    given: dict[str, Any] = {"model": "painter-test", "metrics": METRICS, "bootstrap": 20, "grid": 4} | changes
    return EvaluationRequest(benchmark=benchmark, out=out, **given)


def ends(found: dict[str, Any]) -> set[float | None]:
    return {end for known in found.values() for end in (known.low, known.high)}


def test_one_picture_has_no_interval_and_a_category_of_one_neither() -> None:
    categories = ["alone", *["many"] * 30]
    found = score(
        {"net": rows(31)},
        {"net": rows(31, 1)},
        categories,
        [*(f"{kind}/net" for kind in SETS), "clip_score/c"],
        values={"clip_score/c": rows(31, 2)[:, 0]},
        bootstrap=40,
        seed=0,
    )
    assert set(found["alone"]) == {"clip_score/c"}
    assert ends(found["alone"]) == {None}
    assert None not in ends(found["many"])


@pytest.mark.parametrize("resamples", [0, 2, FEWEST - 1])
def test_few_resamples_tell_no_interval(resamples: int) -> None:
    found = estimates(SETS, rows(30), rows(30, 1), bootstrap=resamples, seed=0)
    assert set(found) == set(SETS)
    assert ends(found) == {None}
    assert None not in ends(estimates(SETS, rows(30), rows(30, 1), bootstrap=FEWEST, seed=0))


def test_one_resample_is_refused_before_anything_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "painter-test", "--benchmark", str(tmp_path), "--out", str(tmp_path / "r.json")]
    assert main([*words, "--bootstrap", "1"]) == 2
    assert "one resample has no spread: give at least 20 for intervals, or 0 for none" in capsys.readouterr().err
    assert main([*words, "--bootstrap", "-1"]) == 2


def test_values_all_alike_tell_no_interval_and_shares_of_none_or_all_have_wilsons() -> None:
    assert mean(torch.full((30,), 0.3), 100, 0) == (pytest.approx(0.3), None)
    low, high = wilson(1.0, 30)
    assert (low, high) == (pytest.approx(0.8865, abs=1e-4), 1.0)  # of R's binom::binom.confint(30, 30, method="wilson")
    assert mean(torch.ones(30), 100, 0, binary=True) == (1.0, (low, high))
    assert mean(torch.zeros(30), 100, 0, binary=True) == (0.0, (0.0, pytest.approx(1 - low)))
    same = rows(1).expand(30, -1).contiguous()
    found = estimates(("fd", "kid", "cmmd"), same, rows(30, 1), bootstrap=40, seed=0)
    assert ends(found) == {None}, "resamples of one picture thirty times are all alike"


def test_tables_say_that_there_is_no_interval_and_rank_nothing_there(tmp_path: Path) -> None:
    one, other = record("one"), record("other", fd=90)
    one.metrics[OVERALL][SCORE] = estimate(0.3, None)
    comparison = gather(save(tmp_path, one, other))
    cells = {row[0].text: row[1:] for row in tables.summary(comparison).rows}
    assert [cell.detail for cell in cells["CLIP score ↑"]] == ["no interval", "0.2400 to 0.2600"]
    assert [cell.mark for cell in cells["CLIP score ↑"]] == ["", ""]
    assert [cell.mark for cell in cells["FD ↓"]] == ["best", ""]


def test_a_category_of_one_picture_is_no_axis_of_a_radar(tmp_path: Path) -> None:
    from dataclasses import replace

    from star.eval.report import plots

    one, other = record("one"), record("other", fd=90)
    assert len(plots.radars(gather(save(tmp_path / "a", one, other)))) == 2
    for name, known in list(one.metrics["food"].items()):
        one.metrics["food"][name] = replace(known, pictures=1, low=None, high=None)
    assert plots.radars(gather(save(tmp_path / "b", one, other))) == []  # two axes are no radar


@pytest.mark.parametrize(
    "prompt",
    [
        "two\nlines",
        "two\r\nlines",
        "a\u2028b\u2029c",
        "a\0b",
        "\u202eright to left",
        "\x1b[31mred",
        "\ufeffa",
        "🐟" * 400,
    ],
)
def test_any_prompt_that_is_unicode_is_drawn_scored_and_read_again(tmp_path: Path, prompt: str) -> None:
    benchmark = make_benchmark(tmp_path / "made", 6)
    meta = json.loads((benchmark / "meta_data.json").read_text(encoding="utf-8"))
    meta["0001"]["prompt"] = prompt
    (benchmark / "meta_data.json").write_text(json.dumps(meta), encoding="utf-8")
    found = evaluate(request_of(benchmark, tmp_path / "r.json"), Processes(), load)
    assert found is not None
    assert read(tmp_path / "r.json") == found
    expected = " ".join(prompt.splitlines())
    assert [picture.prompt for picture in read_pictures(tmp_path / "r.json")][1] == expected
    assert found.converted.get(JOINED) == (["food/0001"] if expected != prompt else None)
    assert (tmp_path / "r/sheet.png").is_file()
    assert found.bootstrap == 20
    gather([tmp_path / "r.json"])


def test_half_a_surrogate_pair_is_found_before_anything_is_drawn(tmp_path: Path) -> None:
    benchmark = make_benchmark(tmp_path / "made", 6)
    text = (benchmark / "meta_data.json").read_text(encoding="utf-8")
    (benchmark / "meta_data.json").write_text(text.replace("number 1 of", "\\ud83d of"), encoding="utf-8")
    with pytest.raises(InputError, match="1 entries whose text is not Unicode"):
        evaluate(request_of(benchmark, tmp_path / "r.json"), Processes(), load)
    assert Painter.painted == []
    found = evaluate(request_of(benchmark, tmp_path / "r.json", skip_bad=True), Processes(), load)
    assert found is not None
    assert found.protocol.pictures == 5


def test_features_that_are_no_numbers_end_in_a_sentence(tmp_path: Path) -> None:
    class Broken(Tiny):
        def __call__(self, pixels_B3HW: Tensor) -> Tensor:
            return super().__call__(pixels_B3HW) * float("nan")

    def broken(name: str, device: str) -> Extractor:
        return Broken()

    with pytest.raises(InputError, match="tiny gave NaN or infinite values"):
        evaluate(request_of(make_benchmark(tmp_path / "made", 6), tmp_path / "r.json"), Processes(), broken)


def test_a_full_disk_ends_in_a_sentence_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    benchmark = make_benchmark(tmp_path / "made", 24)
    real, left = os.fsync, [3]

    def full(number: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, os.strerror(28))
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device"):
            evaluate(request_of(benchmark, tmp_path / "r.json"), Processes(), load)
    drawn = len(Painter.painted)
    evaluate(request_of(benchmark, tmp_path / "r.json"), Processes(), load)
    assert len(Painter.painted) <= max(drawn, 24), "what was drawn is there"
    assert read(tmp_path / "r.json").protocol.pictures == 24


def test_pictures_of_other_formats_are_references_as_packing_reads_them(tmp_path: Path) -> None:
    from PIL import Image

    benchmark = make_benchmark(tmp_path / "made", 6)
    for key, ending in (("0001", "PNG"), ("0004", "bmp")):
        file = benchmark / f"food/{key}.png"
        pixels_3HW = painted(f"picture number {int(key)} of all", 0, 8)
        file.unlink()
        if ending == "PNG":
            save_png(pixels_3HW, file.with_suffix(".PNG"))
        else:
            Image.fromarray(pixels_3HW.permute(1, 2, 0).numpy()).save(file.with_suffix(".bmp"))
    found = evaluate(request_of(benchmark, tmp_path / "r.json"), Processes(), load)
    assert found is not None
    assert (found.protocol.pictures, found.skipped) == (6, {})


def test_among_the_nearest_five_of_five_is_no_score() -> None:
    prompts = [
        *(f"a thing {number}, few style" for number in range(5)),
        *(f"{number}, many style" for number in range(9)),
    ]
    drawn, real = rows(14), rows(14, 1)
    values = alignment(
        ["retrieval_1/net", "retrieval_5/net"], prompts, {"net": drawn}, {}, {}, real={"net": real}, seed=0
    )
    assert values["retrieval_5/net"].isnan().tolist() == [True] * 5 + [False] * 9
    assert not values["retrieval_1/net"].isnan().any()
    wanted = ["retrieval_1/net", "retrieval_5/net"]
    found = score(
        {}, {}, [prompt.rpartition(" ")[0] for prompt in prompts], wanted, values=values, bootstrap=20, seed=0
    )
    assert [found[OVERALL][name].pictures for name in wanted] == [14, 9]
    alone = alignment(wanted, ["one, of a kind"], {"net": drawn[:1]}, {}, {}, real={"net": real[:1]}, seed=0)
    assert alone == {}, "the only one is always the nearest"
