"""The baseline step against ours: the same losses and gradients, more memory; and `star bench --training`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.cli import main
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.planning.flops import needed, work
from star.training.baseline import BaselineNetwork
from star.training.presets import PRESETS
from star.training.step_versus import RepeatedStep, StepTask, StepVersus, alternate, attention_on, peak_of
from star.untrained import SIZES
from tests.star.ledger import Ledger

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "vocabulary": 32, "code_width": 8, "text_width": 16}


def network(**changes: Any) -> TransformerConfig:
    return TransformerConfig(sizes=(1, 2, 3, 5), **SHAPE | changes)


def task(half: bool = False, batch: int = 3, **changes: Any) -> StepTask:
    config = replace(PRESETS["test"], ema=0.9)
    return StepTask(config=config, network=network(**changes), batch=batch, device=CPU, half=half, text_tokens=6)


def gradients(step: RepeatedStep) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (B, L), and the gradients of their mean; what chance there is, is the same for every side."""
    torch.manual_seed(1)
    loss_BL = step.losses()
    loss_BL.mean().backward()
    return loss_BL.detach(), {
        name: weight.grad for name, weight in step.network.named_parameters() if weight.grad is not None
    }


def sharpened(one: StepTask, side: Any) -> RepeatedStep:
    """With weights large enough for a token's loss to depend on all that it sees."""
    step = RepeatedStep(one, side)
    with torch.no_grad():
        for name, weight in step.network.named_parameters():
            if weight.ndim > 1:
                weight.mul_(40 if name == "head.weight" else 3)
            elif name.endswith("bias"):
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return step


@pytest.mark.parametrize("side", ["baseline", "baseline-eager"])
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "eager"},
        {"attention": "scalewise", "dropout": 0.2, "drop_path": 0.3},
        {"attention": "sdpa", "qk_norm": False, "logit_norm": False},
        {"attention": "eager", "positions": "absolute"},
        {"attention": "eager", "bits": 5, "checkpointing": True},
    ],
    ids=str,
)
def test_both_sides_have_the_same_losses_and_gradients(side: Any, changes: dict[str, Any]) -> None:
    one = task(**changes)
    loss_BL, found = gradients(sharpened(one, "ours"))
    expected_BL, expected = gradients(sharpened(one, side))
    torch.testing.assert_close(loss_BL, expected_BL, rtol=1e-5, atol=1e-5)
    assert loss_BL.std() > 0.05
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 5e-4 * expected[name].norm() + 1e-8, name


def test_both_sides_agree_in_bfloat16() -> None:
    one = task(half=True, attention="eager", head_float32=False)
    loss_BL, _ = gradients(sharpened(one, "ours"))
    for side in ("baseline", "baseline-eager"):
        expected_BL, _ = gradients(sharpened(one, side))
        exact_BL, _ = gradients(sharpened(replace(one, half=False), side))
        assert (loss_BL - expected_BL).abs().mean() < 2 * (expected_BL - exact_BL).abs().mean() + 1e-3


def test_steps_of_both_sides_learn_alike() -> None:
    sides = [RepeatedStep(task(attention="eager"), side) for side in ("ours", "baseline")]
    runs = [[float(step()) for _ in range(6)] for step in sides]
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
    assert runs[0][-1] < runs[0][0] - 1e-3


def test_a_network_that_a_class_modulates_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="without AdaLN"):
        BaselineNetwork(NextScaleTransformer(network(conditioning="class", cross_attention=False, modulation="adaln")))


def test_sides_take_turns_and_the_first_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [RepeatedStep(task(attention="eager"), side) for side in ("ours", "baseline")]
    order: list[str] = []
    monkeypatch.setattr(RepeatedStep, "__call__", lambda step: order.append(step.side))
    clock = iter(range(100))
    monkeypatch.setattr("star.training.step_versus.now", lambda _device: float(next(clock)))
    found = alternate(sides[0], sides[1], 3)
    assert order == ["ours", "baseline"] * 5
    assert found.seconds == ((1.0,) * 3, (1.0,) * 3)
    assert found.tokens == 3 * 39


def test_ratios_are_of_pairs() -> None:
    seconds = ((1.0, 2.0, 4.0), (2.0, 3.0, 4.0))
    found = StepVersus(sides=("ours", "baseline"), seconds=seconds, batch=2, tokens=10, flops=5)
    assert found.ratios == (2.0, 1.5, 1.0)
    assert found.ratio == 1.5
    assert found.median(1) == 3.0


def test_what_is_needed_is_the_written_out_work_without_unseen_pairs() -> None:
    config = network(attention="eager")
    lengths = config.schedule.lengths
    done = work(config, lengths, 6)
    seen = 1 * 1 + 4 * 5 + 9 * 14 + 25 * 39
    unseen = 39 * 39 - seen
    assert needed(config, lengths, 6) == done.forward + done.backward - 3 * 4 * config.depth * config.width * unseen
    assert needed(replace(config, attention="flex", checkpointing=True), lengths, 6) == needed(config, lengths, 6)


def test_attention_is_what_the_device_has() -> None:
    assert attention_on(CPU, network(attention="flex")) == "eager"
    assert attention_on(CPU, replace(network(attention="sdpa"), sizes=SIZES[1024])) == "scalewise"
    assert attention_on(CPU, network(attention="scalewise")) == "scalewise"
    assert attention_on(torch.device("cuda"), network(attention="flex")) == "flex"


def alive(one: StepTask, side: Any) -> int:
    """Bytes of tensors at most alive in the second step."""
    step = RepeatedStep(one, side)
    step()
    ledger = Ledger()
    kept = [value for state in step.optimizer.state.values() for value in state.values()]
    kept += [*step.network.parameters(), *step.model.buffers()]
    kept += [] if step.average is None else list(step.average.parameters())
    for tensor in kept:
        ledger.enter(tensor)
    with ledger:
        step()
    return ledger.peak


@pytest.mark.parametrize("half", [False, True])
def test_a_step_at_512_pixels_takes_less_memory_than_the_baseline(half: bool) -> None:
    """2,240 tokens; one head as wide as those of the released network."""
    changes: dict[str, Any] = {"width": 64, "heads": 1, "depth": 2}
    config = replace(network(**changes, attention="scalewise"), sizes=SIZES[512])
    one = replace(task(half, batch=1), network=config)
    ours, baseline = alive(one, "ours"), alive(one, "baseline")
    recomputed = alive(replace(one, network=replace(config, checkpointing=True)), "ours")
    assert recomputed < ours < baseline - 4 * 2240**2 // 2  # at least half the mask less
    assert alive(one, "baseline-eager") > 1.1 * baseline


def test_the_peak_is_that_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([100, 1300])
    monkeypatch.setattr("star.training.step_versus.reset_peak", lambda _device: None)
    monkeypatch.setattr("star.training.step_versus.peak", lambda _device: next(readings))
    assert peak_of(task(attention="eager"), "baseline") == 1200


def test_the_command_tells_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    command = ["bench", "--training", "test", "--batch", "1", "--repetitions", "2", "--device", "cpu", "--dtype"]
    assert main([*command, "bfloat16", "--width=16", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "test: width 16, depth 2, 411 tokens; batch 1 on cpu, bfloat16, 2 steps of each in turn" in told
    assert "ours (eager): " in told
    assert "of the baseline's" in told
    (row,) = json.loads(out.read_text())
    assert row["ratios"][0] == pytest.approx(row["seconds"][1][0] / row["seconds"][0][0])
    assert min(row["peak_bytes"]) > 2**20
    assert row["network"]["width"] == 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training", "test", "star-emoji"], "expected it alone"),
        (["--training", "test", "--against", "float32"], "expected baseline or baseline-eager"),
        (["--training", "none-such"], "there is no preset"),
        (["star-test", "--width=3"], "need --training PRESET"),
        ([], "no MODEL was given"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err
