"""oneDNN's linear layers against torch's: the same numbers within rounding, while drawing on a CPU alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from star.model import linear
from star.model.linear import by_onednn, dense, gelu

needs_onednn = pytest.mark.skipif(linear.onednn() is None, reason="this torch has no oneDNN")


def layer_and_input(dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(64, 96).to(dtype), torch.randn(2, 9, 64).to(dtype)


@needs_onednn
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_products_and_what_follows_are_equal_within_rounding(
    dtype: torch.dtype, tolerance: float, activation: linear.Activation
) -> None:
    layer, x = layer_and_input(dtype)
    own, exact = torch.randn(96).to(dtype), layer.double()
    expected = F.linear(x.double(), exact.weight, own.double())
    expected = F.gelu(expected, approximate="tanh") if activation == "gelu" else expected
    layer.to(dtype)
    for grad in (True, False):
        with torch.inference_mode(not grad):
            assert by_onednn(x) is not grad
            found = dense(layer, x, own, activation)
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def test_training_keeps_its_kernels() -> None:
    layer, x = layer_and_input(torch.float32)
    assert torch.equal(dense(layer, x), layer(x))
    with torch.no_grad():
        assert not by_onednn(x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(x)
        assert dense(layer, x).dtype == torch.bfloat16


def test_without_onednn_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_and_input(torch.float32)
    monkeypatch.setattr(linear, "onednn", lambda: None)
    with torch.inference_mode():
        assert torch.equal(dense(layer, x), layer(x))


def test_a_layer_that_something_stands_around_computes_by_itself() -> None:
    layer, x = layer_and_input(torch.float32)
    with torch.inference_mode():
        expected = dense(layer, x)
        torch.testing.assert_close(dense(nn.Sequential(layer), x), expected, atol=1e-5, rtol=1e-5)
        shifted = dense(nn.Sequential(layer), x, torch.ones(96), "gelu")
        torch.testing.assert_close(shifted, F.gelu(expected + 1, approximate="tanh"), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_gpu_applies_the_gelu_on_the_way(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 96).to("cuda", kind)
    x = torch.randn(2, 9, 64, device="cuda", dtype=kind)
    with torch.inference_mode():
        found = dense(layer, x, activation="gelu")
        expected = F.gelu(F.linear(x.float(), layer.weight.float(), layer.bias.float()), approximate="tanh")
    assert found.dtype == kind
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)


def test_a_compiler_gets_the_same_gelu_by_a_sigmoid(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 on a CPU: values and gradients within a rounding of the tanh form, which float32 keeps."""
    wide = torch.linspace(-8, 8, 4001)
    x = wide.bfloat16().requires_grad_()
    expected = F.gelu(x.float(), approximate="tanh")
    (slope,) = torch.autograd.grad(expected.sum(), x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = gelu(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0].float(), slope.float(), rtol=2**-7, atol=1e-4)
    assert torch.equal(gelu(wide), F.gelu(wide, approximate="tanh"))
