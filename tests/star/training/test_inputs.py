"""Where what was encoded beforehand lies, and the decay of the averaged weights."""

import pytest
import torch

from star.training.inputs import place_for, tensor_bytes
from star.training.presets import PRESETS
from star.training.train import ema_decay


def test_small_sets_lie_on_the_gpu_and_large_ones_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 8000))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert place_for(gpu, 1000) == gpu
    assert place_for(gpu, 1001) == cpu
    assert place_for(cpu, 1) == cpu
    assert tensor_bytes(torch.zeros(3, 5, dtype=torch.bfloat16)) == 30


def test_the_first_steps_are_forgotten() -> None:
    assert [ema_decay(step, 0.998, True) for step in (0, 8)] == [0.1, 0.5]
    assert ema_decay(10_000, 0.998, True) == ema_decay(0, 0.998, False) == 0.998


def test_the_recipe_of_the_shipped_model() -> None:
    """What the card of star-emoji says, as far as a preset holds it."""
    preset = PRESETS["emoji"]
    assert (preset.width, preset.depth, preset.heads, preset.run.batch_size) == (448, 7, 7, 256)
    assert (preset.lr, preset.lr * preset.matrix_lr, preset.warmup, preset.lr_hold) == (1e-3, 2.5e-3, 150, 0.25)
    assert (preset.dropout, preset.code_noise, preset.noise_neighbours) == (0.1, 0.15, 32)
    assert (preset.ema, preset.ema_warmup, preset.run.grad_clip, preset.scale_power) == (0.998, True, 2.0, 0.75)
