"""Which kernel attention runs on; flash-attn, by a stand-in, and torch's own flash are given what they take."""

import inspect
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from star.attention_maps import attention
from star.data.errors import InputError
from star.data.text import TextFeatures
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.model.attention_backends import ScaleCausality, additive, attend
from star.model.kernels import choice, flash
from star.model.kernels.choice import BACKENDS, USES, choose
from star.model.packed_text import GROUPED, PackedText, pack
from star.tiny import CODE_WIDTH, tiny_tokenizer, tiny_transformer
from tests.star.model.flash_double import FlashDouble
from tests.star.model.test_attention_backends import SCHEDULE, learn, targets, written_out
from tests.star.model.test_attention_backends import heads as cpu_heads

CPU = torch.device("cpu")
LENGTHS = [3, 1, 7, 3, 7]  # words of each row, of at most 7


def forget() -> None:
    """What was chosen and tried before."""
    choose.cache_clear()
    flash._tried.cache_clear()
    flash.WHOLE_ROWS.clear()
    flash.PACKED_ROWS.clear()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Flash kernels are asked for on the CPU and in float32, too; no package is there."""
    monkeypatch.setattr(flash, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(flash, "DTYPES", (*flash.DTYPES, torch.float32))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    forget()
    yield monkeypatch
    forget()


@pytest.fixture
def double(allowed: pytest.MonkeyPatch) -> FlashDouble:
    """In place of the package."""
    found = FlashDouble()
    allowed.setitem(sys.modules, "flash_attn", found)
    return found


def prompts(mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """queries (B, N, l, d), keys and values (B, N, T, d) padded with large numbers, bool mask (B, T)."""
    generator = torch.Generator().manual_seed(0)
    rows, most = len(LENGTHS), max(LENGTHS)
    if mask_BT is None:
        mask_BT = torch.arange(most) < torch.tensor(LENGTHS)[:, None]
    queries = torch.randn(rows, 2, 5, 16, generator=generator)
    keys, values = (torch.randn(rows, 2, most, 16, generator=generator) for _ in range(2))
    padding = ~mask_BT[:, None, :, None]
    return queries, keys + 50 * padding, values + 50 * padding, mask_BT


def read_packed(queries: Tensor, keys: Tensor, values: Tensor, mask_BT: Tensor, kernel: str) -> Tensor:
    """Through `pack`, which moves tokens before keys are made of them."""
    moved = []
    for tensor in (keys, values):
        tokens_BTD, text = pack(tensor.transpose(1, 2).flatten(2), mask_BT, kernel)
        moved.append(tokens_BTD.unflatten(2, (queries.shape[1], -1)).transpose(1, 2))
    return text.attend(queries, moved[0], moved[1], 0.3)


def read_masked(queries: Tensor, keys: Tensor, values: Tensor, mask_BT: Tensor) -> Tensor:
    return attend(queries, keys, values, additive(mask_BT[:, None, None], queries.dtype), 0.3, "eager")


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


@pytest.mark.parametrize("kernel", [GROUPED, "flash-attn", "torch-flash"])
@pytest.mark.parametrize("scattered", [False, True])
def test_packed_words_are_read_as_under_a_mask(
    double: FlashDouble, allowed: pytest.MonkeyPatch, kernel: str, scattered: bool
) -> None:
    """With gradients, and none of what is padding, whatever the kernel leaves there."""
    allowed.setattr("torch.nn.attention.varlen.varlen_attn", double.varlen_attn)
    if kernel == "torch-flash":
        allowed.setitem(sys.modules, "flash_attn", None)
    assert choose("text", "flash", CPU, torch.float32, 16).kernel == (kernel if kernel != GROUPED else "flash-attn")
    mask_BT = None
    if scattered:  # words with gaps between them
        mask_BT = torch.rand(len(LENGTHS), 7, generator=torch.Generator().manual_seed(1)) < 0.5
        mask_BT[:, 2] = True
    results = []
    for packed in (False, True):
        queries, keys, values, words_BT = prompts(mask_BT)
        q, k, v = leaves = [tensor.requires_grad_() for tensor in (queries, keys, values)]
        output = read_packed(q, k, v, words_BT, kernel) if packed else read_masked(q, k, v, words_BT)
        output.square().sum().backward()
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        results.append([output, *gradients])
        assert not any(gradient[~words_BT[:, None].expand(-1, 2, -1)].any() for gradient in gradients[1:])
    torch.testing.assert_close(*results)
    assert ("flash_attn_varlen_func", 0.3) in double.calls or kernel == GROUPED


def test_the_first_rows_stay_where_they_are() -> None:
    queries, keys, _, mask_BT = prompts()
    tokens, text = pack(keys.transpose(1, 2).flatten(2), mask_BT, GROUPED)
    packed_BNTd = tokens.unflatten(2, (2, 16)).transpose(1, 2)
    few = text.first(3).attend(queries[:3], packed_BNTd[:3], packed_BNTd[:3], 0.3)
    torch.testing.assert_close(few, read_masked(queries, keys, keys, mask_BT)[:3])
    assert torch.equal(text.first_mask_111T(7)[0, 0, 0], additive(mask_BT[0], torch.float32))


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


@torch.no_grad()
def test_rows_of_a_packed_state_continue_alone(double: FlashDouble) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs_BlE = torch.randn(2, SCHEDULE.length - 1, CODE_WIDTH, generator=generator)
    mask_BT = torch.arange(6) < torch.tensor([[4], [6], [1], [2]])
    text = TextFeatures(torch.randn(4, 6, 32, generator=generator), mask_BT, torch.randn(4, 32, generator=generator))
    states = {name: tiny_transformer(attention=name) for name in ("flash", "sdpa")}
    results = []
    for model in states.values():
        state = model.begin(text)
        assert (model.config.attention == "flash") == isinstance(state.text and state.text.mask_B11T, PackedText)
        model.step(None, 0, state)
        state = state.first(2)
        results.append(model.step(inputs_BlE[:, : SCHEDULE.lengths[1]], 1, state))
    torch.testing.assert_close(*results)


def test_what_a_place_reads_is_told_of_packed_words_too(double: FlashDouble) -> None:
    maps = []
    for name in ("flash", "sdpa"):
        generator = StarGenerator(
            tiny_transformer(attention=name), tiny_tokenizer(), StarGenerator.for_test().text_encoder
        )
        options = SampleOptions(guidance_scale=2.0, top_k=1)
        maps.append(attention(generator, "a red dot, a blue", seed=3, options=options))
    for found, expected in zip(maps[0].weights, maps[1].weights, strict=True):
        torch.testing.assert_close(found, expected)


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


@pytest.mark.slow
def test_compiled_layers_read_the_choice_once(double: FlashDouble) -> None:
    """In one graph, while drawing and while training, forward and backward."""
    network = tiny_transformer(attention="flash")
    layer, x_BLC = network.get_submodule("blocks.0.attention"), torch.randn(2, SCHEDULE.length, 32)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for mask in (None, network.causality(x_BLC)):
        gradients = []
        for module in (compiled, layer):
            leaf = x_BLC.clone().requires_grad_()
            output = module(leaf, mask=mask)
            gradients.append([output, *torch.autograd.grad(output.square().sum(), leaf)])
        torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


def dense_packed(
    queries: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, key_starts: Tensor, *limits_and_scale: Any
) -> Tensor:
    """A packed kernel that can be compiled: all pairs, hidden where they are of different rows."""
    own_Q, own_P = (
        torch.bucketize(torch.arange(len(tensor)), starts[1:], right=True)
        for tensor, starts in ((queries, query_starts), (keys, key_starts))
    )
    mask_QP = additive(own_Q[:, None] == own_P, queries.dtype)
    heads = (tensor.transpose(0, 1)[None] for tensor in (queries, keys, values))
    return attend(*heads, mask_QP, limits_and_scale[-1], "eager")[0].transpose(0, 1)


@pytest.mark.slow
def test_compiled_blocks_read_packed_words(double: FlashDouble) -> None:
    """In one graph, for prompts of other lengths as well."""
    network = tiny_transformer(attention="flash")
    choose("text", "flash", CPU, torch.float32, 16)
    flash.PACKED_ROWS["flash-attn"] = dense_packed
    block, x_BlC = network.get_submodule("blocks.0"), torch.randn(2, 9, 32)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    for lengths in ([[4], [6]], [[1], [3]]):
        text = replace(targets()[1], mask_BT=torch.arange(6) < torch.tensor(lengths))
        words = network.encode_text(text, beforehand=False)
        assert words is not None
        gradients = []
        for module in (compiled, block):
            leaf = x_BlC.clone().requires_grad_()
            output = module(leaf, text=words.of_block(0))
            gradients.append([output, *torch.autograd.grad(output.square().sum(), leaf)])
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_torch_varlen_takes_what_it_is_given() -> None:
    """By torch's own shape functions, on CUDA tensors without memory; the stand-in has its signature."""
    packed = flash._torch_packed()
    with FakeTensorMode(), torch.no_grad():
        queries, keys = (torch.empty(count, 2, 16, dtype=torch.bfloat16, device="cuda") for count in (10, 14))
        starts = torch.zeros(3, dtype=torch.int32, device="cuda")
        assert packed(queries, keys, keys, starts, starts, 5, 7, 0.3).shape == (10, 2, 16)
    real, ours = (inspect.signature(function).parameters for function in (varlen_attn, FlashDouble().varlen_attn))
    assert [(name, one.kind, one.default) for name, one in real.items()] == [
        (name, one.kind, one.default) for name, one in ours.items()
    ]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def closest(found: list[Tensor], expected: list[Tensor]) -> None:
    """Values and gradients in bfloat16, to the size of each."""
    for one, wanted in zip(found, expected, strict=True):
        assert (one.float() - wanted.float()).norm() / wanted.float().norm() < 0.02


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", flash.NAMES)
def test_kernels_of_a_gpu_give_the_formula(name: str) -> None:
    device, numbers = torch.device("cuda"), (torch.bfloat16, 64)
    for use in ("drawing", "text"):
        if refusal := flash.refusal(name, device, *numbers, packed=use == "text"):
            pytest.skip(refusal)
    generator = torch.Generator(device).manual_seed(0)
    queries, keys, values = (
        torch.randn(3, 4, length, 64, generator=generator, device=device).bfloat16() for length in (130, 77, 77)
    )
    mask_BT = torch.arange(77, device=device) < torch.tensor([[77], [1], [20]], device=device)
    results = []
    for own in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (queries, keys, values)]
        q, k, v = leaves
        if own:
            whole, read = flash.WHOLE_ROWS[name](q, k, v, 0.3), read_packed(q, k, v, mask_BT, name)
        else:
            whole, read = attend(q, k, v, None, 0.3, "eager"), read_masked(q, k, v, mask_BT)
        (whole.float().square().sum() + read.float().square().sum()).backward()
        results.append([whole, read, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    closest(*results)


@needs_gpu
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
