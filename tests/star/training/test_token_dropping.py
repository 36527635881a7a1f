"""The curriculum: which tokens each step computes, and that a targets of coarse scales is the same targets, cut."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from star.planning.plan import Plan, Shapes, plan
from star.tiny import tiny_tokenizer, tiny_transformer
from star.tokenizer.scales import ScaleSchedule
from star.training.presets import PRESETS
from star.training.targets import make_targets
from star.training.token_dropping import Part, ScaleCurriculum
from tests.star.model.test_attention_backends import SCHEDULE, TRAINABLE, targets

PYRAMID = ScaleSchedule((1, 2, 4, 8))


def test_coarse_steps_stand_evenly_between_the_others() -> None:
    curriculum = ScaleCurriculum(PYRAMID, keep_last=0.25, coarse_scales=2, coarse_steps=0.8)
    parts = [curriculum.at(step, 100) for step in range(100)]
    assert [step for step, part in enumerate(parts) if part.scales == 4] == list(range(4, 100, 5))
    assert parts[0].lengths == (1, 4)
    assert parts[0].draw() is None
    assert parts[4].lengths == (1, 4, 16, 16)
    drawn_L = parts[4].draw()
    assert drawn_L is not None
    assert len(drawn_L) == 37


def test_the_last_steps_are_whole() -> None:
    curriculum = ScaleCurriculum(PYRAMID, keep_last=0.25, whole_last=0.3, coarse_scales=2, coarse_steps=0.5)
    parts = [curriculum.at(step, 10) for step in range(10)]
    whole = Part(PYRAMID, 4)
    assert [part == whole for part in parts] == [False] * 7 + [True] * 3
    assert curriculum.shares() == pytest.approx({Part(PYRAMID, 2): 0.35, Part(PYRAMID, 4, 0.25): 0.35, whole: 0.3})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {Part(PYRAMID, 4): 1.0}),
        ({"whole_last": 0.5}, {Part(PYRAMID, 4): 1.0}),
        ({"keep_last": 0.5}, {Part(PYRAMID, 4, 0.5): 1.0}),
        ({"coarse_scales": 1, "coarse_steps": 1.0}, {Part(PYRAMID, 1): 1.0}),
    ],
)
def test_parts_that_are_the_same_are_one(changes: dict[str, Any], expected: dict[Part, float]) -> None:
    curriculum = ScaleCurriculum(PYRAMID, **changes)
    assert curriculum.shares() == expected
    assert {curriculum.at(step, 20) for step in range(20)} == set(expected)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_lesson_of_coarse_scales_is_the_beginning_of_the_whole_lesson(noise: float) -> None:
    quantizer = tiny_tokenizer().quantizer
    schedule = quantizer.schedule
    latent_BEhw = torch.randn(3, quantizer.config.code_width, schedule.finest, schedule.finest)
    for scales in range(1, schedule.count + 1):
        torch.manual_seed(5)
        whole = make_targets(quantizer, latent_BEhw, noise=noise)
        torch.manual_seed(5)
        part = make_targets(quantizer, latent_BEhw, noise=noise, scales=scales)
        end = schedule.offsets[scales]
        assert torch.equal(part.codes_BL, whole.codes_BL[:, :end])
        assert torch.equal(part.teacher_input_BlE, whole.teacher_input_BlE[:, : end - schedule.lengths[0]])


@torch.no_grad()
@pytest.mark.parametrize("backend", TRAINABLE)
def test_logits_of_coarse_scales_do_not_need_the_finer_ones(backend: str) -> None:
    inputs_BlE, text, _ = targets()
    model = tiny_transformer(attention=backend)
    whole_BLV = model(inputs_BlE, text)
    for end in SCHEDULE.offsets[1:]:
        torch.testing.assert_close(model(inputs_BlE[:, : end - 1], text), whole_BLV[:, :end])


def test_an_input_that_ends_within_a_scale_is_refused() -> None:
    inputs_BlE, text, _ = targets()
    with pytest.raises(ValueError, match="or ends after a coarser scale"):
        tiny_transformer()(inputs_BlE[:, :-1], text)


def test_coarse_steps_are_planned() -> None:
    shapes = Shapes(sizes=(1, 2, 4, 8, 16), vocabulary=64, code_width=8, text_width=32)

    def planned(**changes: Any) -> Plan:
        every = replace(PRESETS["emoji-128"], coarse_scales=0, coarse_steps=0.0, whole_last=0.0)
        return plan(replace(every, **changes), shapes, gpus=1, gpu="h100")

    whole, coarse = planned(), planned(coarse_scales=3, coarse_steps=1.0)
    mixed = planned(coarse_scales=3, coarse_steps=0.75)
    assert coarse.tokens == 21
    assert mixed.tokens == whole.tokens
    assert mixed.memory.peak == whole.memory.peak
    assert mixed.work.total == pytest.approx(0.75 * coarse.work.total + 0.25 * whole.work.total)
