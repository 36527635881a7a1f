"""An evaluation is a function of what was asked for: killed, shared or done in one go. And it notices a bad model."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from star.data.errors import InputError
from star.data.images import read_png, save_png
from star.eval.commands.evaluate import summary
from star.eval.report.comparison import differ, gather
from star.eval.run.benchmark import EvaluationRequest, evaluate
from star.eval.run.layout import survey
from star.eval.run.processes import Processes
from star.eval.run.record import OVERALL, Record, read, read_pictures
from star.generators import registry
from star.generators.protocol import SampleOptions
from tests.eval.painting import FAMILY, METRICS, SIDE, Painter, Tiny, load, make_benchmark, painted

ROOT = Path(__file__).parents[3]
COUNT = 45
MODEL = "painter-test"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_benchmark(tmp_path_factory.mktemp("benchmark") / "made", COUNT)


@pytest.fixture(autouse=True)
def painter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry._shared._families, *FAMILY)
    Painter.painted.clear()
    yield
    Painter.stop_at = None


@pytest.fixture(scope="module")
def whole(benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation in one go."""
    out = tmp_path_factory.mktemp("whole") / "record.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._shared._families, *FAMILY)
        evaluate(request_of(benchmark, out), Processes(), load)
    return out


def request_of(benchmark: Path, out: Path, **changes: Any) -> EvaluationRequest:
    given: dict[str, Any] = {"model": MODEL, "metrics": METRICS, "bootstrap": 20, "grid": 4} | changes
    return EvaluationRequest(benchmark=benchmark, out=out, **given)


def content(out: Path) -> dict[str, Any]:
    """All bytes of an evaluation, but for the times."""
    folder = out.with_suffix("")
    text, _, times = out.read_text().partition('\n "times": ')
    assert list(json.loads(times.removesuffix("\n}\n"))) == ["read", "draw", "score"]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {"record": text} | files


def test_a_record_says_what_was_measured_and_how(benchmark: Path, whole: Path) -> None:
    record = read(whole)
    assert (record.measured.name, record.measured.family, record.measured.parameters) == (MODEL, "painter", 1)
    assert record.measured.resolution == (SIDE, SIDE)
    assert record.measured.images_seen == 0  # a tiny network of the tests was never trained
    assert (record.protocol.name, record.protocol.benchmark, record.protocol.pictures) == ("emoji-64", "made", COUNT)
    assert record.protocol.extractors == {"tiny": Tiny.digest}
    assert sorted(record.metrics) == ["animals", "food", "logo", OVERALL]
    assert list(record.metrics[OVERALL]) == list(METRICS)
    assert record.references[OVERALL]["clip_score/tiny"].value > 0.95
    pictures = read_pictures(whole)
    assert [picture.key for picture in pictures] == [item.key for item in survey(benchmark).items]
    mean = sum(picture.scores["clip_score/tiny"] for picture in pictures) / COUNT
    assert record.metrics[OVERALL]["clip_score/tiny"].value == pytest.approx(mean, abs=1e-6)
    for picture in pictures:
        assert read_png(whole.with_suffix("") / "pictures" / f"{picture.key}.png").shape == (3, SIDE, SIDE)
    assert gather([whole]).entries[0].pictures == tuple(pictures)


def test_what_a_model_remarks_stands_in_the_record_also_when_it_goes_on(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remark(self: Painter, prompts: list[str], options: SampleOptions) -> str:
        return f"{len(prompts)} prompts were painted at guidance {options.guidance_scale}"

    monkeypatch.setattr(Painter, "remark", remark, raising=False)
    request = request_of(benchmark, tmp_path / "r.json", options={"guidance_scale": 3.5})
    for _ in range(2):  # the second time all pictures are there and no model is loaded
        record = evaluate(request, Processes(), load)
        assert record is not None
        assert record == replace(read(tmp_path / "r.json"), times=record.times)
        assert record.measured.remark == f"{COUNT} prompts were painted at guidance 3.5"
        assert f"  {record.measured.remark}" in summary(record)
        monkeypatch.setattr(Painter, "remark", lambda *_: "another")
    monkeypatch.setattr(Painter, "remark", remark)
    fewer = evaluate(replace(request, pictures=9), Processes(), load)
    assert fewer is not None
    assert fewer.measured.remark == "9 prompts were painted at guidance 3.5"


@pytest.mark.parametrize("stop_at", [0, 1, 20, COUNT - 1])
def test_stopped_while_drawing_and_started_again(benchmark: Path, whole: Path, tmp_path: Path, stop_at: int) -> None:
    request = request_of(benchmark, tmp_path / "record.json")
    Painter.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        evaluate(request, Processes(), load)
    assert not request.out.exists()
    Painter.stop_at = None
    Painter.painted.clear()
    evaluate(request, Processes(), load)
    assert len(Painter.painted) <= COUNT - (stop_at // 8 - 1) * 8, "whole batches are there already, but the last"
    assert content(request.out) == content(whole)


def test_stopped_while_scoring_and_started_again(
    benchmark: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(benchmark, tmp_path / "record.json")
    calls: list[int] = []

    def interrupted(self: Tiny, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels_B3HW))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read_features(self, pixels_B3HW)

    read_features = Tiny.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(request, Processes(), load)
        Painter.painted.clear()
        evaluate(request, Processes(), load)
    assert Painter.painted == []
    assert calls == [32, 13, 13, 32, 13], "the finished block is not computed again"
    assert content(request.out) == content(whole)


def test_what_is_there_is_scored_again_without_a_network(
    benchmark: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(whole)
    for method in ("__call__", "texts"):
        monkeypatch.setattr(Tiny, method, lambda *_: pytest.fail("nothing has changed"))
    evaluate(request_of(benchmark, whole), Processes(), load)
    assert Painter.painted == []
    assert content(whole) == before


def test_half_a_picture_is_drawn_again(benchmark: Path, whole: Path) -> None:
    before = content(whole)
    picture = whole.with_suffix("") / "pictures/0004.png"
    picture.write_bytes(picture.read_bytes()[:40])
    evaluate(request_of(benchmark, whole), Processes(), load)
    assert content(whole) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"options": {"temperature": 0.5}}, "options.temperature was 1.0, now 0.5"),
        ({"model": "star-test"}, "digest was"),
        ({"protocol": "star-table"}, "seeds was by-id, now same"),
    ],
)
def test_another_option_is_refused_and_nothing_touched(
    benchmark: Path, whole: Path, changes: dict[str, Any], message: str
) -> None:
    before = content(whole)
    with pytest.raises(InputError, match=message):
        evaluate(request_of(benchmark, whole, **changes), Processes(), load)
    assert content(whole) == before


def test_other_prompts_under_the_same_ids_are_refused(benchmark: Path, whole: Path, tmp_path: Path) -> None:
    other = make_benchmark(tmp_path / "other", COUNT + 1)
    with pytest.raises(InputError, match="prompts was"):
        evaluate(request_of(other, whole), Processes(), load)


def test_two_processes_equal_one(benchmark: Path, whole: Path, tmp_path: Path) -> None:
    request, barrier = request_of(benchmark, tmp_path / "record.json"), threading.Barrier(2)
    results: dict[int, Record | None] = {}

    def meet() -> None:
        barrier.wait(60)

    def work(rank: int) -> None:
        results[rank] = evaluate(request, Processes(rank=rank, world=2, wait=meet), load)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] is None
    assert len(Painter.painted) == COUNT, "no picture is drawn twice"
    assert content(request.out) == content(whole)


def command(benchmark: Path, out: Path, seconds: float, processes: int = 1) -> tuple[list[str], dict[str, str]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    words = [sys.executable, *launcher, "-m", "tests.eval.painting", str(benchmark), str(out), str(seconds)]
    return words, {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_killed_again_and_again(benchmark: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    words, environment = command(benchmark, out, 0.1)
    for wanted in (1, 17, 38):
        process = subprocess.Popen(words, cwd=ROOT, env=environment)
        while len(list((tmp_path / "record/pictures").glob("0*.png"))) < wanted:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
    subprocess.run(words, cwd=ROOT, env=environment, check=True)
    assert content(out) == content(whole)


@pytest.mark.slow
def test_two_processes_of_torchrun_equal_one(benchmark: Path, whole: Path, tmp_path: Path) -> None:
    words, environment = command(benchmark, tmp_path / "record.json", 0, processes=2)
    subprocess.run(words, cwd=ROOT, env=environment, check=True)
    assert content(tmp_path / "record.json") == content(whole)


# Pictures made elsewhere


def external_images(benchmark: Path, folder: Path, paint: Callable[[str, int], torch.Tensor]) -> Path:
    """paint: from a prompt and its place to a picture."""
    for place, item in enumerate(survey(benchmark).items):
        save_png(paint(item.prompt, place), folder / f"{item.key}.png")
    return folder


def test_pictures_of_a_model_score_the_same_as_a_folder(benchmark: Path, whole: Path, tmp_path: Path) -> None:
    request = request_of(benchmark, tmp_path / "folder.json", model="", external=whole.with_suffix("") / "pictures")
    record = evaluate(request, Processes(), load)
    assert record is not None
    assert record.metrics == read(whole).metrics
    assert record.protocol == read(whole).protocol
    assert (record.measured.source, record.measured.name, record.measured.seed) == ("folder", "pictures", 0)
    assert len(gather([whole, request.out]).entries) == 2
    linked = request.out.with_suffix("") / "pictures/0004.png"
    assert linked.read_bytes() == (whole.with_suffix("") / "pictures/0004.png").read_bytes()


def test_a_folder_that_lacks_pictures_is_refused_or_counted(benchmark: Path, tmp_path: Path) -> None:
    folder = external_images(benchmark, tmp_path / "outside", lambda prompt, place: painted(prompt, place, 8))
    (folder / "0000.png").unlink()
    (folder / "0004.png").write_bytes((folder / "0004.png").read_bytes()[:60])
    request = request_of(benchmark, tmp_path / "record.json", model="", external=folder)
    told = "1 drawn pictures missing: animals/0000; 1 drawn pictures unreadable: food/0004"
    with pytest.raises(InputError, match=told):
        evaluate(request, Processes(), load)
    record = evaluate(replace(request, allow_missing=True), Processes(), load)
    assert record is not None
    assert record.skipped == {
        "drawn pictures missing": ["animals/0000"],
        "drawn pictures unreadable": ["food/0004"],
    }
    assert record.protocol.pictures == COUNT - 2 == record.metrics[OVERALL]["fd/tiny"].pictures
    for place, message in ((tmp_path, f"{COUNT} drawn pictures missing"), (tmp_path / "nowhere", "is no folder")):
        with pytest.raises(InputError, match=message):
            evaluate(replace(request, external=place, out=tmp_path / "other.json"), Processes(), load)
    with pytest.raises(InputError, match="name was outside, now nowhere"):
        evaluate(replace(request, external=tmp_path / "nowhere"), Processes(), load)


def test_the_format_of_pictures_made_elsewhere_is_part_of_the_protocol(
    benchmark: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "outside"
    for item in survey(benchmark).items:
        place = folder / item.category / f"{item.key}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted(item.prompt, 0, 8).permute(1, 2, 0).numpy()).save(place)
    evaluate(request_of(benchmark, tmp_path / "jpeg.json", model="", external=folder), Processes(), load)
    with pytest.raises(InputError, match=r"file_format is png in record\.json and jpeg in jpeg\.json"):
        gather([whole, tmp_path / "jpeg.json"])


def test_ranking_is_sane(benchmark: Path, tmp_path: Path) -> None:
    """Two seeds of a model are not apart; noise shows in the distance, shuffled prompts in the faithfulness alone."""
    prompts = [item.prompt for item in survey(benchmark).items]

    def noisy(prompt: str, place: int) -> torch.Tensor:
        snow_3HW = np.abs(np.random.default_rng(place).normal(0, 90, (3, SIDE, SIDE)))
        return (painted(prompt, place, 8) + torch.from_numpy(snow_3HW)).clamp(0, 255).to(torch.uint8)

    def shuffled(prompt: str, place: int) -> torch.Tensor:
        return painted(prompts[(place + 7) % COUNT], place, 8)

    painters: dict[str, Callable[[str, int], torch.Tensor]] = {
        "one": lambda prompt, place: painted(prompt, place, 8),
        "two": lambda prompt, place: painted(prompt, place + 500, 8),
        "noisy": noisy,
        "shuffled": shuffled,
    }
    found = {}
    for name, paint in painters.items():
        folder = external_images(benchmark, tmp_path / f"by-{name}", paint)
        request = request_of(benchmark, tmp_path / f"{name}.json", model="", external=folder, bootstrap=100)
        record = evaluate(request, Processes(), load)
        assert record is not None
        found[name] = record.metrics[OVERALL]
    for metric in ("fd/tiny", "kid/tiny", "clip_score/tiny"):
        assert not differ(found["one"][metric], found["two"][metric])
    for metric in ("fd/tiny", "kid/tiny"):
        assert max(found, key=lambda name: found[name][metric].value) == "noisy"
        assert all(differ(found["noisy"][metric], found[name][metric]) for name in ("one", "two", "shuffled"))
    for metric in ("clip_score/tiny", "prompt_rank_20/tiny"):
        assert min(found, key=lambda name: found[name][metric].value) == "shuffled"
        assert all(differ(found["shuffled"][metric], found[name][metric]) for name in ("one", "two", "noisy"))
    assert found["shuffled"]["prompt_rank_20/tiny"].value < 0.2 < found["one"]["prompt_rank_20/tiny"].value == 1


# References that are not what they should be


def test_bad_references_are_refused_or_counted(tmp_path: Path) -> None:
    benchmark = make_benchmark(tmp_path / "made", 24)
    (benchmark / "food/0004.png").write_bytes(b"no picture")
    (benchmark / "food/0007.png").unlink()
    request = request_of(benchmark, tmp_path / "record.json")
    with pytest.raises(InputError, match="1 pictures missing: food/0007"):
        evaluate(request, Processes(), load)
    save_png(painted("x", 0, 0), benchmark / "food/0007.png")
    with pytest.raises(InputError, match="1 pictures unreadable: food/0004"):
        evaluate(request, Processes(), load)
    assert not request.out.exists()
    record = evaluate(replace(request, skip_bad=True), Processes(), load)
    assert record is not None
    assert record.skipped == {"pictures unreadable": ["food/0004"]}
    assert record.protocol.pictures == 23
    save_png(painted("picture number 4 of all", 0, 8), benchmark / "food/0004.png")
    restored = evaluate(request, Processes(), load)
    assert restored is not None
    assert restored.protocol.pictures == 24


def test_what_had_to_be_converted_is_told(tmp_path: Path) -> None:
    benchmark = make_benchmark(tmp_path / "made", 24)
    grey_HW = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    Image.fromarray(grey_HW).save(benchmark / "animals/0000.png")
    (benchmark / "food/0001.png").unlink()
    Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)).save(benchmark / "food/0001.jpg")
    Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0)).save(benchmark / "logo/0002.png")
    record = evaluate(request_of(benchmark, tmp_path / "record.json"), Processes(), load)
    assert record is not None
    assert record.converted == {
        "reference pictures, 16 bits reduced to 8": ["animals/0000"],
        "reference pictures, CMYK converted to RGB": ["food/0001"],
        "reference pictures, transparency put on white": ["logo/0002"],
    }
    assert record.skipped == {}
    assert read(tmp_path / "record.json") == record


# Requests


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "expected one of the two"),
        ({"external": Path("there")}, "expected one of the two"),
        ({"out": Path("record")}, "give record.json"),
        ({"pictures": 0}, "--pictures is 0, expected at least 1"),
        ({"seed": -1}, "--seed is -1"),
        ({"protocol": "emoji-46"}, "did you mean emoji-64"),
        ({"metrics": ("fdd/tiny",)}, "there is no metric 'fdd/tiny'"),
        ({"model": "painter-tset"}, "there is no model 'painter-tset'"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    benchmark: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(request_of(**{"benchmark": benchmark, "out": tmp_path / "record.json"} | changes), Processes(), load)
    assert list(tmp_path.iterdir()) == []


def test_fewer_prompts_are_spread_over_the_benchmark(benchmark: Path, tmp_path: Path) -> None:
    request = request_of(benchmark, tmp_path / "record.json", pictures=9, metrics=("clip_score/tiny",))
    evaluate(request, Processes(), load)
    assert [picture.key for picture in read_pictures(request.out)] == [f"{number:04x}" for number in range(0, 45, 5)]
    evaluate(replace(request, pictures=COUNT), Processes(), load)
    assert len(read_pictures(request.out)) == COUNT
    assert len(Painter.painted) <= 9 + COUNT
