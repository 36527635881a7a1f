"""Names of files and the shape of a sheet."""

from star.pictures.names import numbered
from star.pictures.sheet import columns_of, sheet


def test_names_follow_from_the_list_and_are_all_different() -> None:
    stems = ["a-0", "b-0", "a-0", "a-0-2", "a-0"]
    assert numbered(stems) == ["a-0.png", "b-0.png", "a-0-2.png", "a-0-2-2.png", "a-0-3.png"]


def test_a_sheet_is_about_square() -> None:
    import torch

    assert columns_of(100, 100) == 10
    assert columns_of(100) == 10
    assert columns_of(200) == 15
    assert columns_of(6, 2) == 2  # a prompt in each row
    assert columns_of(100, 50) == 10
    assert columns_of(7, 7) == 3  # nothing divides it: rows are not whole, rather than one long row
    for count in range(1, 200):
        for each in (n for n in range(1, count + 1) if count % n == 0):
            columns = columns_of(count, each)
            rows = -(-count // columns)
            assert max(rows / columns, columns / rows) <= 2.5 or count < 4
    large = [torch.zeros(3, 1000, 1000, dtype=torch.uint8)] * 25
    assert max(sheet(large, 5).shape) <= 4096 + 2 * 5


def test_pictures_of_other_shapes_share_a_sheet() -> None:
    import torch

    wide, high = (torch.zeros(3, h, w, dtype=torch.uint8) for h, w in ((4, 8), (8, 4)))
    both = sheet([wide, high], 2)
    assert both.shape == (3, 8, 18)
    assert (both[:, 2:6, :8] == 0).all()
    assert (both[:, :, 12:16] == 0).all()
    assert int((both == 0).sum()) == 2 * 3 * 32
