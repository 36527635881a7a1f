"""Laws of the normalised two-dimensional rotary positions."""

import pytest
import torch
import torch.nn.functional as F

from star.model.rope import pyramid_rotation, rotate, rotate_to_unit, scale_rotation

WIDTH = 16


def test_rotation_keeps_lengths() -> None:
    heads = torch.randn(2, 3, 25, WIDTH)
    turned = rotate(heads, scale_rotation(5, WIDTH))
    assert torch.allclose(turned.norm(dim=-1), heads.norm(dim=-1), atol=1e-5)
    assert not torch.allclose(turned, heads, atol=0.1)


def test_a_single_cell_is_not_turned() -> None:
    heads = torch.randn(2, 3, 1, WIDTH)
    assert torch.equal(rotate(heads, scale_rotation(1, WIDTH)), heads)


@pytest.mark.parametrize("size", [3, 5])
def test_scores_depend_on_the_difference_of_places(size: int) -> None:
    query, key = torch.randn(2, 1, 1, 1, WIDTH).expand(2, 1, 1, size * size, WIDTH)
    table = scale_rotation(size, WIDTH)
    scores = (rotate(query, table) @ rotate(key, table).mT).reshape(size, size, size, size)
    for row in range(size - 1):
        for column in range(size - 1):
            moved = scores[row + 1, column + 1, 1:, 1:]
            assert torch.allclose(scores[row, column, :-1, :-1], moved, atol=1e-4)
    assert not torch.allclose(scores[0, 0, 0, 1], scores[0, 0, 1, 0], atol=1e-3)


def test_corners_of_all_scales_coincide() -> None:
    coarse, fine = scale_rotation(2, WIDTH, norm=8.0), scale_rotation(5, WIDTH, norm=8.0)
    for mine, theirs in zip((0, 1, 2, 3), (0, 4, 20, 24), strict=True):
        assert torch.allclose(coarse.cos_lP[mine], fine.cos_lP[theirs], atol=1e-6)
        assert torch.allclose(coarse.sin_lP[mine], fine.sin_lP[theirs], atol=1e-6)


def test_halves_turn_by_column_and_row() -> None:
    angles = scale_rotation(4, WIDTH).sin_lP.reshape(4, 4, WIDTH // 2)
    by_column, by_row = angles.chunk(2, dim=-1)
    assert torch.equal(by_column[0], by_column[3])
    assert torch.equal(by_row[:, 0], by_row[:, 3])
    assert torch.equal(by_column[0], by_row[:, 0])


def test_the_pyramid_is_the_scales_in_order() -> None:
    table = pyramid_rotation((1, 3, 4), WIDTH, theta=100.0, norm=32.0)
    alone = scale_rotation(3, WIDTH, theta=100.0, norm=32.0)
    part = table.part(slice(1, 10))
    assert len(table.cos_lP) == 26
    assert torch.equal(part.cos_lP, alone.cos_lP)
    assert torch.equal(part.sin_lP, alone.sin_lP)


def test_a_head_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        scale_rotation(2, 6)


@pytest.mark.parametrize("turned", [True, False])
def test_the_written_out_gradient_is_the_derived_one(turned: bool) -> None:
    table = scale_rotation(3, WIDTH) if turned else None
    heads = torch.randn(2, 3, 9, WIDTH, requires_grad=True)
    weight = torch.randn(2, 3, 9, WIDTH)
    unit = rotate_to_unit(heads, table)
    plain = F.normalize(heads if table is None else rotate(heads, table), dim=-1)
    assert torch.allclose(unit, plain, atol=1e-6)
    (gradient,) = torch.autograd.grad((unit * weight).sum(), heads)
    (expected,) = torch.autograd.grad((plain * weight).sum(), heads)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert rotate_to_unit(heads.bfloat16(), table).dtype == torch.float32


def test_rectangles_span_the_range_of_squares_along_both_sides() -> None:
    wide = scale_rotation((3, 5), WIDTH, norm=8.0)
    by_column, by_row = wide.sin_lP.reshape(3, 5, WIDTH // 2).chunk(2, dim=-1)
    five, three = (scale_rotation(n, WIDTH, norm=8.0).sin_lP.reshape(n, n, WIDTH // 2) for n in (5, 3))
    assert torch.equal(by_column[1], five[0, :, : WIDTH // 4])
    assert torch.equal(by_row[:, 2], three[:, 0, WIDTH // 4 :])
    square = scale_rotation((4, 4), WIDTH)
    assert torch.equal(square.cos_lP, scale_rotation(4, WIDTH).cos_lP)
    row = scale_rotation((1, 3), WIDTH)  # a single row stands where a single cell does
    assert torch.equal(row.sin_lP[:, WIDTH // 4 :], torch.zeros(3, WIDTH // 4))
