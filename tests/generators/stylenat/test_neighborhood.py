"""Neighbourhood attention: every backend against a rule written out in loops, with gradients of two orders."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.stylenat.neighborhood import neighborhood_attention, partitioned_attention, split_heads, windows
from star.generators.stylenat.neighborhood_bench import measure

# height, width, kernel, dilation: squares, rectangles, sizes that no dilation divides, windows that just fit, even
# kernels, one place only
MAPS = [
    (4, 4, 4, 1),
    (7, 12, 7, 1),
    (16, 16, 7, 2),
    (14, 33, 7, 2),
    (19, 25, 5, 3),
    (19, 25, 3, 6),
    (9, 10, 4, 2),
    (32, 21, 3, 7),
    (5, 3, 1, 3),
]


def inputs(height: int, width: int, kernel: int, heads: int = 2, head_width: int = 3, batch: int = 2) -> list[Tensor]:
    """query, key, value, table: float64 with gradients."""
    generator = torch.Generator().manual_seed(0)
    shape, side = (batch, heads, height, width, head_width), 2 * kernel - 1
    shapes = [shape, shape, shape, (heads, side, side)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def by_loops(query: Tensor, key: Tensor, value: Tensor, table: Tensor, kernel: int, dilation: int) -> Tensor:
    """Place by place, straight from the definition."""

    def window(place: int, length: int) -> list[int]:
        group = list(range(place % dilation, length, dilation))
        first = group.index(place) - kernel // 2
        while first < 0:
            first += 1
        while first + kernel > len(group):
            first -= 1
        return group[first : first + kernel]

    height, width, head_width = query.shape[2:]
    output = torch.empty_like(query)
    for y, x in product(range(height), range(width)):
        near = list(product(window(y, height), window(x, width)))
        keys, values = (torch.stack([tensor[:, :, i, j] for i, j in near], dim=2) for tensor in (key, value))
        steps = [((i - y) // dilation + kernel - 1, (j - x) // dilation + kernel - 1) for i, j in near]
        bias = torch.stack([table[:, i, j] for i, j in steps], dim=1)
        logits = (keys * query[:, :, None, y, x]).sum(dim=-1) / head_width**0.5 + bias
        output[:, :, y, x] = (logits.softmax(dim=-1)[..., None] * values).sum(dim=2)
    return output


@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), MAPS[:2] + MAPS[4:7] + MAPS[8:])
def test_gather_is_the_definition(height: int, width: int, kernel: int, dilation: int) -> None:
    query, key, value, table = (tensor.detach() for tensor in inputs(height, width, kernel))
    expected = by_loops(query, key, value, table, kernel, dilation)
    attend = partial(neighborhood_attention, query, key, value, kernel=kernel, dilation=dilation, backend="gather")
    torch.testing.assert_close(attend(table_Nbb=table), expected)
    other = table + 0.01 * torch.randn_like(table)
    assert kernel == 1 or not torch.allclose(attend(table_Nbb=other), expected)


@pytest.mark.parametrize("backend", ["tiled", "dense"])
@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), MAPS)
def test_backends_agree_with_gradients(height: int, width: int, kernel: int, dilation: int, backend: str) -> None:
    query, key, value, table = inputs(height, width, kernel)
    weights = torch.randn(query.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for bias, leaves in ((table, [query, key, value, table]), (None, [query, key, value])):
        results = []
        for name in (backend, "gather"):
            output = neighborhood_attention(
                query, key, value, kernel=kernel, dilation=dilation, table_Nbb=bias, scale=0.7, backend=name
            )
            results.append([output, *torch.autograd.grad((output * weights).sum(), leaves)])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into the smallest pieces, heads and pictures one by one, the result and the gradients are the same."""
    query, key, value, table = inputs(19, 25, 3, heads=3, batch=3)

    def results() -> list[Tensor]:
        output = neighborhood_attention(query, key, value, kernel=3, dilation=2, table_Nbb=table, backend="tiled")
        return [output, *torch.autograd.grad(output.square().sum(), [query, key, value, table])]

    whole = results()
    monkeypatch.setattr("star.generators.stylenat.neighborhood_tiles.PIECE", {"cpu": 1})
    for actual, expected in zip(results(), whole, strict=True):
        torch.testing.assert_close(actual, expected)


def test_derivatives_of_two_orders() -> None:
    query, key, value, table = inputs(5, 6, 3, heads=1, head_width=2, batch=1)

    def tiled(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        return neighborhood_attention(query, key, value, kernel=3, table_Nbb=table, backend="tiled")

    assert torch.autograd.gradcheck(tiled, (query, key, value, table), fast_mode=True)
    assert torch.autograd.gradgradcheck(tiled, (query, key, value, table), fast_mode=True)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    query, key, value, table = (tensor.detach() for tensor in inputs(6, 6, 3))
    for leaf in (query, value, table):
        leaf.requires_grad_()
        output = neighborhood_attention(query, key, value, kernel=3, table_Nbb=table, backend="tiled")
        (first,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        assert bool((second != 0).any())
        leaf.requires_grad_(False)


def test_half_precision_stays_close() -> None:
    query, key, value, table = (tensor.detach().to(torch.bfloat16) for tensor in inputs(6, 6, 3))
    output = neighborhood_attention(query, key, value, kernel=3, table_Nbb=table, backend="tiled")
    assert output.dtype == torch.bfloat16
    wide = [tensor.float() for tensor in (query, key, value, table)]
    expected = neighborhood_attention(*wide[:3], kernel=3, table_Nbb=wide[3], backend="gather")
    torch.testing.assert_close(output.float(), expected, atol=0.03, rtol=0.03)


def test_windows_are_whole_everywhere() -> None:
    for length, kernel, dilation in ((19, 3, 6), (25, 5, 3), (7, 7, 1), (12, 4, 3)):
        for place, window in enumerate(windows(length, kernel, dilation)):
            assert len(window) == kernel
            assert window[0] >= 0
            assert window[-1] < length
            assert all(other % dilation == place % dilation for other in window)
            assert window[0] <= place <= window[-1]


def test_heads_fall_into_groups() -> None:
    assert [split_heads(*pair) for pair in ((8, 3), (4, 2), (7, 4), (5, 1))] == [
        (2, 3, 3),
        (2, 2),
        (1, 2, 2, 2),
        (5,),
    ]
    query, key, value, _ = inputs(12, 12, 3, heads=5)
    tables = [torch.randn(2, 5, 5, dtype=torch.float64), torch.randn(3, 7, 7, dtype=torch.float64)]
    output = partitioned_attention(query, key, value, kernels=(3, 4), dilations=(4, 1), tables=tables)
    last = neighborhood_attention(query[:, 2:], key[:, 2:], value[:, 2:], kernel=4, table_Nbb=tables[1])
    torch.testing.assert_close(output[:, 2:], last)
    with pytest.raises(ValueError, match="the tables are for 2 heads, there are 5"):
        partitioned_attention(query, key, value, kernels=(3,), dilations=(1,), tables=tables[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 3, "dilation": 5}, r"kernel of 3 with dilation 5 spans 15 places, the map has 14 x 33"),
        ({"kernel": 15}, r"spans 15 places"),
        ({"kernel": 0}, r"expected at least 1 each"),
        ({"kernel": 3, "table_Nbb": torch.zeros(2, 3, 3)}, r"the table has shape \(2, 3, 3\), expected \(2, 5, 5\)"),
        (
            {"kernel": 3, "backend": "tile"},
            r"'tile' was given, expected one of tiled, gather, dense, natten or auto",
        ),
        (
            {"kernel": 3, "backend": "natten"},
            r"natten was given on cpu, where natten knows no cpu, expected a CUDA device",
        ),
    ],
)
def test_impossible_requests_are_refused(options: dict, message: str) -> None:
    query, key, value, _ = inputs(14, 33, 1)
    with pytest.raises((ValueError, InputError), match=message):
        neighborhood_attention(query, key, value, **options)
    with pytest.raises(ValueError, match="expected the same"):
        neighborhood_attention(query, key[:1], value, kernel=3)


def test_measured_in_time_and_memory() -> None:
    """At a size where the gather form copies 49 times what is there, it takes more memory than ours."""
    ours, copies = (measure(backend, (1, 1, 16, 16, 32), kernel=7, dilation=2) for backend in ("tiled", "gather"))
    assert min(ours.forward, ours.both, copies.forward, copies.both) > 0
    assert ours.memory < copies.memory / 2
