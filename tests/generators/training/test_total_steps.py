"""A run that ends by the clock: schedules reach their end in its last step, whatever the pace."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from star.data.errors import InputError
from star.generators.training.run import Run, RunConfig
from star.generators.training.schedule import lr_at
from star.generators.training.total_steps import TotalSteps


def end_of(durations: list[float], budget: float, most: int = 10_000) -> tuple[int, float, list[int]]:
    """Steps, seconds and horizons of a run whose steps take so long, the last duration again and again."""
    total_steps, step, seconds, seen = TotalSteps(most, budget / 60), 0, 0.0, []
    while step < total_steps.update(step, seconds):
        seen.append(total_steps.steps)
        seconds += durations[min(step, len(durations) - 1)]
        step += 1
    return step, seconds, seen


def test_without_minutes_the_steps_decide() -> None:
    assert end_of([1.0], 0.0, most=7) == (7, 7.0, [7] * 7)


def test_a_steady_pace_fills_the_time_and_no_more() -> None:
    steps, seconds, seen = end_of([30.0, 1.0], 100.0)
    assert (steps, seconds) == (71, 100.0)
    assert set(seen[5:]) == {71}  # known once the slow beginning is over, which counts but does not mislead


def test_a_pace_that_falls_is_followed() -> None:
    steps, seconds, seen = end_of([1.0] * 50 + [2.0], 100.0)
    assert seen[10] == 100
    assert steps == seen[-1] == 75
    assert seconds <= 100
    assert seen[50:] == sorted(seen[50:], reverse=True)


def test_the_last_step_knows_that_it_is_the_last_even_if_it_comes_late() -> None:
    steps, seconds, seen = end_of([1.0] * 50 + [80.0, 1.0], 100.0)
    assert (steps, seconds) == (52, 131.0)
    assert seen[-1] == steps


def test_the_steps_are_the_most() -> None:
    assert end_of([1.0], 100.0, most=20)[0] == 20


def test_a_time_that_is_over_leaves_one_step() -> None:
    assert TotalSteps(100, 1.0).update(30, 61.0) == 31


def run(out: Path, minutes: float, resume: bool = False) -> tuple[Run, list[float]]:
    config = RunConfig(
        steps=10_000, minutes=minutes, batch_size=4, log_every=1000, sample_every=0, checkpoint_every=5000, trackers=()
    )
    run = Run(out, config, {"minutes": minutes}, resume)
    model = nn.Linear(2, 1)
    run.track(model=model)
    run.restore()
    rates = []
    for step in run.steps():
        rates.append(lr_at(step, peak=1.0, steps=run.total_steps, warmup=2, floor=0.1))
        loss = model(torch.ones(4, 2)).mean()
        run.backward(loss)
        run.log({"loss": loss, "last": float(run.due(step, 5000))}, images=4)
        time.sleep(0.01)
    return run, rates


def test_a_run_ends_in_time_with_its_schedule_its_log_and_a_checkpoint(tmp_path: Path) -> None:
    began = time.monotonic()
    done, rates = run(tmp_path, 1 / 60)
    assert 0.5 < time.monotonic() - began < 10
    assert 10 < done.step < 101
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert (tmp_path / "checkpoints" / f"step-{done.step:08d}").is_dir()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == done.step
    assert line["last"] == pytest.approx(1 / done.step)
    again, none = run(tmp_path, 1 / 60, resume=True)
    assert again.step == done.step
    assert none == []


def test_minutes_below_zero_are_refused() -> None:
    with pytest.raises(InputError, match=r"run\.minutes is -1"):
        RunConfig(steps=1, minutes=-1)
