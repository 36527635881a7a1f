"""`star sample` for work: lists, shares, kills, records, and a picture drawn again from what it says."""

import json
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from star.cli import main
from star.data.images import read_png
from star.generators.registry import build
from star.pictures.record import Record

MODEL = ("--model", "star-test")
FAMILIES = ("star", "stylegan-t", "stylenat", "styleformer")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network of each family in a model directory."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        build(f"{family}-test").save_pretrained(folder / family)  # type: ignore[attr-defined]
    return folder


def job(folder: Path, count: int = 100) -> Path:
    """A list in which prompts come twice, and rows have seeds and options of their own."""
    rows = [
        {"prompt": f"picture {n % 75}", "seed": n % 3, "options": {"top_k": 4} if n % 2 else {}, "category": n % 5}
        for n in range(count)
    ]
    path = folder / "list.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def killed(arguments: list[str], folder: Path, pictures: int) -> None:
    """Runs the command in a process that is killed -9 once there are so many pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other threads, which tests do not have
        child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            main(arguments)
        finally:
            os._exit(1)  # it was to be killed before
    deadline = time.monotonic() + 120
    while not folder.is_dir() or len(list(folder.glob("[!.]*.png"))) < pictures:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"


def test_a_killed_job_is_continued_to_what_an_uninterrupted_one_draws(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["sample", "--prompts", str(job(tmp_path)), "--model", str(models / "star"), "--batch", "7"]
    assert run(*command, "--out", tmp_path / "whole") == 0
    whole = files(tmp_path / "whole")
    assert len(whole) == 100 + 2  # and the grid, and the records
    out = tmp_path / "killed"
    again = [*command, "--skip-existing", "--out", str(out)]
    for pictures in (15, 40):
        killed(again, out, pictures)
    (out / ".picture-1-1.png.12345.part").write_bytes(b"what a kill left half written")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 40 <= len(before) < 100
    torn = out / min(before)
    torn.write_bytes(torn.read_bytes()[:-20])  # as no process of ours leaves it, but a disk might
    capsys.readouterr()
    assert run(*again) == 0
    assert files(out) == whole
    kept = {name: (out / name).stat().st_mtime_ns for name in before if name != torn.name}
    assert kept.items() <= before.items()  # nothing was drawn twice


def test_processes_share_a_list_and_draw_the_same(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["sample", "--prompts", job(tmp_path, 40), "--model", models / "star", "--batch", 4]
    assert run(*command, "--out", tmp_path / "one") == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    told = 0
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        capsys.readouterr()
        assert run(*command, "--out", tmp_path / "three") == 0
        told += len(capsys.readouterr().out.splitlines())
    one, three = (files(tmp_path / name) for name in ("one", "three"))
    assert told == 40
    assert {name: data for name, data in one.items() if name.startswith("picture-")} == {
        name: data for name, data in three.items() if name.startswith("picture-")
    }
    records = [f"pictures-{rank:05d}-of-00003.jsonl" for rank in range(3)]
    lines = b"".join(three[name] for name in records).splitlines()
    assert sorted(lines) == sorted(one["pictures.jsonl"].splitlines())
    monkeypatch.setenv("RANK", "3")
    assert run(*command, "--out", tmp_path / "three") == 2
    assert "RANK is 3 and WORLD_SIZE 3" in capsys.readouterr().err


def test_where_nothing_is_left_no_model_is_loaded(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["sample", "--prompts", job(tmp_path, 5), "--model", models / "star", "--out", tmp_path / "out"]
    assert run(*command) == 0
    before = files(tmp_path / "out")
    assert run(*command) == 2
    assert "5 of the 5 pictures are in" in capsys.readouterr().err

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("star.generators.registry.build", refuse)
    assert run(*command, "--skip-existing") == 0
    assert files(tmp_path / "out") == before
    assert run(*command, "--skip-existing", "--temperature", 0.5) == 2
    assert "is another picture, of another model or other options" in capsys.readouterr().err


def test_records_say_what_made_each_picture(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert run("sample", "--prompts", job(tmp_path, 6), "--model", models / "star", "--out", out, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(map(str, lines)) == sorted(
        str(json.loads(x)) for x in (out / "pictures.jsonl").read_text().splitlines()
    )
    third = next(line for line in lines if line["prompt"] == "picture 3")
    assert (third["seed"], third["options"]["top_k"], third["more"]) == (0, 4, {"category": 3})
    assert len(third["digest"]) == 64
    record = Record.read(out / third.pop("file"))
    assert record.values() == third


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_drawn_again_from_itself(
    family: str, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--top-k", 7, "--negative-prompt", "a cat"] if family == "star" else ["--truncation", 0.7]
    assert run("sample", "a dog", "--seed", 9, "--model", models / family, *options, "--out", tmp_path / "a") == 0
    first = Path(capsys.readouterr().out.strip())
    assert run("sample", "--like", first, "--out", tmp_path / "b") == 0
    captured = capsys.readouterr()
    again = Path(captured.out.strip())
    assert torch.equal(read_png(first), read_png(again))
    assert "the same picture" in captured.err
    assert Record.read(first) == Record.read(again)
    assert run("sample", "--like", first, "--seed", 10, "--out", tmp_path / "b") == 0
    other = Path(capsys.readouterr().out.strip())
    assert not torch.equal(read_png(first), read_png(other))
    assert run("sample", "--like", first, "--model", "star-test", "--out", tmp_path / "b") == 2
    assert "give the model it was drawn with" in capsys.readouterr().err


def test_another_picture_than_the_one_it_says_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("sample", "a dog", *MODEL, "--out", tmp_path) == 0
    with Image.open(tmp_path / "a-dog-0.png") as picture:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for name, value in picture.info.items():
            info.add_itxt(str(name), value)
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "turned.png", pnginfo=info)
        picture.save(tmp_path / "bare.png")
    capsys.readouterr()
    assert run("sample", "--like", tmp_path / "turned.png", "--out", tmp_path) == 1
    assert "not the same picture" in capsys.readouterr().err
    assert run("sample", "--like", tmp_path / "bare.png", "--out", tmp_path) == 2
    assert "does not say how it was made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a cat", "--truncation", "0.5"), "truncation was given to a model that has no use for it"),
        (("a cat", "--model", "styleformer-test", "--top-k", "3"), "top_k was given to a model that has no use for it"),
        (("a cat", "--model", "stylenat-test", "--negative-prompt", "x"), "expected a STAR model"),
        (("a cat", "--negative-prompt", "x", "--guidance-scale", "1"), "a negative prompt needs guidance"),
        (("a cat", "--prompts", "list.txt"), "both given"),
        (("--like", "cat.png", "--prompts", "list.txt"), "both given"),
        (("--prompts", "nowhere.txt"), "cannot be read"),
        (("list.txt",), "'list.txt' is a file"),
        (("--like", "list.txt"), "no picture"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a dog\n")

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("star.generators.registry.build", refuse)
    model = () if "--model" in arguments else MODEL
    assert run("sample", *arguments, *model) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "pictures").exists()


def test_one_picture_into_a_file_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "dog.png"
    for seed in (1, 2):
        assert run("sample", "a dog", *MODEL, "--seed", seed, "--out", out) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert os.listdir(tmp_path / "new") == ["dog.png"]  # replaced
    assert torch.equal(read_png(out), build("star-test").generate(["a dog"], seeds=[2])[0])
    assert run("sample", "a dog", *MODEL, "--count", 2, "--out", out) == 2
    assert "for 2 pictures, expected a folder" in capsys.readouterr().err


def test_a_hundred_pictures_make_a_square_grid(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("sample", "a dog", *MODEL, "--count", 100, "--out", tmp_path) == 0
    _, height, width = read_png(tmp_path / "grid.png").shape
    assert height == width == 10 * (8 + 2) - 2
