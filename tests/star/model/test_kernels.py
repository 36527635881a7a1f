"""Which kernel attention runs on; flash-attn, by a stand-in, and torch's own flash are given what they take."""

import logging
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from star.data.errors import InputError
from star.data.text import TextFeatures
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.model.attention_backends import ScaleCausality
from star.model.kernels import choice, flash
from star.model.kernels.choice import BACKENDS, USES, choose
from star.tiny import tiny_transformer
from tests.star.model.flash_double import FlashDouble
from tests.star.model.test_attention_backends import SCHEDULE, learn, targets, written_out
from tests.star.model.test_attention_backends import heads as cpu_heads
from tests.star.model.test_packed_text import closest

CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cpu_keeps_to_torch_and_masks(backend: str) -> None:
    training, drawing, text = choice.choices(backend, CPU, torch.float32, 64)
    assert (training.use, drawing.use, text.use) == USES
    scale_by_scale = backend in ("scalewise", "flash")
    assert training.form == (
        choice.SCALEWISE if scale_by_scale else choice.BLOCKS if backend == "flex" else "under a mask"
    )
    assert (drawing.form, text.form) == ("whole rows", "under a mask")
    usual = "eager" if backend == "eager" else "sdpa"
    assert (training.kernel, drawing.kernel, text.kernel) == ("flex" if backend == "flex" else usual, usual, usual)
    assert ("flash-attn knows no cpu" in drawing.reason) == (backend in ("flash", "auto"))


def test_auto_on_a_cpu_is_sdpa_to_the_bit() -> None:
    (loss, gradients), (wanted, expected) = (learn(tiny_transformer(attention=name)) for name in ("auto", "sdpa"))
    assert torch.equal(loss, wanted)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())
    assert draw("auto") == draw("sdpa")


@pytest.mark.parametrize(
    ("dtype", "head_width", "reason"),
    [
        (torch.float64, 16, "flash-attn knows no float64"),
        (torch.float32, 12, "takes heads of at most 256 channels in steps of 8, not 12"),
        (torch.bfloat16, 512, "takes heads of at most 256 channels in steps of 8, not 512"),
    ],
)
def test_what_no_flash_kernel_takes_goes_to_torch(
    double: FlashDouble, dtype: torch.dtype, head_width: int, reason: str
) -> None:
    for use in USES:
        chosen = choose(use, "flash", CPU, dtype, head_width)
        assert chosen.kernel == "sdpa"
        assert reason in chosen.reason
    assert not double.calls


def test_the_package_comes_first(double: FlashDouble) -> None:
    for backend in ("flash", "auto"):
        forms = [choose(use, backend, CPU, torch.bfloat16, 64) for use in USES]
        assert [chosen.kernel for chosen in forms] == ["flash-attn"] * 3
        assert [chosen.form for chosen in forms] == ["scale by scale", "whole rows", "packed rows"]
        assert str(forms[1]) == "drawing: whole rows, flash-attn (takes bfloat16 heads of 64 channels on cpu)"


def broken(error: Exception) -> SimpleNamespace:
    def raising(*_args: Any, **_kwargs: Any) -> Tensor:
        raise error

    return SimpleNamespace(flash_attn_func=raising, flash_attn_varlen_func=raising)


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (None, "flash-attn is not there (ModuleNotFoundError"),
        (SimpleNamespace(), "flash-attn is not there (AttributeError"),
        (
            broken(RuntimeError("no kernel image\nis available")),
            "flash-attn fails here (RuntimeError: no kernel image is",
        ),
        (
            SimpleNamespace(flash_attn_func=lambda q, k, v, **_: q + (k + v).sum(1, True), flash_attn_varlen_func=None),
            "flash-attn gives other numbers than the formula",
        ),
    ],
    ids=["missing", "hollow", "built for another device", "wrong"],
)
def test_a_package_that_does_not_work_is_passed_over(allowed: pytest.MonkeyPatch, package: Any, reason: str) -> None:
    """For torch's own flash kernel, which a CPU has for whole rows, though not for packed ones."""
    allowed.setitem(sys.modules, "flash_attn", package)
    drawing, text = (choose(use, "flash", CPU, torch.float32, 16) for use in ("drawing", "text"))
    assert drawing.kernel == "torch-flash"
    assert reason in drawing.reason
    assert (text.form, text.kernel) == ("under a mask", "sdpa")
    assert "torch-flash fails here" in text.reason
    assert "flash-attn" not in flash.WHOLE_ROWS


def test_a_package_whose_import_fails_half_way_is_passed_over(allowed: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "flash_attn.py").write_text("raise RuntimeError('built for torch 1.0')\n")
    allowed.delitem(sys.modules, "flash_attn")
    allowed.syspath_prepend(tmp_path)
    assert (
        "flash-attn is not there (RuntimeError: built for torch 1.0)"
        in choose("drawing", "auto", CPU, torch.float32, 16).reason
    )


def test_the_choice_is_told_once(double: FlashDouble, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for backend, dtype in (("auto", torch.float32), ("auto", torch.float32), ("flash", torch.float64)):
        choose("text", backend, CPU, dtype, 16)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]  # asked for, and not to be had
    assert "text: packed rows, flash-attn" in caplog.text
    assert "text: under a mask, sdpa (flash-attn knows no float64" in caplog.text


@pytest.mark.parametrize("package", ["flash-attn", "torch-flash"])
def test_scale_by_scale_learns_the_same(double: FlashDouble, allowed: pytest.MonkeyPatch, package: str) -> None:
    if package == "torch-flash":
        allowed.setitem(sys.modules, "flash_attn", None)
    results = []
    sight = ScaleCausality(SCHEDULE.lengths, "flash", torch.float32, CPU)
    for function in (partial(sight.attend, scale=0.7), written_out):
        leaves = [tensor.requires_grad_() for tensor in cpu_heads()]
        output = function(*leaves)
        output.square().sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*results)
    assert choose("training", "flash", CPU, torch.float32, 8).kernel == package
    assert double.calls.count(("flash_attn_func", 0.7)) == (len(SCHEDULE.lengths) if package == "flash-attn" else 0)


@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"qk_norm": False, "logit_norm": False}])
def test_a_network_learns_the_same(double: FlashDouble, changes: dict[str, Any]) -> None:
    expected = learn(tiny_transformer(attention="sdpa", **changes))
    assert not double.calls
    found = learn(tiny_transformer(attention="flash", **changes))
    torch.testing.assert_close(found, expected)
    assert {name for name, _ in double.calls} == {"flash_attn_func", "flash_attn_varlen_func"}
    wanted = 1.0 if not changes or "checkpointing" in changes else 0.25 / 4
    own = [scale for _, scale in double.calls if scale != 1 / 16]  # 1 / 16 is that of the trial
    assert set(own or [1 / 16]) == {wanted}


def test_a_network_learns_in_half_precision(double: FlashDouble) -> None:
    """Under autocast the kernels get bfloat16 alone."""
    double.dtypes = (torch.bfloat16,)
    inputs_BlE, text, codes_BL = targets()
    losses = []
    for name in ("flash", "sdpa"):
        model = tiny_transformer(attention=name).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss_BL = model(inputs_BlE, text, codes_BL=codes_BL)
        loss_BL.mean().backward()
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
        losses.append(loss_BL.detach())
    torch.testing.assert_close(*losses, atol=0.2, rtol=0.02)
    assert {name for name, _ in double.calls} == {"flash_attn_func", "flash_attn_varlen_func"}


def draw(backend: str, **options: Any) -> list[list[int]]:
    """Pixels of two prompts, as lists."""
    generator = StarGenerator.for_test()
    generator.transformer = tiny_transformer(attention=backend)
    given = SampleOptions(guidance_scale=3.0, top_k=5, **options)
    return generator.generate(["a red dot", "blue"], seeds=[1, 2], options=given).flatten(1).tolist()


@pytest.mark.parametrize("mode", ["per-sample", "released"])
def test_pictures_are_the_same(double: FlashDouble, mode: str) -> None:
    assert draw("flash", cross_attention=mode) == draw("sdpa", cross_attention=mode)
    assert {name for name, _ in double.calls} == {"flash_attn_func", "flash_attn_varlen_func"}


def test_the_environment_goes_before_the_config(double: FlashDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = StarGenerator.for_test()
    assert generator.kernels()[0] == "drawing: whole rows, sdpa (attention is sdpa)"
    expected = learn(tiny_transformer(attention="eager"))
    monkeypatch.setenv("STAR_ATTENTION", "flash")
    torch.testing.assert_close(learn(tiny_transformer(attention="eager")), expected)
    assert {name for name, _ in double.calls} == {"flash_attn_func", "flash_attn_varlen_func"}
    assert [line.partition(" (")[0] for line in generator.kernels()] == [
        "drawing: whole rows, flash-attn",
        "text: packed rows, flash-attn",
    ]
    monkeypatch.setenv("STAR_ATTENTION", "fast")
    with pytest.raises(InputError, match="STAR_ATTENTION is 'fast', expected one of sdpa, eager"):
        tiny_transformer()


@pytest.mark.gpu
def test_a_gpu_draws_and_learns_by_flash_unless_told_otherwise() -> None:
    device = torch.device("cuda")
    for use in USES:
        assert choose(use, "auto", device, torch.bfloat16, 64).kernel in flash.NAMES
        assert choose(use, "auto", device, torch.float32, 64).kernel == "sdpa"
    inputs_BlE, text, codes_BL = targets()
    text = TextFeatures(*(tensor.cuda() for tensor in (text.tokens_BTD, text.mask_BT, text.pooled_BD)))
    losses = []
    for name in ("auto", "eager"):
        model = tiny_transformer(attention=name).to(device).train()
        with torch.autocast("cuda", torch.bfloat16):
            loss_BL = model(inputs_BlE.cuda(), text, codes_BL=codes_BL.cuda())
        loss_BL.mean().backward()
        losses.append([loss_BL, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    closest(*losses)
