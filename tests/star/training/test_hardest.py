"""The pictures that a model knows least are found, and written as they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from star.cli import main
from star.clip.wordings import Expansion, Subject
from star.completion import Completion
from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.check import check
from star.data.shards.tar import read_shard
from star.data.shards.write import write_shard
from star.data.synthetic import write
from star.generator import StarGenerator
from star.training.hardest import LOSSES, Known, hardest, losses, worst
from star.training.inputs import Encoder
from star.training.targets import targets_of_codes


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"), 40, 8, 0, 8) / "train"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    star, folder = StarGenerator.for_test(), tmp_path_factory.mktemp("model") / "m"
    with torch.no_grad():  # so that losses differ, and depend on the words
        star.transformer.head.weight.mul_(50)
        star.transformer.text_projection.weight.mul_(30)
    star.save_pretrained(folder)
    return folder


def everything(shards: Path) -> Batch:
    settings = DataConfig(shards=tuple(map(str, shards.glob("*.tar"))), resolution=8, shuffle=False)
    return next(Pipeline(settings, batch_size=40).one_pass())


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOSSES).read_text().splitlines()]


def read_all(shards: Path, model: Path, folder: Path) -> list[dict[str, Any]]:
    hardest([str(shards)], str(model), folder / "all", count=1)
    return read(folder / "all")


def test_losses_are_those_of_teacher_forcing_and_the_worst_are_kept(shards: Path, model: Path, tmp_path: Path) -> None:
    report = hardest([str(shards)], str(model), tmp_path / "out", count=7, scales=2)
    star = StarGenerator.from_directory(model)
    batch = everything(shards)
    latent_BEhw = Encoder(star.tokenizer, star.text_encoder, torch.device("cpu")).latents(batch)
    targets = targets_of_codes(star.tokenizer.quantizer, star.tokenizer.quantizer.encode(latent_BEhw).codes)
    with torch.inference_mode():
        loss_BL = star.transformer(
            targets.teacher_input_BlE, star.text_encoder.encode(batch.prompts), codes_BL=targets.codes_BL
        )
    first, second = star.transformer.schedule.lengths[:2]
    expected_B = (loss_BL[:, :first].mean(1) + loss_BL[:, first : first + second].mean(1)) / 2
    told = read(tmp_path / "out")
    assert [line["loss"] for line in told] == sorted((line["loss"] for line in told), reverse=True)
    by_key = {line["key"]: line["loss"] for line in told}
    for key, expected in zip(batch.keys, expected_B.tolist(), strict=True):
        assert by_key[key] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(by_key) == report.measured == 40
    assert {one.key for one in report.kept} == {line["key"] for line in told[:7]}
    assert report.loss == pytest.approx(expected_B.mean().item(), rel=1e-4)
    assert f"7 of 40 pictures in {tmp_path / 'out'}" in report.text()


def test_samples_are_copied_byte_by_byte(shards: Path, model: Path, tmp_path: Path) -> None:
    report = hardest([str(shards)], str(model), tmp_path / "out", count=7)
    assert report.scales == -(-StarGenerator.for_test().transformer.schedule.count // 2)
    assert check([str(tmp_path / "out")]).ok
    sources, copies = (
        {group.key: group.members for shard in folder.glob("*.tar") for group in read_shard(str(shard), [])}
        for folder in (shards, tmp_path / "out")
    )
    assert set(copies) == {one.key for one in report.kept}
    assert all(sources[key] == members for key, members in copies.items())
    assert list(copies) == [key for key in sources if key in copies]  # in the order of the shards


def test_groups_stay_together() -> None:
    ordered = [Known(key, "", loss, (group,)) for key, loss, group in [
        ("a", 9.0, "x"), ("b", 5.0, "y"), ("c", 4.5, "y"), ("d", 0.1, "x"),
    ]]  # fmt: skip
    assert [one.key for one in worst(ordered, 1)] == ["b", "c"]
    assert [one.key for one in worst(ordered, 3)] == ["b", "c", "a", "d"]
    alone = [Known(one.key, "", one.loss, (one.key,)) for one in ordered]
    assert [one.key for one in worst(alone, 3)] == ["a", "b", "c"]


def test_what_a_prompt_without_a_style_means(shards: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without wordings"):
        hardest([str(shards)], str(model), tmp_path / "out", count=1, without_style=True)
    captions = {str(line["caption"]): str(line["key"]) for line in read_all(shards, model, tmp_path)}
    usual = [caption for caption in captions if ", " in caption][3:5]
    star = StarGenerator.from_directory(model)
    star.expansion = Expansion(
        tuple({caption.rpartition(", ")[2] for caption in usual}),
        {
            caption: Subject(caption=caption.rpartition(", ")[0], style=caption.rpartition(", ")[2], names={})
            for caption in usual
        },
    )
    star.save_pretrained(tmp_path / "m")
    report = hardest([str(shards)], str(tmp_path / "m"), tmp_path / "some", count=1, without_style=True)
    assert report.kept[0].caption in usual
    assert report.measured == 40
    with pytest.raises(InputError, match="expected no more"):
        hardest([str(shards)], str(tmp_path / "m"), tmp_path / "more", count=9, without_style=True)


def test_what_a_prompt_hears_is_measured(shards: Path, model: Path, tmp_path: Path) -> None:
    """A model's completion counts for the captions that hear it, and for no other."""
    hardest([str(shards)], str(model), tmp_path / "before", count=1)
    star = StarGenerator.from_directory(model)
    name = "blocks.0.mlp.up"
    rows, columns = star.transformer.get_parameter(f"{name}.weight").shape
    torch.manual_seed(0)
    star.completion = Completion({name: (torch.randn(1, columns), torch.randn(rows, 1))})
    heard = str(read(tmp_path / "before")[5]["caption"])

    class Heard:
        def completes(self, caption: str) -> bool:
            return caption == heard

    batch = everything(shards)
    encoder = Encoder(star.tokenizer, star.text_encoder, torch.device("cpu"))
    before_B = losses(star, encoder, batch, 2, False)
    star.expansion = Heard()  # type: ignore[assignment]
    after_B = losses(star, encoder, batch, 2, False)
    changed = [
        caption for caption, same in zip(batch.prompts, torch.isclose(before_B, after_B), strict=True) if not same
    ]
    assert set(changed) == {heard}


def test_the_command_line(shards: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "hardest", str(shards), "--model", str(model), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--count", "3", "--together", "caption"]) == 0
    said = capsys.readouterr().out
    assert "of 40 pictures" in said
    assert "nothing was skipped" in said
    assert main([*command, "--count", "3"]) == 2
    assert "already holds" in capsys.readouterr().err
    assert main([*command, "--count", "2", "--overwrite"]) == 0
    assert capsys.readouterr().out.startswith("2 of 40 pictures")
    again = [*command[:-3], str(tmp_path / "half"), "--device", "cpu", "--count", "3", "--dtype", "bfloat16"]
    assert main(again) == 0
    exact, rough = ({line["key"]: line["loss"] for line in read(tmp_path / name)} for name in ("out", "half"))
    assert exact != rough
    assert all(rough[key] == pytest.approx(loss, rel=0.2, abs=0.2) for key, loss in exact.items())


@pytest.mark.parametrize(
    ("count", "scales", "named"), [(41, None, "there are 40"), (0, None, "1 or more"), (3, 99, "--scales")]
)
def test_impossible_numbers(
    shards: Path, model: Path, tmp_path: Path, count: int, scales: int | None, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        hardest([str(shards)], str(model), tmp_path / "out", count=count, scales=scales)
    assert not list((tmp_path).glob("out/*.tar"))


def test_what_cannot_be_read_is_counted_and_named(shards: Path, model: Path, tmp_path: Path) -> None:
    samples = [
        (group.key, {name: content for name, content in group.members.items() if isinstance(content, bytes)})
        for shard in shards.glob("*.tar")
        for group in read_shard(str(shard), [])
    ]
    key, members = samples[2]
    members[next(name for name in members if name != "json")] = b"no picture"
    write_shard(tmp_path / "harmed.tar", samples)
    report = hardest([str(tmp_path / "harmed.tar")], str(model), tmp_path / "out", count=39)
    assert report.measured == 39
    assert key in report.text()
    assert "broken picture" in report.text()


def test_a_key_that_comes_twice_is_named(shards: Path, model: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", 40, 8, 0, 8) / "train"
    with pytest.raises(InputError, match="expected it once"):
        hardest([str(shards), str(other)], str(model), tmp_path / "out", count=3)
