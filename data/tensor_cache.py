"""Tensors kept by name, in a stated number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor


class TensorCache:
    """Tuples of tensors by name; what was not asked for longest is given up where they would pass `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(
        self, names: Sequence[str], make: Callable[[list[str]], Sequence[tuple[Tensor, ...]]]
    ) -> dict[str, tuple[Tensor, ...]]:
        """The tensors of all these names, whatever the limit; `make` is asked once for those that are not kept.

        Each is kept as a copy of its own: a row would hold on to the whole batch it was made in.
        """
        found: dict[str, tuple[Tensor, ...]] = {}
        for name in names:
            if name in self._kept:
                self._kept.move_to_end(name)
                found[name] = self._kept[name]
        if missing := [name for name in dict.fromkeys(names) if name not in found]:
            for name, made in zip(missing, make(missing), strict=True):
                found[name] = tuple(tensor.clone() for tensor in made)
                self._keep(name, found[name])
        return found

    def _keep(self, name: str, tensors: tuple[Tensor, ...]) -> None:
        self._kept[name] = tensors
        self.bytes += _size(tensors)
        while self.bytes > self.limit:
            _, given_up = self._kept.popitem(last=False)
            self.bytes -= _size(given_up)


def _size(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
