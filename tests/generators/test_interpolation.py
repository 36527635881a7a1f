"""Arcs between vectors."""

import torch

from star.generators.interpolation import slerp, steps


def test_an_arc_keeps_length_and_goes_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 64, generator=generator) for _ in range(2))
    whole = torch.cosine_similarity(a, b).arccos()
    for t in (0.25, 0.5, 0.9):
        between = slerp(a, b, t)
        assert torch.allclose(torch.cosine_similarity(a, between).arccos(), t * whole, atol=1e-4)
        assert torch.allclose(between.norm(dim=1), (1 - t) * a.norm(dim=1) + t * b.norm(dim=1), rtol=1e-5)


def test_the_ends_are_the_ends_to_the_bit() -> None:
    a, b = torch.randn(2, 3, 8)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    assert steps(5) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_where_there_is_no_arc_it_is_a_line() -> None:
    a = torch.tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[2.0, 4.0], [-1.0, 0.0], [4.0, 2.0]])
    assert torch.allclose(slerp(a, b, 0.25), 0.75 * a + 0.25 * b)
