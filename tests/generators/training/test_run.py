"""The laws of a training run: resume is exact, checkpoints are whole, refusals say what differs."""

import errno
import json
import os
import random
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from star.data.errors import DivergenceError, InputError
from star.generators.config import to_dict
from star.generators.training import checkpoint as snapshots
from star.generators.training.run import Run, RunConfig
from star.generators.training.schedule import lr_at, set_lr
from star.generators.training.signals import Stopped


def config(**changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "steps": 10,
        "seed": 3,
        "batch_size": 8,
        "log_every": 4,
        "checkpoint_every": 5,
        "keep": 2,
        "trackers": (),
    }
    return RunConfig(**(fields | changes))


def batch(index: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(index))


def train(
    out: Path, config: RunConfig, resume: bool = False, kill_at: int | None = None, loss_factor: float = 1.0
) -> Run:
    """A trainer in small: dropout, NumPy and Python noise, AdamW, an EMA, accumulation."""
    run = Run(out, config, {"run": to_dict(config), "width": 6}, resume)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    model = run.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters())
    run.track(model=model, optimizer=optimizer, ema=ema)
    run.restore()
    index = run.first_batch
    for step in run.steps():
        set_lr(optimizer, lr_at(step, peak=1e-2, steps=config.steps, warmup=3))
        for _ in run.micro_steps(model):
            with run.autocast():
                noise = random.random() + float(np.random.rand())  # noqa: NPY002
                loss = loss_factor * ((model(batch(index)) - noise) ** 2).mean()
            run.backward(loss)
            run.log({"loss": loss, "parts": loss.detach() * torch.tensor([1.0, 2.0])}, images=run.micro_batch_size)
            index += 1
        run.log({"grad_norm": run.clip(model.parameters())})
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
        if step == kill_at:
            raise KeyboardInterrupt
    return run


def final_state(run: Run) -> dict[str, Tensor]:
    states = {name: item.state_dict() for name, item in run.tracked.items.items()}
    return dict(flat(states))


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            yield from flat(item, f"{name}.{key}")


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in line if "second" not in name} for line in lines(out)]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("kill_at", [5, 8])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, changes: dict, kill_at: int) -> None:
    whole = train(tmp_path / "whole", config(**changes))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", config(**changes), kill_at=kill_at)
    torch.rand(7)  # whatever the process has drawn before must not matter
    parts = train(tmp_path / "parts", config(**changes), resume=True)
    expected, found = final_state(whole), final_state(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")
    assert whole.images == parts.images == 80


def test_seed_moves_the_run(tmp_path: Path) -> None:
    first, second = (final_state(train(tmp_path / str(seed), config(seed=seed))) for seed in (1, 2))
    assert not all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_saves_and_stops_between_two_steps(tmp_path: Path, number: int, capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(number)
    run = Run(tmp_path / "out", config(), {"run": to_dict(config()), "width": 6}, False)
    run.restore()
    steps = run.steps()
    assert [next(steps), next(steps), next(steps)] == [0, 1, 2]
    os.kill(os.getpid(), number)
    with pytest.raises(Stopped) as stopped:
        next(steps)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert [kept.step for kept in snapshots.snapshots(tmp_path / "out/checkpoints")] == [3]
    assert "--resume continues" in capsys.readouterr().err


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    train(tmp_path, config(checkpoint_every=2, keep=3))
    assert [kept.step for kept in snapshots.snapshots(tmp_path / "checkpoints")] == [6, 8, 10]
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_half_written_checkpoint_is_never_the_newest(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config(), kill_at=7)
    unfinished = tmp_path / "checkpoints/.unfinished-00000099"
    unfinished.mkdir()
    (unfinished / "state.pt").write_bytes(b"half")
    run = train(tmp_path, config(), resume=True)
    assert run.step == 10
    assert not unfinished.exists()


def test_full_disk_is_told_and_the_last_good_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.save

    def full(state: Any, file: Any) -> None:
        if state["step"] > 5:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"step 10 .*No space left.*make room.*last good one is .*step-00000005"):
        train(tmp_path, config())
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000005"]
    monkeypatch.undo()
    train(tmp_path, config(), resume=True)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(tmp_path, config())
    state = tmp_path / "checkpoints/step-00000010/state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"step-00000010 cannot be read"):
        train(tmp_path, config(), resume=True)


def test_changed_config_is_refused_by_name_but_cadence_is_free(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config(), kill_at=7)
    with pytest.raises(InputError, match=r"run\.seed was 3 and is now 4"):
        train(tmp_path, config(seed=4), resume=True)
    train(tmp_path, config(log_every=1, keep=1, checkpoint_every=3), resume=True)


def test_a_run_that_was_guided_by_what_is_guide_emoji_now_goes_on(tmp_path: Path) -> None:
    def begin(clip: str, resume: bool) -> Run:
        return Run(tmp_path, config(), {"run": to_dict(config()), "width": 6, "clip": clip}, resume)

    train(tmp_path, config())
    about = tmp_path / "checkpoints" / "step-00000010" / "run.json"
    told = json.loads(about.read_text())
    told["config"]["clip"] = "clip-emoji"
    about.write_text(json.dumps(told))
    begin("guide-emoji", resume=True)
    with pytest.raises(InputError, match="clip was 'clip-emoji' and is now 'mine'"):
        begin("mine", resume=True)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path, config())
    with pytest.raises(InputError, match=r"holds a run at step 10.*--resume"):
        train(tmp_path, config())


def test_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    expected = final_state(train(tmp_path, config()))
    found = final_state(train(tmp_path, config(), resume=True))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 10]


def test_resume_without_checkpoint_starts_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(tmp_path, config(), resume=True)
    assert "no checkpoint yet" in capsys.readouterr().err


def test_other_state_names_are_refused(tmp_path: Path) -> None:
    train(tmp_path, config())
    run = Run(tmp_path, config(), {"run": to_dict(config()), "width": 6}, True)
    run.track(model=nn.Linear(2, 2))
    with pytest.raises(InputError, match="holds ema, model, optimizer, this run keeps model"):
        run.restore()


def test_forgotten_restore_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, config())
    run = Run(tmp_path, config(), {"run": to_dict(config()), "width": 6}, True)
    with pytest.raises(RuntimeError, match="restore"):
        next(run.steps())


def test_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(
        DivergenceError, match=r"loss, grad_norm no longer finite at step 4; there is no checkpoint yet"
    ):
        train(tmp_path, config(), loss_factor=float("nan"))
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """As after a last step with an absurd rate, whose loss was still good."""
    run = Run(tmp_path, config(steps=6, checkpoint_every=3, log_every=6), {}, False)
    model = nn.Linear(2, 1)
    run.track(model=model)
    steps = run.steps()
    for _ in range(6):
        next(steps)
        run.log({"loss": 1.0})
    model.weight.data[0, 0] = float("inf")
    with pytest.raises(DivergenceError, match=r"model no longer finite at step 6; .*step-00000003: begin anew"):
        next(steps)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000003"]


def test_nothing_is_drawn_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    run = Run(tmp_path, config(sample_every=2), {}, False)
    model = nn.Linear(2, 1)
    run.track(model=model)
    for _ in run.steps():
        model.weight.data[0, 0] = float("nan")
        with pytest.raises(DivergenceError, match="model no longer finite at step 2"):
            run.sample_due(1)
        break


def test_log_lines_hold_means_over_the_steps_between(tmp_path: Path) -> None:
    run = Run(tmp_path, config(), {}, False)
    for step in run.steps():
        run.log({"value": float(step), "vector": torch.tensor([0.0, 10.0 * step])}, images=3)
    assert [line["value"] for line in lines(tmp_path)] == [1.5, 5.5, 8.5]
    assert [line["vector/1"] for line in lines(tmp_path)] == [15.0, 55.0, 85.0]
    assert [line["images"] for line in lines(tmp_path)] == [12, 24, 30]


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    gradients = []
    for accumulate in (1, 4):
        run = Run(tmp_path / str(accumulate), config(accumulate=accumulate), {}, False)
        weight = nn.Parameter(torch.ones(6))
        for micro in run.micro_steps():
            size = run.micro_batch_size
            run.backward((batch(0)[micro * size : (micro + 1) * size] * weight).square().mean())
        gradients.append(weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_clip_returns_the_norm_and_bounds_the_gradient(tmp_path: Path) -> None:
    run = Run(tmp_path, config(grad_clip=0.5), {}, False)
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 2.0)
    assert float(run.clip([weight])) == pytest.approx(4.0)
    assert float(weight.grad.norm()) == pytest.approx(0.5, rel=1e-4)


def test_indivisible_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch_size is 8, expected a multiple of 3"):
        Run(tmp_path, config(accumulate=3), {}, False)


def test_missing_tracker_asked_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.generators.training.run_log.find_spec", lambda name: None)
    Run(tmp_path, config(trackers=("tensorboard",)), {}, False)
    with pytest.raises(InputError, match=r"names wandb, which is not installed"):
        Run(tmp_path, config(trackers=("wandb",)), {}, False)


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Run(tmp_path / "file/run", config(), {}, False)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"keep": 0}, {"seed": -1}, {"batch_size": -4}, {"minutes": -1.0}], ids=str
)
def test_impossible_values_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match=rf"run\.{next(iter(change))} is"):
        config(**change)


def test_learning_rate_rises_falls_and_ends_at_the_floor() -> None:
    rates = [lr_at(step, peak=2.0, steps=100, warmup=10, floor=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[-1] == pytest.approx(0.2)
    assert all(earlier >= later for earlier, later in pairwise(rates[10:]))
    assert {lr_at(step, peak=1.0, steps=9, shape="constant") for step in range(9)} == {1.0}


def test_tensorboard_gets_the_lines_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path, config(trackers=("tensorboard",)), {}, False)
    for step in run.steps():
        run.log({"loss": 1.0})
        if step == 3:
            path = run.picture("samples", torch.zeros(3, 8, 8, dtype=torch.uint8), step)
            assert path.exists()
            assert path.name == "samples-00000004.png"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [4, 8, 10]
    assert [event.step for event in events.Images("samples")] == [4]
