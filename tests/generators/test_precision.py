"""TF32 is allowed in one place, for GPUs, and never reaches what must not be rounded."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from star.generators.precision import allow_tf32, full_float32
from star.tiny import tiny_tokenizer
from star.tokenizer.presets import PRESETS as TOKENIZERS
from star.training.presets import PRESETS as STARS


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = convolutions


def test_gpus_may_and_cpus_are_left_alone() -> None:
    torch.set_float32_matmul_precision("highest")
    allow_tf32(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
    allow_tf32(torch.device("cuda", 0))
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_codes_are_chosen_in_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high")
    seen, addmm = [], torch.Tensor.addmm_

    def spy(*arguments: Any, **named: Any) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return addmm(*arguments, **named)

    monkeypatch.setattr(torch.Tensor, "addmm_", spy)
    quantizer = tiny_tokenizer().quantizer
    quantizer.nearest(torch.randn(2, 3, quantizer.config.code_width))
    assert seen == ["highest"]
    assert torch.get_float32_matmul_precision() == "high"


def test_what_was_allowed_is_allowed_again_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize(("table", "precise"), [(STARS, {"star-d30-512"}), (TOKENIZERS, set())])
def test_large_presets_compute_in_bfloat16_but_for_those_named_here(table: dict[str, Any], precise: set[str]) -> None:
    large = {name: preset for name, preset in table.items() if "test" not in name and "cpu" not in name}
    assert large
    assert {name for name, preset in large.items() if preset.run.precision == "no"} == precise
