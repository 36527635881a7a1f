"""Rows of features that are larger than memory should be: they stay in their file, and a few at a time are read.

    features = FileFeatures("rows.npy")                  # (N, D)
    features[0:2048], features[torch.tensor([5, 3])]   # tensors, read now; nothing of them is kept
    group = pick(features, places)                   # some of the rows, still in the file
    for part_nD in chunks(group, 2048): ...

A mapped file would do as much, but its pages count as the process's own memory until the system wants them back.
N n rows, D feature width.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

BLOCK_BYTES = 4 << 20  # read at once where rows lie close together
SPARSE_BYTES = (
    32 << 10
)  # rows with more than this between them, on the average, are read one by one: a call costs as much


class FileFeatures:
    """A (N, D) array in an .npy file of float32, read by slices and by int64 tensors of places."""

    ndim = 2

    def __init__(self, path: str | Path) -> None:
        """Raises ValueError for a file of another kind."""
        self.path = Path(path)
        with self.path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, columns_first, dtype = read(file)
            self._start = file.tell()
        if len(shape) != 2 or columns_first or dtype != np.dtype(np.float32):
            raise ValueError(f"{path} holds {shape} of {dtype}, expected rows of float32")
        self.shape: tuple[int, int] = shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: slice | Tensor) -> Tensor:
        if isinstance(wanted, slice):
            start, stop, step = wanted.indices(len(self))
            if step != 1:
                raise ValueError(f"a step of {step} given, expected rows one after the other")
            with self._open() as file:
                return torch.from_numpy(self._read(file, start, max(start, stop)))
        return torch.from_numpy(self._gather(wanted.numpy()))

    def _gather(self, places_n: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows in the order of places, read in the order of the file."""
        rows_nD = np.empty((len(places_n), self.shape[1]), np.float32)
        order_n = np.argsort(places_n, kind="stable")
        sorted_n = places_n[order_n]
        if not len(sorted_n):
            return rows_nD
        if not 0 <= sorted_n[0] <= sorted_n[-1] < len(self):
            raise IndexError(f"rows {sorted_n[0]} to {sorted_n[-1]} asked for, {self.path} has {len(self)}")
        bytes_per_row = 4 * self.shape[1]
        with self._open() as file:
            if bytes_per_row * int(sorted_n[-1] - sorted_n[0]) > SPARSE_BYTES * len(sorted_n):
                for place, to in zip(sorted_n.tolist(), order_n.tolist(), strict=True):
                    file.read_into(rows_nD[to], self._start + bytes_per_row * place)
                return rows_nD
            first = 0
            while first < len(sorted_n):
                start = int(sorted_n[first])
                last = int(np.searchsorted(sorted_n, start + max(1, BLOCK_BYTES // bytes_per_row)))
                block_mD = self._read(file, start, int(sorted_n[last - 1]) + 1)
                rows_nD[order_n[first:last]] = block_mD[sorted_n[first:last] - start]
                first = last
        return rows_nD

    def _open(self) -> "_File":
        return _File(self.path)

    def _read(self, file: "_File", start: int, stop: int) -> NDArray[np.float32]:
        rows = np.empty((stop - start, self.shape[1]), np.float32)
        file.read_into(rows, self._start + 4 * self.shape[1] * start)
        return rows


class _File:
    """A file that is read at places, without a buffer of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_File":
        self._number = os.open(self.path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._number)

    def read_into(self, rows: NDArray[np.float32], offset: int) -> None:
        """Raises OSError for a file that ends too early."""
        view = memoryview(rows.view(np.uint8).reshape(-1))  # type: ignore[arg-type]  # numpy arrays are buffers
        while len(view):
            count = os.preadv(self._number, [view], offset)
            if count == 0:
                raise OSError(f"{self.path} ends at byte {offset}, expected {len(view)} more: remove it, and run again")
            view, offset = view[count:], offset + count


class FeatureSubset:
    """Some rows of features, with repeats where places have them."""

    ndim = 2

    def __init__(self, features: "Tensor | FileFeatures", places_n: NDArray[np.int64]) -> None:
        self.features, self.places_n = features, places_n

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places_n), self.features.shape[1]

    def __len__(self) -> int:
        return len(self.places_n)

    def __getitem__(self, wanted: slice | Tensor) -> Tensor:
        return self.features[torch.from_numpy(self.places_n[wanted if isinstance(wanted, slice) else wanted.numpy()])]


Features = Tensor | FileFeatures | FeatureSubset


def subset(features: Features, places_n: NDArray[np.int64]) -> FeatureSubset:
    """Rows of features by their places, not copied."""
    if isinstance(features, FeatureSubset):
        return FeatureSubset(features.features, features.places_n[places_n])
    return FeatureSubset(features, places_n)


def chunks(features: Features, rows: int) -> Iterator[Tensor]:
    """All rows, some at a time; picked ones in the order of their file, for what does not depend on the order."""
    if isinstance(features, FeatureSubset):
        features = FeatureSubset(features.features, np.sort(features.places_n))
    for top in range(0, len(features), rows):
        yield features[top : top + rows]
