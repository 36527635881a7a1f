"""Rows of parquet files and of Arrow streams; pyarrow, which reads them, is an optional package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.data.errors import InputError
from star.data.packing.tables import Row, check_columns
from star.data.shards.faults import SampleError

BATCH = 64  # rows that are in memory at a time; each may hold a picture


def parquet_rows(path: Path, image_column: str | None, caption_column: str | None) -> Iterator[Row]:
    """Rows in their order; a group of rows that cannot be read is reported once, with the rows it costs.

    Raises InputError if pyarrow is missing, the file is no parquet file, or it lacks these columns.
    """
    errors = _errors(path)
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(path)
        groups = [(index, table.metadata.row_group(index).num_rows) for index in range(table.num_row_groups)]
    except errors as error:
        raise InputError(f"Cannot read the table {path} ({error}); give a whole parquet file.") from error
    with table:
        check_columns(path, table.schema_arrow.names, image_column, caption_column)
        first = 1
        for group, length in groups:
            done = 0
            try:
                for batch in table.iter_batches(batch_size=BATCH, row_groups=[group]):
                    for row in _rows(batch, first + done):
                        yield row
                        done += 1
            except errors as error:
                where = f"rows {first + done} to {first + length - 1}"
                yield Row(where, {}, SampleError("broken row", str(error)))
            first += length


def arrow_rows(path: Path, image_column: str | None, caption_column: str | None) -> Iterator[Row]:
    """Rows of an Arrow IPC stream, as `datasets` writes them to the disk; what follows a damaged place is reported.

    Raises InputError if pyarrow is missing, the file is no Arrow stream, or it lacks these columns.
    """
    errors = _errors(path)
    import pyarrow

    try:
        source = pyarrow.memory_map(str(path))
        stream = pyarrow.ipc.open_stream(source)
    except errors as error:
        raise InputError(f"Cannot read the table {path} ({error}); give a whole Arrow stream.") from error
    with source:
        check_columns(path, stream.schema.names, image_column, caption_column)
        done = 0
        try:
            for batch in stream:
                for start in range(0, batch.num_rows, BATCH):
                    for row in _rows(batch.slice(start, BATCH), done + 1):
                        yield row
                        done += 1
        except errors as error:
            yield Row(f"row {done + 1} and all after it", {}, SampleError("broken row", str(error)))


def _errors(path: Path) -> tuple[type[BaseException], ...]:
    """What reading may raise. Raises InputError if pyarrow is missing."""
    try:
        from pyarrow import ArrowException
    except ImportError as error:
        raise InputError(
            f"Reading {path} needs pyarrow, which is not installed; run `pip install pyarrow`, or give CSV or JSONL."
        ) from error
    return (OSError, ValueError, OverflowError, MemoryError, ArrowException)


def _rows(batch: Any, first: int) -> Iterator[Row]:
    names = batch.schema.names
    for number, cells in enumerate(zip(*(_values(column) for column in batch.columns), strict=True), first):
        yield Row(f"row {number}", dict(zip(names, cells, strict=True)))


def _values(column: Any) -> list[Any]:
    """A column as Python's values; times and numbers that Python has no type for as text."""
    import pyarrow

    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        values = column.cast(pyarrow.string()).to_pylist()
    return values
