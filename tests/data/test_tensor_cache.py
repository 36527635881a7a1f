"""A cache of tensors that stays within its bytes, and never changes what it is asked for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from star.data.tensor_cache import TensorCache

ROW = 16 * 4  # bytes


class Maker:
    """Makes a row for every name, as parts of one batch, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, names: list[str]) -> Sequence[tuple[Tensor, ...]]:
        self.asked.append(names)
        rows = torch.tensor([float(name) for name in names])[:, None].expand(-1, 16).contiguous()
        return [(row,) for row in rows]


def test_the_last_used_stay_and_the_bytes_are_kept() -> None:
    cache, make = TensorCache(3 * ROW), Maker()
    cache.of(["1", "2", "3"], make)
    cache.of(["1"], make)
    cache.of(["4", "4"], make)  # 2 was not asked for longest
    assert (len(cache), cache.bytes) == (3, 3 * ROW)
    cache.of(["1", "3", "4"], make)
    assert make.asked == [["1", "2", "3"], ["4"]]
    cache.of(["2"], make)
    assert make.asked[-1] == ["2"]


def test_a_batch_larger_than_the_cache_is_whole_and_none_of_it_holds_on_to_the_batch() -> None:
    cache, make = TensorCache(2 * ROW), Maker()
    names = [str(number) for number in range(10)]
    found = cache.of(names, make)
    assert [int(found[name][0][0]) for name in names] == list(range(10))
    assert cache.bytes == 2 * ROW
    assert all(found[name][0].untyped_storage().nbytes() == ROW for name in names)
    assert cache.of([], make) == {}
