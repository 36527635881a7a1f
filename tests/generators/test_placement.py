"""What --device and --dtype come down to: by the processor's flags, the family and the size of the model."""

import argparse
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.generators import placement, registry
from star.generators.placement import add_options, automatic, dtype_of, multiplies_in_bfloat16, placed
from star.tiny import tiny_transformer

WITH, WITHOUT = frozenset({"sse2", "avx512_bf16"}), frozenset({"sse2", "avx2", "avx512f"})


def flags_are(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]) -> None:
    monkeypatch.setattr(placement, "cpu_flags", lambda: flags)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """star-emoji counts as a large model."""
    monkeypatch.setattr(placement, "LARGE", 10_000_000)


@pytest.mark.parametrize(("flag", "expected"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512_fp16", False)])
def test_units_are_known_by_their_flags(flag: str, expected: bool) -> None:
    assert multiplies_in_bfloat16(frozenset({"sse2", flag})) is expected


def test_flags_are_read_from_what_linux_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    monkeypatch.setattr(placement, "CPU_INFO", told)
    assert placement.cpu_flags.__wrapped__() == {"fpu", "amx_bf16", "avx2"}
    monkeypatch.setattr(placement, "CPU_INFO", tmp_path / "nowhere")
    assert placement.cpu_flags.__wrapped__() == frozenset()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("flags", "expected"), [(WITH, torch.bfloat16), (WITHOUT, torch.float32)])
def test_a_large_next_scale_model_takes_what_the_cpu_is_fast_in(
    flags: frozenset[str], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags_are(monkeypatch, flags)
    assert automatic("cpu", "star-emoji") == expected
    assert automatic("cuda:1", "star-emoji") == torch.bfloat16


def test_small_models_and_gans_stay_in_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    flags_are(monkeypatch, WITH)
    assert automatic("cpu", "star-emoji") == torch.float32
    monkeypatch.setattr(placement, "LARGE", 1)
    assert automatic("cpu", "stylenat-emoji") == torch.float32
    assert automatic("cpu", "star-test") == torch.float32


def test_float32_on_a_gpu_may_use_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[str] = []
    monkeypatch.setattr(placement, "usable", lambda name: name)
    monkeypatch.setattr("star.generators.precision.allow_tf32", lambda device: allowed.append(str(device)))
    assert placed("cuda:0", "float32", "star-emoji").told() == {"device": "cuda:0", "dtype": "float32"}
    assert placed("cuda:0", "bfloat16", "star-emoji").dtype == torch.bfloat16
    assert allowed == ["cuda:0"]


def test_a_device_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="the device is 'tpu'"):
        placed("tpu", "auto", "star-emoji")


def test_the_options_have_a_default_and_refuse_what_is_no_type(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, dtype="float32")
    assert parser.parse_args([]).dtype == "float32"
    assert dtype_of(parser.parse_args(["--dtype", "bfloat16"]).dtype) == torch.bfloat16
    with pytest.raises(SystemExit):
        parser.parse_args(["--dtype", "int8"])
    assert "invalid choice" in capsys.readouterr().err


def test_codes_are_chosen_from_float32_logits_whatever_the_type() -> None:
    network = tiny_transformer().to(torch.bfloat16)
    assert network.logits(torch.zeros(1, 1, network.config.width, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_picture_of_one_type_belongs_to_its_seed_whatever_its_company() -> None:
    generator = registry.build("star-emoji", dtype=torch.bfloat16)
    options = registry.recommended("star-emoji")
    both = generator.generate(["a red apple", "a rocket"], seeds=[3, 4], options=options)
    alone = generator.generate(["a rocket"], seeds=[4], options=options)
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])
