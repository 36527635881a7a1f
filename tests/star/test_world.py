"""When the world misbehaves: full disks, closed pipes, signals, other locales, missing devices, absurd numbers."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from star.cli import main
from star.commands.train import configure
from star.data.disk import check_writable, refusal, write_text, writing
from star.data.errors import DivergenceError, InputError
from star.generators.devices import usable
from star.generators.protocol import SampleOptions
from star.generators.registry import place_of
from star.pictures import job, names

ROOT = Path(__file__).parents[2]
MODEL = ("--model", "star-test")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def star(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "star.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})},  # type: ignore[dict-item]
        **options,  # type: ignore[call-overload]
    )


# ---- two at once


def test_names_are_taken_in_one_step(tmp_path: Path) -> None:
    begin, taken = threading.Barrier(8), []

    def draw(number: int) -> None:
        begin.wait()
        for picture in range(20):
            partial = tmp_path / f".{number}-{picture}"
            partial.write_text(f"{number} {picture}")
            taken.append(names.put(partial, tmp_path, "a-cat-0"))
            partial.unlink()

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 160
    assert {path.read_text() for path in taken} == {f"{a} {b}" for a in range(8) for b in range(20)}
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in taken)


def test_names_are_taken_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.png").write_text("another's")
    (tmp_path / ".mine").write_text("mine")
    assert names.put(tmp_path / ".mine", tmp_path, "a") == tmp_path / "a-2.png"
    assert (tmp_path / "a.png").read_text() == "another's"
    assert (tmp_path / "a-2.png").read_text() == "mine"


def test_a_run_has_its_folder_for_itself(tmp_path: Path) -> None:
    from star.generators.training.run import Run, RunConfig

    program = (
        "import sys\nfrom pathlib import Path\nfrom star.generators.training.folder_lock import Claim\n"
        "claim = Claim.of(Path(sys.argv[1]))\nassert claim\nprint('mine', flush=True)\nsys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(InputError, match="another process is writing into"):
        Run(tmp_path, RunConfig(steps=1, trackers=()), {}, False)
    other.stdin.close()
    other.wait()
    other.stdout.close()
    first = Run(tmp_path, RunConfig(steps=1, trackers=()), {}, False)
    Run(tmp_path, RunConfig(steps=1, trackers=()), {}, False)  # the same process may
    assert not first.step


# ---- signals


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "star: interrupted"),
        (signal.SIGTERM, 143, "star: stopped by SIGTERM"),
        (signal.SIGHUP, 129, "star: stopped by SIGHUP"),
    ],
)
def test_a_signal_ends_a_command_cleanly(
    number: int,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    before = signal.getsignal(number)

    def interrupted(partial: Path, folder: Path, stem: str) -> Path:
        assert partial.is_file()
        os.kill(os.getpid(), number)
        raise AssertionError("the signal came too late")

    monkeypatch.setattr("star.pictures.job.put", interrupted)
    assert run("sample", "a cat", *MODEL, "--out", tmp_path / "out") == code
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert os.listdir(tmp_path / "out") == []
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:

        def table() -> str:
            os.kill(os.getpid(), signal.SIGHUP)
            return "done"

        monkeypatch.setattr("star.commands.catalogue.table", table)
        assert run("list") == 0
        assert capsys.readouterr().out == "done\n"
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- outputs


@pytest.mark.parametrize("arguments", [("list",), ("--help",)], ids=str)
def test_a_closed_pipe_is_a_quiet_end(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = star(*arguments, stdout=writer)
    os.close(writer)
    assert ended.returncode == (0 if "--help" in arguments else 141)  # argparse does not ask whether it was read
    assert ended.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_output_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        ended = star("list", stdout=full)
    assert ended.returncode == 2
    assert ended.stderr.startswith("star: an output of this command could not be written (No space left on device)")
    assert ended.stderr.count("\n") == 1


def test_a_prompt_is_the_same_in_every_locale(tmp_path: Path) -> None:
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    ended = star("sample", "красный 🍎", *MODEL, "--out", str(tmp_path), stdout=subprocess.PIPE, env=other)
    assert ended.returncode == 0, ended.stderr
    assert os.listdir(tmp_path) == ["красный-0.png"]
    assert ended.stdout.strip().endswith(r"\u043a\u0440\u0430\u0441\u043d\u044b\u0439-0.png")
    from PIL import Image

    with Image.open(tmp_path / "красный-0.png") as picture:
        assert picture.text["prompt"] == "красный 🍎"  # type: ignore[attr-defined]


# ---- disks


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 200 bytes: as a full disk, and needs no rights. Not while pytest writes what it found."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_a_model_directory(tmp_path: Path) -> None:
    from star.generators.pretrained import write

    place = tmp_path / "model"
    with small_files(), pytest.raises(InputError, match=r"model could not be written \(File too large\): make room$"):
        write(place, family="toy", config={}, tensors={"weight": torch.zeros(999)}, card="")
    assert os.listdir(tmp_path) == []


def test_no_room_for_a_checkpoint(tmp_path: Path) -> None:
    from star.generators.training import checkpoint as snapshots

    with (
        small_files(),
        pytest.raises(InputError, match=r"step 3 .* could not be written \(File too large\): make room"),
    ):
        snapshots.write(tmp_path, 3, {"weight": torch.zeros(9999)}, {}, keep=1)
    assert os.listdir(tmp_path) == []


def test_no_room_for_a_picture_or_a_text(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    with small_files(), pytest.raises(InputError, match=r"/a-cat-0.png could not be written .*: make room$"):
        job.save_new(noise, tmp_path, "a-cat-0", {})
    with small_files(), pytest.raises(InputError, match=r"scores.json could not be written .*: make room"):
        write_text(tmp_path / "scores.json", "x" * 9999)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_found_however_deep(tmp_path: Path) -> None:
    def torch_save() -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 576 vs 534")  # noqa: B904  (as torch does)

    with (
        pytest.raises(InputError, match=r"^place could not be written \(No space left on device\): make room$"),
        writing("place"),
    ):
        torch_save()
    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "make room" in str(refusal(rust, "place"))
    assert refusal(RuntimeError("a defect of ours"), "place") is None
    with pytest.raises(RuntimeError, match="a defect of ours"), writing("place"):
        raise RuntimeError("a defect of ours")


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "a cat", *MODEL),
        ("train", "star", "--preset", "test", "--data", "x"),
        ("finetune", "star-test", "--data", "x"),
        ("data", "encode", "x", "--tokenizer", "tokenizer-emoji", "--text-encoder", "clip-emoji"),
        ("measure", "tokenizer-emoji", "--data", "x"),
        ("bench", "star-test"),
    ],
    ids=lambda command: command[0],
)
def test_a_file_where_a_folder_is_due(command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert run(*command, "--out", tmp_path / "file" / "below") == 2
    assert "exists and is no folder)" in capsys.readouterr().err
    with pytest.raises(InputError, match="exists and is no folder"):
        check_writable(tmp_path / "file")


# ---- devices and numbers


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", "cpu:cpu", "xla"])
def test_a_device_that_is_not_there_is_told_first(device: str, capsys: pytest.CaptureFixture) -> None:
    for command in (
        ("sample", "x"),
        ("bench", "no-such-model-is-looked-for"),
        ("eval", "x", "--benchmark", "none", "--out", "r.json"),
    ):
        assert run(*command, "--device", device) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"star: the device is {device!r}, which this machine or this torch does not have")
        assert error.count("\n") == 1
    assert usable("cpu") == "cpu"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1"])
@pytest.mark.parametrize(
    "option", ["guidance-scale", "guidance-ramp", "top-p", "truncation", "temperature", "temperature-decay"]
)
def test_impossible_options_are_refused(option: str, value: str, capsys: pytest.CaptureFixture) -> None:
    assert run("sample", "a cat", *MODEL, f"--{option}={value}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"star: {option.replace('-', '_')} is {float(value)}, expected")
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--count", "--batch", "--seed"])
@pytest.mark.parametrize("value", [10**7, 10**30])
def test_huge_numbers_are_refused(option: str, value: int, capsys: pytest.CaptureFixture) -> None:
    if (option, value) == ("--seed", 10**7):
        value = 2**63
    assert run("sample", "a cat", *MODEL, option, value) == 2
    assert f"star: {option} is {value}, expected at most" in capsys.readouterr().err


def test_the_ends_of_the_ranges_draw(tmp_path: Path) -> None:
    from star.generators.registry import build

    generator = build("star-test")
    for options in (
        SampleOptions(guidance_scale=10001.0, temperature=1e-6),
        SampleOptions(temperature=1e6, top_p=1e-9),
    ):
        assert generator.generate(["a cat"], seeds=[2**63 - 1], options=options).dtype == torch.uint8


@pytest.mark.parametrize(
    "field",
    [
        "lr=nan",
        "lr=inf",
        "lr=1e30",
        "lr=-1",
        "weight_decay=nan",
        "ema=nan",
        "betas 0.9 1.5",
        "run.minutes=nan",
        "workers=-1",
    ]
    + ["run.batch_size=0", "run.steps=-5", "run.grad_clip=inf", "warmup=-3", "run.seed=99999999999999999999"],
)
def test_absurd_settings_are_refused_beforehand(field: str, capsys: pytest.CaptureFixture) -> None:
    try:
        code = run("train", "star", "--preset", "test", "--data", "nowhere", *f"--{field}".split())
    except SystemExit as end:  # of what the config itself refuses
        code = int(end.code or 0)
    assert code == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"{field.partition('=')[0].partition(' ')[0]} is" in error
    assert "expected" in error


@pytest.mark.parametrize("network", ["clip --learning_rate", "tokenizer --lr", "styleformer --lr_discriminator"])
def test_every_trainer_refuses_absurd_rates(network: str) -> None:
    name, option = network.split()
    for rate in ("1e30", "nan"):
        with pytest.raises(InputError, match=f"^{option[2:]} is"):
            configure(name, "test", [f"{option}={rate}"])


def test_divergence_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def diverge() -> str:
        raise DivergenceError("loss no longer finite at step 3")

    monkeypatch.setattr("star.commands.catalogue.table", diverge)
    assert run("list") == 2
    assert capsys.readouterr().err == "star: loss no longer finite at step 3\n"


# ---- what ships


def test_shipped_weights_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tokenizer-emoji", "clip-emoji", "star/weights/clip-emoji"):
        assert (Path(place_of(name)) / "config.json").is_file()
    assert place_of("openai/clip-vit-large-patch14") == "openai/clip-vit-large-patch14"
    for network, fields in (("star", ("tokenizer", "text_encoder")), ("stylenat", ("clip",))):
        preset = configure(network, "emoji-cpu")
        assert all(Path(place_of(getattr(preset, field))).is_dir() for field in fields)
    Path("clip-emoji").mkdir()
    assert place_of("clip-emoji") == "clip-emoji"  # one's own comes first


def test_a_preset_trains_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from star.data.synthetic import write
    from star.generators.registry import build

    write(tmp_path / "s", count=8, size=16, test=0)
    monkeypatch.chdir(tmp_path)
    code = run(
        "train", "star", "--preset", "test", "--data", "s/train", "--out", "r", "--run.steps=1", "--bring_along=false"
    )
    assert code == 0
    monkeypatch.chdir("/")
    assert build(str(tmp_path / "r" / "model")).conditioning == "text"
