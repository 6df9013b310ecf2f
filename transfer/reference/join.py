"""Puts the columns of one run's predictions beside those of another, row by row, by (request, candidate)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.errors import DataError
from transfer import predictions
from transfer.predictions import Column


def joined(table: pa.Table, other: pa.Table, *, columns: Sequence[Column], source: str) -> pa.Table:
    """``table`` with ``columns`` of ``other``; columns of the same names are replaced. Rows keep their order.

    Args:
        table: see :mod:`transfer.predictions`.
        other: of the same rows, in any order.
        columns: of ``other``.
        source: what an error calls ``other``.

    Raises:
        DataError: the two are not of the same rows, or their labels differ.
    """
    mine, theirs = _order(table), _order(other)
    for name in ("request_id", "candidate_id", *(f"label_{task}" for task in sorted({c.task for c in columns}))):
        if name not in table.column_names or name not in other.column_names:
            raise DataError(f"{source}: column '{name}' must be in both tables to join them.")
        left, right = table[name].to_numpy()[mine], other[name].to_numpy()[theirs]
        if len(left) != len(right) or not np.array_equal(left, right, equal_nan=name.startswith("label_")):
            raise DataError(
                f"{source}: '{name}' differs between the tables ({len(left)} and {len(right)} rows). Both must be "
                "predictions of the same data set; predict again with the one that the run was made on."
            )
    for column in columns:
        values = np.empty(len(mine), dtype=np.float32)
        values[mine] = other[column.name].to_numpy()[theirs]
        if column.name in table.column_names:
            table = table.drop_columns([column.name])
        table = table.append_column(pa.field(column.name, pa.float32(), nullable=False), pa.array(values))
    return table


def join_arm(run: Path, source: Path, *, arm: str) -> None:
    """Add the columns of ``arm`` in the run folder ``source`` to the predictions of ``run``, file by file.

    Files that have them already, with the same values, are left as they are.

    Raises:
        DataError: ``source`` lacks a window that ``run`` has predictions of, has no such arm, or see :func:`joined`.
    """
    for surface in predictions.surfaces(run):
        for window in predictions.windows(run, surface):
            table = predictions.read(run, surface=surface, window=window)
            other = predictions.read(source, surface=surface, window=window)
            path = str(predictions.path_of(source, surface, window))
            columns = [c for name in other.column_names if (c := Column.parse(name)) is not None and c.arm == arm]
            if not columns:
                raise DataError(f"{path}: no predictions of arm '{arm}'; columns are {', '.join(other.column_names)}.")
            both = joined(table, other, columns=columns, source=path)
            if not both.equals(table):
                predictions.write(run, surface=surface, window=window, table=both)


def has_arm(run: Path, *, arm: str) -> bool:
    """Whether every prediction table of ``run`` has a column of ``arm``; False if there are no tables."""
    files = [predictions.path_of(run, s, w) for s in predictions.surfaces(run) for w in predictions.windows(run, s)]
    return bool(files) and all(
        any((column := Column.parse(name)) is not None and column.arm == arm for name in pq.read_schema(file).names)
        for file in files
    )


def _order(table: pa.Table) -> np.ndarray:
    return np.lexsort((table["candidate_id"].to_numpy(), table["request_id"].to_numpy()))
