"""Every trainer, killed and continued by other workers or processes, learns what an undisturbed one does."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from star.commands.train import TRAINERS, presets
from star.data.errors import InputError
from star.data.packing.pack import pack
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.eval.extractors import train_classifier as judge
from star.generator import StarGenerator
from star.generators.pretrained import ModelDirectory
from star.generators.training.run import Run, RunConfig
from star.precomputed.encode import encode
from star.tiny import tiny_tokenizer, tiny_transformer

# Fed in batches of shards in their order; a restyler draws pairs of all pictures in memory, see tests/star/restyle.
FED = [name for name in TRAINERS if name != "restyle"]
NETWORKS = [*FED, "star on codes", "star refiner"]
SAMPLES, BATCH, STEPS, SAVED, DEATH = 16, 4, 5, 2, 4  # an epoch is four steps; the death loses two of them


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, the two frozen networks, a model of them, and shards of their codes."""
    root = tmp_path_factory.mktemp("house")
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(root / "tokenizer")
    generator.text_encoder.save_pretrained(root / "text")
    generator.save_pretrained(root / "star", references={"tokenizer": "../tokenizer", "text_encoder": "../text"})
    write(root / "pictures", count=SAMPLES, size=16, test=0)
    encode([str(root / "pictures" / "train")], root / "codes", tokenizer=root / "tokenizer", text_encoder=root / "text")
    return root


def config(network: str, house: Path, *, keep: Any = False, **changes: Any) -> Any:
    """The trainer's smallest preset, with a log of samples. keep: whether its data stay in memory."""
    run = RunConfig(
        steps=STEPS, batch_size=BATCH, log_every=1, sample_every=0, checkpoint_every=SAVED, trackers=(), grad_clip=1.0
    )
    given: dict[str, Any] = {"run": run, "log_samples": True}
    if network.startswith("star"):
        given |= {"tokenizer": str(house / "tokenizer"), "text_encoder": str(house / "text"), "held_out": 0.0}
        given |= {"precompute": keep, "code_noise": 0.0, "dropout": 0.1, "sample_prompts": ()}
    else:
        given |= {"cache": keep}
    if network in ("stylegan-t", "stylenat", "styleformer"):
        given |= {"sample_prompts": (), "caption_dropout": 0.2}
    if network == "styleformer":
        given |= {"augment": ("text",), "augment_pictures": 20}
    if network.endswith("refiner"):
        given["init_from"] = str(house / "star")
    return replace(presets(family(network))[preset(network)], **given | changes)


def family(network: str) -> str:
    """The trainer's name."""
    return network.partition(" ")[0]


def preset(network: str) -> str:
    """The smallest one."""
    return "refiner-test" if network.endswith("refiner") else "test"


def train(network: str, house: Path, out: Path, *, resume: bool = False, **changes: Any) -> None:
    module, _, name = TRAINERS[family(network)][1].partition(":")
    data = house / "codes" if network.endswith("codes") else house / "pictures" / "train"
    getattr(import_module(module), name)(config(network, house, **changes), data=[str(data)], out=out, resume=resume)


def die(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ends every run as a kill in this step would: what it did since its last checkpoint is lost."""
    real = Run._finish_step

    def finish_step(run: Run) -> None:
        if run.step + 1 == step:
            raise KeyboardInterrupt
        real(run)

    monkeypatch.setattr(Run, "_finish_step", finish_step)


def log(out: Path, rank: int = 0) -> list[dict[str, Any]]:
    lines = (out / f"samples-{rank}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def final(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "checkpoints" / f"step-{STEPS:08d}" / "state.pt", weights_only=True)
    return dict(state["tracked"])


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same(value, other[name], f"{where}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for place, value in enumerate(one):
            assert_same(value, other[place], f"{where}.{place}")
    else:
        assert one == other, where


@pytest.mark.usefixtures("workers_here")
@pytest.mark.parametrize("network", NETWORKS)
def test_a_death_and_other_workers_change_nothing(
    network: str, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(network, house, tmp_path / "whole", workers=0)
    with monkeypatch.context() as patch:
        die(patch, DEATH)
        with pytest.raises(KeyboardInterrupt):
            train(network, house, tmp_path / "parts", workers=1)
    assert len(log(tmp_path / "parts")) == DEATH
    train(network, house, tmp_path / "parts", resume=True, workers=2)
    lines = log(tmp_path / "parts")
    assert lines == log(tmp_path / "whole")
    assert [line["batch"] for line in lines] == list(range(STEPS))
    first = [key for line in lines for key, epoch in zip(line["keys"], line["epochs"], strict=True) if epoch == 0]
    assert len(first) == len(set(first)) == SAMPLES
    assert_same(final(tmp_path / "whole"), final(tmp_path / "parts"))
    if network in ("star", "star on codes", "stylegan-t", "stylenat", "styleformer"):
        assert ModelDirectory.read(tmp_path / "parts" / "model").images_seen == STEPS * BATCH
    recorded = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (recorded["lanes"], recorded["per_lane"]) == (1, BATCH)


@pytest.mark.parametrize("network", FED)
def test_every_trainer_weighs_its_places_of_data(network: str, house: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 weights were given for 1 places of data"):
        train(network, house, tmp_path / "run", weights=(3.0, 1.0))


def test_samples_come_by_the_weights_of_their_places(house: Path, tmp_path: Path) -> None:
    pack(house / "pictures" / "train", tmp_path / "twins", kind="shards", prefix="twin")
    options = config("judge", house, weights=(7.0, 1.0))
    run = replace(options.run, steps=40, checkpoint_every=40)
    places = [str(house / "pictures" / "train"), str(tmp_path / "twins")]
    judge.train(replace(options, run=run), data=places, out=tmp_path / "run")
    pairs = [pair for line in log(tmp_path / "run") for pair in zip(line["epochs"], line["keys"], strict=True)]
    assert len(pairs) == 160
    twins = len(pairs) - len(set(pairs))  # of each sample that came from both places in one epoch, one
    assert 8 <= twins <= 32  # an eighth of 160 are 20; three standard deviations are 12.5


@pytest.mark.parametrize("network", ["star", "clip", "judge"])
def test_what_was_decided_is_kept_by_a_run_that_goes_on(
    network: str, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that found room for its pictures keeps them when it goes on where there is less."""
    keep = "precompute" if network == "star" else "cache"
    with monkeypatch.context() as patch:
        die(patch, DEATH)
        with pytest.raises(KeyboardInterrupt):
            train(network, house, tmp_path / "run", keep="auto")
    said = capsys.readouterr()
    assert f"in memory: about {SAMPLES} samples" in said.out + said.err
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (recorded[keep], recorded["lanes"]) == (True, 0)
    train(network, house, tmp_path / "run", resume=True, keep="auto", cache_gib=1e-9)
    keys = [key for line in log(tmp_path / "run") for key in line["keys"]]
    assert Counter(Counter(keys[:SAMPLES]).values()) == {1: SAMPLES}
    with pytest.raises(InputError, match=f"{keep} was True and is now False"):
        train(network, house, tmp_path / "run", resume=True, keep=False)


def test_data_that_do_not_fit_are_streamed(house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("tokenizer", house, tmp_path / "run", keep="auto", cache_gib=1e-9)
    said = capsys.readouterr()
    assert "do not fit into 0.00 GiB, as stated" in said.out + said.err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["cache"] is False


@pytest.mark.usefixtures("workers_here")
def test_a_death_before_the_first_checkpoint_begins_anew(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train("judge", house, tmp_path / "parts", workers=2)
    train("judge", house, tmp_path / "parts", resume=True, workers=3)
    train("judge", house, tmp_path / "whole")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert_same(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_other_lanes_are_refused_by_a_run_that_goes_on(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die(patch, DEATH)
        with pytest.raises(KeyboardInterrupt):
            train("judge", house, tmp_path / "run", lanes=2)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["per_lane"] == BATCH // 2
    with pytest.raises(InputError, match="lanes was 2 and is now 3"):
        train("judge", house, tmp_path / "run", resume=True, lanes=3)
    train("judge", house, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "wrong", [{"workers": -1}, {"lanes": -2}, {"per_lane": -1}, {"cache_gib": float("nan")}, {"cache_gib": -1.0}]
)
def test_impossible_numbers_are_refused(house: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected no negative numbers"):
        train("clip", house, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "lanes"), [("tokenizer", 0), ("styleformer", 4), ("star on codes", 2), ("star refiner", 2)]
)
def test_a_run_goes_on_with_two_processes_and_real_workers(
    network: str, lanes: int, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, the batches of two processes are those of the one that began."""
    train(network, house, tmp_path / "whole", lanes=lanes)
    with monkeypatch.context() as patch:
        die(patch, DEATH)
        with pytest.raises(KeyboardInterrupt):
            train(network, house, tmp_path / "parts", lanes=lanes)
    script = (
        "import sys; from pathlib import Path; from tests.star.training.test_every_trainer import train\n"
        "if __name__ == '__main__': "
        f"train({network!r}, Path({str(house)!r}), Path({str(tmp_path / 'parts')!r}), resume=True, lanes={lanes}, "
        "workers=1)\n"
    )
    (tmp_path / "go_on.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "go_on.py"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, ranks = log(tmp_path / "whole"), [log(tmp_path / "parts", rank) for rank in range(2)]
    assert ranks[0][:SAVED] == whole[:SAVED]
    assert [line["batch"] for line in ranks[1]] == list(range(SAVED, STEPS))
    for line, *parts in zip(whole[SAVED:], ranks[0][SAVED:], ranks[1], strict=True):
        assert line["keys"] == [key for part in parts for key in part["keys"]]
