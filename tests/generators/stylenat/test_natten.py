"""Neighbourhood attention by natten: where it is chosen, that it is given what it takes, and that it gives our numbers.

On a CPU by a stand-in, and forward by natten's own FlexAttention backend where the package is there.
"""

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.config import to_dict
from star.generators.gan.losses import path_lengths
from star.generators.registry import build
from star.generators.stylenat import model as stylenat
from star.generators.stylenat import neighborhood_bench, neighborhood_natten
from star.generators.stylenat.model import StyleNatGenerator, StyleNatNetwork
from star.generators.stylenat.neighborhood import choose, gather, neighborhood_attention, partitioned_attention
from star.generators.stylenat.presets import PRESETS
from tests.generators.stylenat.natten_double import NattenDouble
from tests.generators.stylenat.test_neighborhood import MAPS, inputs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WINDOWS = [case for case in MAPS if case[2] > 1]


def forget() -> None:
    """What was chosen and tried before."""
    choose.cache_clear()
    neighborhood_natten.missing.cache_clear()
    neighborhood_natten._tried.cache_clear()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """natten is asked for on the CPU, too."""
    monkeypatch.setattr(neighborhood_natten, "DEVICES", ("cuda", "cpu"))
    forget()
    yield monkeypatch
    forget()


@pytest.fixture
def double(allowed: pytest.MonkeyPatch) -> NattenDouble:
    """In place of the package."""
    found = NattenDouble()
    allowed.setitem(sys.modules, "natten", found)
    return found


def narrow(height: int, width: int, kernel: int, head_width: int = 8) -> list[Tensor]:
    """query, key, value: float32 with gradients."""
    return [x.detach().float().requires_grad_() for x in inputs(height, width, kernel, head_width=head_width)[:3]]


def both_ways(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> list[list[Tensor]]:
    """Output and gradients, of natten and of the rule."""
    results = []
    for backend in ("natten", "gather"):
        output = neighborhood_attention(query, key, value, backend=backend, **options)
        weights = torch.arange(output.numel(), device=output.device).view_as(output).sin()
        results.append([output, *torch.autograd.grad((output * weights).sum(), [query, key, value])])
    return results


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((CPU, torch.float32, 32, 7, False), "natten knows no cpu"),
        ((CUDA, torch.float32, 32, 7, True), "natten knows no bias table"),
        ((CUDA, torch.float64, 32, 7, False), "natten knows no float64"),
        ((CUDA, torch.float32, 12, 7, False), "natten takes heads in steps of 8 channels, not 12"),
        ((CUDA, torch.float32, 32, 1, False), "natten takes windows of 2 and more"),
    ],
)
def test_where_natten_cannot_our_tiles_do(asked: Any, reason: str) -> None:
    chosen = choose(*asked)
    assert (chosen.kernel, chosen.reason) == ("tiled", reason)


def raising(error: Exception) -> Any:
    def na2d(*_args: Any, **_kwargs: Any) -> Tensor:
        raise error

    return SimpleNamespace(HAS_LIBNATTEN=True, na2d=na2d)


def wrong(query: Tensor, key: Tensor, value: Tensor, **_options: Any) -> Tensor:
    return query + key + value


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (None, "natten is not there (ModuleNotFoundError"),
        (SimpleNamespace(), "natten is not there (AttributeError"),
        (SimpleNamespace(HAS_LIBNATTEN=False), "natten has no compiled library here"),
        (raising(RuntimeError("no kernel image")), "natten fails here (RuntimeError: no kernel image)"),
        (SimpleNamespace(HAS_LIBNATTEN=True, na2d=wrong), "natten gives other numbers than the formula"),
    ],
    ids=["missing", "hollow", "not compiled", "for another device", "wrong"],
)
def test_a_natten_that_does_not_work_is_passed_over(allowed: pytest.MonkeyPatch, package: Any, reason: str) -> None:
    allowed.setitem(sys.modules, "natten", package)
    chosen = choose(CPU, torch.float32, 32, 7, False)
    assert chosen.kernel == "tiled"
    assert chosen.reason.startswith(reason)
    with pytest.raises(InputError, match="the backend natten was given on cpu, where natten"):
        neighborhood_attention(*narrow(7, 9, 3), kernel=3, backend="natten")


def test_natten_is_chosen_where_it_computes(double: NattenDouble) -> None:
    chosen = choose(CPU, torch.bfloat16, 32, 7, False)
    assert str(chosen) == "neighbourhoods: 7 x 7, natten (takes bfloat16 heads of 32 channels on cpu)"
    del double.calls[:]
    query, key, value = narrow(16, 16, 7)
    output = neighborhood_attention(query, key, value, kernel=7, dilation=2)
    assert double.calls[-1] == (7, 2)
    torch.testing.assert_close(output, gather(query, key, value, 7, 2, None, 8**-0.5))


@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), WINDOWS)
def test_natten_is_given_what_it_takes(
    double: NattenDouble, height: int, width: int, kernel: int, dilation: int
) -> None:
    """Odd sizes, even windows, dilations that divide nothing; forward and backward."""
    torch.testing.assert_close(*both_ways(*narrow(height, width, kernel), kernel=kernel, dilation=dilation, scale=0.7))
    assert double.calls[-1] == (kernel, dilation)


def test_its_gradient_can_be_differentiated(double: NattenDouble) -> None:
    leaves = narrow(7, 9, 3)
    seconds = []
    for backend in ("natten", "gather"):
        output = neighborhood_attention(*leaves, kernel=3, dilation=2, backend=backend)
        firsts = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(torch.stack([first.square().sum() for first in firsts]).sum(), leaves))
    torch.testing.assert_close(*seconds, atol=1e-4, rtol=1e-4)


def test_groups_of_heads_without_tables(double: NattenDouble) -> None:
    """As many heads each as with tables of zeros."""
    query, key, value = (x.detach().float() for x in inputs(12, 15, 3, heads=5, head_width=8)[:3])
    del double.calls[:]
    found = partitioned_attention(query, key, value, kernels=(3, 4), dilations=(4, 1), tables=None)
    assert double.calls[-2:] == [(3, 4), (4, 1)]
    tables = [torch.zeros(2, 5, 5), torch.zeros(3, 7, 7)]
    expected = partitioned_attention(query, key, value, kernels=(3, 4), dilations=(4, 1), tables=tables)
    torch.testing.assert_close(found, expected)


def small(**changes: Any) -> StyleNatNetwork:
    config = replace(stylenat.CONFIGS["test"], conditioning="none", condition_width=0, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StyleNatNetwork(config)


def learn(network: StyleNatNetwork) -> tuple[Tensor, list[Tensor]]:
    """Pictures, and what they and a path length do to all weights."""
    w_BSW = network.styles(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    raw_B3HW = network.synthesis(w_BSW)
    noise = torch.randn(raw_B3HW.shape, generator=torch.Generator().manual_seed(2))
    (raw_B3HW.square().sum() + path_lengths(raw_B3HW, w_BSW, noise).sum()).backward()
    return raw_B3HW.detach(), [weight.grad for weight in network.parameters() if weight.grad is not None]


def test_a_network_without_tables_learns_the_same_by_natten(
    double: NattenDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = learn(small(position_bias=False))
    assert {(4, 1), (3, 1), (5, 2)} <= set(double.calls)
    monkeypatch.setattr(neighborhood_natten, "DEVICES", ())
    forget()
    torch.testing.assert_close(found, learn(small(position_bias=False)))


def test_without_tables_is_with_tables_of_zeros() -> None:
    plain, network = small(position_bias=False), small()
    assert not any("tables" in name for name, _ in plain.named_parameters())
    network.load_state_dict(plain.state_dict(), strict=False)
    for name, parameter in network.named_parameters():
        if "tables" in name:
            parameter.detach().zero_()
    torch.testing.assert_close(learn(plain)[0], learn(network)[0])


def test_what_ships_was_trained_without_tables() -> None:
    generator = build("stylenat-emoji")
    assert isinstance(generator, StyleNatGenerator)
    assert not generator.network_config.position_bias
    assert not any("tables" in name for name, _ in generator.network.named_parameters())
    assert not any("natten knows no bias table" in line for line in generator.kernels())


def test_what_was_trained_with_tables_keeps_them(tmp_path: Path) -> None:
    StyleNatGenerator(small()).save_pretrained(tmp_path)
    generator = build(str(tmp_path))
    assert isinstance(generator, StyleNatGenerator)
    assert generator.network_config.position_bias
    assert "position_bias" not in to_dict(generator.network_config)  # as it was written, so that digests stay
    assert any(name.endswith("tables.0") for name, _ in generator.network.named_parameters())
    assert {line.partition(" (")[2] for line in generator.kernels()} == {"natten knows no bias table)"}


@pytest.mark.parametrize("preset", ["emoji", "emoji-cpu"])
def test_presets_for_emoji_are_what_natten_takes(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighborhood_natten, "missing", lambda: "nothing but the package is missing")
    config = PRESETS[preset].network
    for width, heads, kernels in zip(config.widths, config.heads, config.kernels, strict=True):
        assert (width // heads).bit_count() == 1  # its FlexAttention backend takes no others
        for kernel in kernels:
            asked = (CUDA, torch.bfloat16, width // heads, kernel, config.position_bias)
            assert neighborhood_natten.refusal(*asked, neighborhood_natten.na2d) == "nothing but the package is missing"


def test_the_measurement_names_what_auto_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(neighborhood_bench, "SIZES", (((1, 2, 8, 8, 8), 3, 2),))
    neighborhood_bench.main(["--repeats", "1"])
    told = capsys.readouterr().out.splitlines()
    assert told[1:3] == [
        "auto: neighbourhoods: 3 x 3, tiled (natten knows no cpu)",
        "auto: neighbourhoods: 7 x 7, tiled (natten knows no bias table)",
    ]
    assert [line.split(" | ")[2] for line in told if line.startswith("| 1 2 8")] == ["tiled", "gather", "dense"]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of torch, for how natten calls FlexAttention
@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), WINDOWS)
def test_natten_itself_has_our_windows(height: int, width: int, kernel: int, dilation: int) -> None:
    """By the backend that it has on a CPU; the stand-in takes what it takes."""
    package = pytest.importorskip("natten")
    real, ours = (list(inspect.signature(one.na2d).parameters) for one in (package, NattenDouble()))
    assert ours[:-1] == real[: len(ours) - 1]
    query, key, value = (x.detach() for x in narrow(height, width, kernel))
    found = neighborhood_natten.na2d(query, key, value, kernel, dilation, 0.7)
    torch.testing.assert_close(found, gather(query, key, value, kernel, dilation, None, 0.7), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_natten_agrees_on_a_gpu(dtype: torch.dtype) -> None:
    """Forward and backward, in every shape, by its kernels."""
    pytest.importorskip("natten")
    if not torch.cuda.is_available() or neighborhood_natten.missing():
        pytest.skip("natten has no compiled library here, or there is no CUDA device")
    assert choose(CUDA, dtype, 32, 7, False).kernel == "natten"
    for height, width, kernel, dilation in WINDOWS:
        leaves = [x.detach().to(CUDA, dtype).requires_grad_() for x in narrow(height, width, kernel, head_width=32)]
        for one, wanted in zip(*both_ways(*leaves, kernel=kernel, dilation=dilation), strict=True):
            assert (one.float() - wanted.float()).norm() <= 0.02 * wanted.float().norm()
