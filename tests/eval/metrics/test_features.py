"""Rows in a file are the rows in memory, whichever are asked for, and nothing of the file is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from star.eval.metrics.distances import Gaussian, frechet_infinity
from star.eval.metrics.features import BLOCK_BYTES, SPARSE_BYTES, FileFeatures, chunks, subset
from star.eval.metrics.manifold import precision_recall_density_coverage
from star.eval.metrics.resampling import frechet_infinity_resamples, frechet_resamples
from tests.eval.kernels import cmmd, kid


def features(count: int = 700, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def filed(rows: Tensor, folder: Path, name: str = "rows") -> FileFeatures:
    np.save(folder / f"{name}.npy", rows.numpy())
    return FileFeatures(folder / f"{name}.npy")


@pytest.mark.parametrize(
    "places",
    [[0, 699, 3, 3, 350], list(range(0, 700, 7)), [5], [], list(range(699, -1, -1))],
    ids=["repeats", "spread", "one", "none", "backwards"],
)
@pytest.mark.parametrize(
    ("block", "sparse"), [(BLOCK_BYTES, SPARSE_BYTES), (4 * 6 * 10, SPARSE_BYTES), (BLOCK_BYTES, 0)], ids=str
)
def test_any_rows_are_those_of_the_array(
    tmp_path: Path, places: list[int], block: int, sparse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star.eval.metrics.features.BLOCK_BYTES", block)
    monkeypatch.setattr("star.eval.metrics.features.SPARSE_BYTES", sparse)
    table = filed(features(), tmp_path)
    wanted = torch.tensor(places, dtype=torch.long)
    assert torch.equal(table[wanted], features()[wanted])
    picked = subset(table, wanted.numpy())
    assert picked.shape == (len(places), 6)
    assert torch.equal(picked[1:4], features()[wanted][1:4])
    again = subset(picked, np.arange(len(places))[::2])
    assert torch.equal(again[:], features()[wanted][::2])


def test_slices_are_clipped_as_those_of_an_array(tmp_path: Path) -> None:
    table = filed(features(), tmp_path)
    for part in (slice(0, 10), slice(690, 900), slice(800, 900), slice(None), slice(9, 3)):
        assert torch.equal(table[part], features()[part])
    assert (table.shape, len(table)) == ((700, 6), 700)
    with pytest.raises(ValueError, match="a step of 2"):
        table[::2]
    with pytest.raises(IndexError, match="700 asked for"):
        table[torch.tensor([700])]


def test_chunks_of_picked_rows_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    picked = subset(filed(features(), tmp_path), np.array([9, 2, 9, 400]))
    assert torch.equal(torch.cat(list(chunks(picked, 3))), features()[torch.tensor([2, 9, 9, 400])])


def test_statistics_of_rows_in_files_are_those_of_rows_in_memory(tmp_path: Path) -> None:
    drawn, real = features(400, seed=1), features(400, seed=2) + 0.3
    drawn_file, real_file = filed(drawn, tmp_path, "drawn"), filed(real, tmp_path, "real")
    reference = Gaussian.of(real)
    torch.testing.assert_close(Gaussian.of(real_file).covariance_DD, reference.covariance_DD, rtol=0, atol=0)
    for measure in (kid, cmmd, frechet_infinity):
        assert measure(drawn_file, real_file) == pytest.approx(measure(drawn, real), rel=1e-12)
    for resampled, same in (
        (frechet_resamples(drawn_file, reference, 4, 0), frechet_resamples(drawn, reference, 4, 0)),
        (frechet_infinity_resamples(drawn_file, real_file, 2, 0), frechet_infinity_resamples(drawn, real, 2, 0)),
    ):
        torch.testing.assert_close(resampled, same, rtol=1e-9, atol=1e-9)
    by_file = precision_recall_density_coverage(real_file, drawn_file).values
    for name, values in precision_recall_density_coverage(real, drawn).values.items():
        assert torch.equal(by_file[name], values)


def test_a_file_of_another_kind_or_cut_short_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "bytes.npy", np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="expected rows of float32"):
        FileFeatures(tmp_path / "bytes.npy")
    table = filed(features(), tmp_path)
    with table.path.open("r+b") as file:
        file.truncate(table.path.stat().st_size - 5)
    assert torch.equal(table[:699], features()[:699])
    with pytest.raises(OSError, match="expected 5 more"):
        table[:]
