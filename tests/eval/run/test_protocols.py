"""Protocols by name: their metrics exist, their resizes are antialiased, their seeds belong to the prompt."""

import numpy as np
import pytest
import torch
from PIL import Image

from star.data.errors import InputError
from star.eval.metrics.registry import metric, plan_of
from star.eval.run.protocols import PROTOCOLS, SEEDS, ResizeRule, resized, rules_of

RULES: tuple[ResizeRule, ...] = ("lanczos-antialias", "bilinear-antialias")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_metrics_exist_once_and_have_their_networks(name: str) -> None:
    rules = rules_of(name)
    assert len(set(rules.metrics)) == len(rules.metrics)
    for wanted in rules.metrics:
        assert metric(wanted)
    plan = plan_of(rules.metrics)
    assert set(plan.generated) == {wanted.partition("/")[2] for wanted in rules.metrics}


def test_a_distance_on_few_pictures_has_its_correction_beside_it() -> None:
    for rules in PROTOCOLS.values():
        for wanted in rules.metrics:
            kind, _, network = wanted.partition("/")
            if kind in ("fid", "fd"):
                assert f"fd_infinity/{network}" in rules.metrics


def test_an_unknown_name_lists_near_misses() -> None:
    with pytest.raises(InputError, match=r"no protocol 'mjhq-30'; did you mean mjhq-30k"):
        rules_of("mjhq-30")


@pytest.mark.parametrize("rule", RULES)
def test_resizes_are_antialiased(rule: ResizeRule) -> None:
    """A fine checkerboard becomes grey; plain bilinear samples, as some harnesses take them, are black or white."""
    H = W = 60
    board_HW = (torch.arange(H)[:, None] + torch.arange(W)) % 2 * 255
    pixels_3HW = board_HW.to(torch.uint8).expand(3, H, W).contiguous()
    small = resized(pixels_3HW, (12, 12), rule)
    assert (small.float() - 127.5).abs().max() < 20
    aliased = torch.nn.functional.interpolate(pixels_3HW[None].float(), (12, 12), mode="bilinear")
    assert (aliased - 127.5).abs().min() > 100, "the board does not expose the fault"


def test_the_resize_of_the_paper_is_pils_bilinear() -> None:
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels_HW3).resize((20, 20), Image.Resampling.BILINEAR))
    found = resized(torch.from_numpy(pixels_HW3).permute(2, 0, 1), (20, 20), "bilinear-antialias")
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("rule", RULES)
def test_the_middle_is_kept_of_other_aspects(rule: ResizeRule) -> None:
    for shape in ((3, 40, 100), (3, 100, 40)):
        pixels = torch.zeros(shape, dtype=torch.uint8)
        pixels[:, shape[1] // 2 - 20 : shape[1] // 2 + 20, shape[2] // 2 - 20 : shape[2] // 2 + 20] = 200
        small = resized(pixels, (10, 10), rule)
        assert small.shape == (3, 10, 10)
        assert (small[:, 2:8, 2:8].int() - 200).abs().max() <= 1
        assert small.min() > 150, "filters look a little beyond the cut, and no further"


def test_what_has_the_size_is_untouched() -> None:
    pixels_3HW = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    for size in ((8, 8), None):
        assert resized(pixels_3HW, size, "lanczos-antialias") is pixels_3HW


def test_seeds_belong_to_the_prompt() -> None:
    by_id = SEEDS["by-id"]
    keys = [f"{number:04x}" for number in range(2000)]
    seeds = {by_id(key, seed) for key in keys for seed in (0, 1)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert by_id("0004", 0) == by_id("0004", 0) == 168099274904846
    assert {SEEDS["same"](key, 5) for key in keys} == {5}
