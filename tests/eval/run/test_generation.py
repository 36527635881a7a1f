"""What a folder of drawn pictures promises: one manifest, whole files, and nothing drawn that is there already."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from star.data.errors import InputError
from star.eval.run.fingerprint import model_digest, parameters_of
from star.eval.run.generation import MANIFEST, check, claim, draw, is_whole, manifest_of, picture_of, tidy
from star.eval.run.layout import Item, survey
from star.eval.run.processes import Processes
from star.generators.protocol import SampleOptions
from tests.eval.painting import Painter, make_benchmark

WANTED: dict[str, Any] = {"digest": "a" * 64, "seed": 0, "options": {"guidance_scale": 5.0}}


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    Painter.painted.clear()
    return survey(make_benchmark(tmp_path / "made", 12)).items


def drawn(items: list[Item], folder: Path, generator: Any, batch: int = 4) -> None:
    draw(generator, items, folder, Processes(), seed=0, rule="by-id", options=SampleOptions(), batch=batch)


def test_a_folder_belongs_to_one_manifest(tmp_path: Path) -> None:
    assert check(tmp_path / "out", WANTED) is None
    claim(tmp_path / "out", {**WANTED, "model": "one", "parameters": 3})
    assert check(tmp_path / "out", WANTED) == {**WANTED, "model": "one", "parameters": 3}
    for changed, message in (
        ({**WANTED, "seed": 1}, "seed was 0, now 1"),
        ({**WANTED, "options": {"guidance_scale": 3.0}}, "options.guidance_scale was 5.0, now 3.0"),
        ({**WANTED, "digest": "b" * 64}, r"digest was aaaaaaaaaaaa\.\.\., now bbbbbbbbbbbb"),
        ({**WANTED, "more": 1}, "more was None, now 1"),
    ):
        with pytest.raises(InputError, match=message):
            claim(tmp_path / "out", changed)
    claim(tmp_path / "out", {**WANTED, "model": "the same under another name"})


def test_a_damaged_manifest_is_no_leave_to_mix(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(InputError, match=r"remove .*, or give another --out"):
            manifest_of(tmp_path)


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/.0000.png-x.part").write_bytes(b"half")
    (tmp_path / "pictures/0001.png").write_bytes(b"whole")
    (tmp_path / "features/.drawn-x").mkdir(parents=True)
    (tmp_path / "features/drawn").mkdir()
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["0001.png", "drawn"]
    tidy(tmp_path / "nowhere")


def test_a_batch_with_a_missing_picture_is_drawn_whole(tmp_path: Path, items: list[Item]) -> None:
    drawn(items, tmp_path / "out", Painter())
    before = {item.key: picture_of(tmp_path / "out", item).read_bytes() for item in items}
    assert len(Painter.painted) == 12
    picture_of(tmp_path / "out", items[5]).unlink()
    drawn(items, tmp_path / "out", Painter())
    assert Painter.painted[12:] == [item.prompt for item in items[4:8]]
    assert {item.key: picture_of(tmp_path / "out", item).read_bytes() for item in items} == before


def test_a_picture_is_whole_from_first_byte_to_last(tmp_path: Path, items: list[Item]) -> None:
    drawn(items[:1], tmp_path, Painter())
    path = picture_of(tmp_path, items[0])
    data = path.read_bytes()
    assert is_whole(path)
    for broken in (b"", data[:1], data[:-1], b"\0" + data[1:], data[: len(data) // 2]):
        path.write_bytes(broken)
        assert not is_whole(path)
    assert not is_whole(tmp_path / "nowhere.png")


def test_a_full_gpu_is_told_in_a_sentence(tmp_path: Path, items: list[Item]) -> None:
    class Large(Painter):
        def generate(self, *_: Any, **__: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(InputError, match=r"4 pictures at once do not fit .* smaller --batch"):
        drawn(items, tmp_path / "out", Large())


def test_models_without_a_condition_are_given_empty_prompts(tmp_path: Path, items: list[Item]) -> None:
    class Unconditional(Painter):
        conditioning = "none"

    drawn(items, tmp_path / "out", Unconditional())
    assert Painter.painted == [""] * 12


def test_cut_prompts_are_counted_in_one_line(
    tmp_path: Path, items: list[Item], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Cutting(Painter):
        def generate(self, prompts: Any, **options: Any) -> torch.Tensor:
            for prompt in prompts:
                logging.getLogger("star.data.text").warning("Prompt %r was cut.", prompt)
            return super().generate(prompts, **options)

    drawn(items, tmp_path / "out", Cutting())
    assert "12 prompts are longer than the model reads, and were cut" in capsys.readouterr().err
    assert caplog.records == []
    logging.getLogger("star.data.text").warning("again")
    assert len(caplog.records) == 1


def test_a_model_is_known_by_what_it_draws_with(tmp_path: Path) -> None:
    from tests.generators.toy import ToyGenerator

    generator = ToyGenerator.for_test()
    generator.save_pretrained(tmp_path / "one")
    generator.save_pretrained(tmp_path / "two")
    (tmp_path / "two/README.md").write_text("another card")
    config = json.loads((tmp_path / "two/config.json").read_text())
    (tmp_path / "two/config.json").write_text(json.dumps({**config, "about": {"licence": "another"}}))
    assert model_digest(str(tmp_path / "one")) == model_digest(str(tmp_path / "two"))
    with torch.no_grad():
        generator.to_image.bias[0] += 1
    generator.save_pretrained(tmp_path / "three")
    assert model_digest(str(tmp_path / "one")) != model_digest(str(tmp_path / "three"))
    assert parameters_of(generator, SampleOptions()) == sum(p.numel() for p in generator.parameters())
