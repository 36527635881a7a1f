"""Names that earlier versions wrote are read as what they meant, and refused where somebody types them."""

import argparse
from typing import Any

import pytest

from star.data.errors import InputError
from star.generators.config import from_dict, to_dict
from star.generators.protocol import SampleOptions
from star.generators.renamed import (
    now_called,
    refuse_old_fields,
    refuse_old_options,
    same_weights,
    translate_config,
    translate_options,
)

OLD: dict[str, Any] = {"guidance": 1.0, "ramp": 0.0, "top_k": 3, "cooling": 0.2}
NEW: dict[str, Any] = {"guidance_scale": 2.0, "guidance_ramp": 0.0, "top_k": 3, "temperature_decay": 0.2}


def test_recorded_options_are_translated() -> None:
    assert translate_options(OLD) == NEW
    assert translate_options(NEW) == NEW
    assert from_dict(SampleOptions, OLD) == SampleOptions(**NEW)
    assert from_dict(SampleOptions, to_dict(SampleOptions(**NEW))) == SampleOptions(**NEW)
    assert from_dict(SampleOptions, {}) == from_dict(SampleOptions, {"guidance": 4.0, "ramp": 1.0, "cooling": 0.0})


def test_the_strength_inside_is_the_one_that_was_recorded() -> None:
    for strength in (0.0, 1.0, 1.5, 2.5, 4.0, 1e4):
        assert from_dict(SampleOptions, {"guidance": strength}).guidance_strength == strength


@pytest.mark.parametrize("value", ["strong", None, True, [1.0]])
def test_what_is_no_number_is_refused_by_the_reader(value: Any) -> None:
    with pytest.raises(InputError, match="guidance_scale is"):
        from_dict(SampleOptions, {"guidance": value})


def test_both_names_are_refused() -> None:
    with pytest.raises(InputError, match="guidance and guidance_scale were both given, expected guidance_scale alone"):
        translate_options({"guidance": 1.0, "guidance_scale": 2.0})


def test_recorded_configs_are_translated_at_any_depth() -> None:
    old = {"lr": 1e-3, "guidance": 0.2, "sample_options": OLD, "codebook": {"reborn_below": 0.02, "decay": 0.9}}
    new = {"lr": 1e-3, "guidance": 0.2, "sample_options": NEW, "codebook": {"restart_below": 0.02, "decay": 0.9}}
    assert translate_config(old) == new  # the guidance of a GAN is the weight of a loss
    assert translate_config(new) == new
    assert translate_config([old, 1, "a", None]) == [new, 1, "a", None]


def test_weights_by_their_old_name_are_those_of_today() -> None:
    assert same_weights("clip", "clip-emoji", "guide-emoji")
    assert same_weights("discriminator.features", "clip-emoji", "guide-emoji")
    assert same_weights("text_encoder", "clip-emoji", "guide-emoji")
    cases: list[tuple[str, object, object]] = [
        ("clip", "guide-emoji", "clip-emoji"),  # not the other way round
        ("tokenizer", "clip-emoji", "guide-emoji"),
        ("clip", "clip-emoji", "openai/clip-vit-base-patch32"),
        ("clip", "mine", None),
        ("clip", ["clip-emoji"], "guide-emoji"),
    ]
    assert not any(same_weights(*case) for case in cases)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--guidance", "2"], "--guidance 2 is --guidance-scale 3 now, where 1 is off: give that"),
        (["--guidance=0"], "--guidance 0 is --guidance-scale 1 now, where 1 is off: give that"),
        (["--ramp", "0.5"], "--ramp 0.5 is --guidance-ramp 0.5 now: give that"),
        (["--cooling", "0.2"], "--cooling 0.2 is --temperature-decay 0.2 now: give that"),
    ],
)
def test_old_options_of_a_command_are_refused(given: list[str], told: str) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    refuse_old_options(parser)
    assert vars(parser.parse_args([])) == {}
    assert "--ramp" not in parser.format_help()
    with pytest.raises(InputError) as refused:
        parser.parse_args(given)
    assert str(refused.value) == told


def test_old_options_of_a_call_are_refused() -> None:
    assert now_called("guidance", 2.0) == "guidance=2.0 is guidance_scale=3 now, where 1 is off: give that"
    assert now_called("ramp", 0.5) == "ramp=0.5 is guidance_ramp=0.5 now: give that"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--anchor=old/model", "--anchor=old/model was given, but anchor is align_to now: give that"),
        ("--codebook.reborn-below=0.1", "reborn_below is restart_below now"),
        ("--sample_options.guidance=3", "guidance=3 is guidance_scale=4 now"),
    ],
)
def test_old_fields_of_a_training_are_refused(override: str, told: str) -> None:
    with pytest.raises(InputError, match=told.replace(".", "[.]")):
        refuse_old_fields([override])
    refuse_old_fields(["--align_to=old/model", "--guidance=0.2", "--sample_options.guidance_scale=4"])
