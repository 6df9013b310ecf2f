"""The prediction table: what every arm said about every candidate, before it was trained on.

One Parquet file per surface and window::

    RUN/predictions/SURFACE/window=00012.parquet

    request_id int64, user_id int64, candidate_id int32, time timestamp[us, UTC], weight float32, stratum int8,
    tag_TAG bool ...            reporting only
    label_TASK float32 ...      0, 1, or null = not known
    p_TASK.ARM.seedN float32    probability, per arm and seed

Columns stand in the same order on every surface.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming import files
from streaming.errors import DataError
from streaming.requests import Requests

FIXED = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("candidate_id", pa.int32(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("stratum", pa.int8(), nullable=False),
    ]
)
_COLUMN = re.compile(r"p_(?P<task>.+)\.(?P<arm>\w+)\.seed(?P<seed>\d+)")
_WINDOW = re.compile(r"window=(\d{5,})\.parquet")
_EDGE = 1e-7
"""Probabilities nearer to 0 or 1 are taken for this near: float32 knows little beyond."""


@dataclass(frozen=True, order=True)
class Column:
    """One arm with one seed, predicting one task."""

    task: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the column: ``p_TASK.ARM.seedN``."""
        return f"p_{self.task}.{self.arm}.seed{self.seed}"

    @staticmethod
    def parse(name: str) -> "Column | None":
        """The column of that name; None if it is not a prediction."""
        match = _COLUMN.fullmatch(name)
        return Column(match["task"], match["arm"], int(match["seed"])) if match else None


def logit(probability_N: np.ndarray) -> np.ndarray:
    """Of predicted probabilities, float64 of the same shape, within 16.2 of 0."""
    probability_N = probability_N.astype(np.float64).clip(_EDGE, 1 - _EDGE)
    return np.asarray(np.log(probability_N / (1 - probability_N)))


def schema(*, tasks: Sequence[str], tags: Sequence[str], columns: Sequence[Column]) -> pa.Schema:
    """Schema of a prediction table; ``tags`` are names without the prefix ``tag_``."""
    fields = list(FIXED)
    fields += [pa.field(f"tag_{tag}", pa.bool_()) for tag in tags]
    fields += [pa.field(f"label_{task}", pa.float32()) for task in tasks]
    fields += [pa.field(column.name, pa.float32(), nullable=False) for column in columns]
    return pa.schema(fields)


def columns_of(names: Sequence[str], *, task: str) -> list[Column]:
    """The predictions of ``task`` among the names of a table's columns, in their order."""
    return [column for name in names if (column := Column.parse(name)) is not None and column.task == task]


def check(table: pa.Table, *, source: str) -> None:
    """Refuse what is not a prediction table.

    Raises:
        DataError: a column is missing, has another type, holds nulls where none are allowed, or is not known here.
    """
    for field in FIXED:
        _require(table, field, source=source)
    for name in table.column_names:
        if name in FIXED.names:
            continue
        if name.startswith("tag_"):
            _require(table, pa.field(name, pa.bool_()), source=source)
        elif name.startswith("label_"):
            _require(table, pa.field(name, pa.float32()), source=source)
        elif (column := Column.parse(name)) is not None:
            _require(table, pa.field(name, pa.float32(), nullable=False), source=source)
            if f"label_{column.task}" not in table.column_names:
                raise DataError(
                    f"{source}: '{name}' predicts task '{column.task}', but 'label_{column.task}' is missing."
                )
        else:
            raise DataError(
                f"{source}: column '{name}' is not part of a prediction table. "
                f"Allowed: {', '.join(FIXED.names)}, tag_TAG, label_TASK, p_TASK.ARM.seedN (for example "
                "p_purchase.control.seed0)."
            )


def path_of(run: Path, surface: str, window: int) -> Path:
    """Where the predictions of a surface's window lie in a run folder."""
    if not surface or surface.startswith(".") or "/" in surface:
        raise DataError(
            f"surface '{surface}' cannot name a folder. Use letters, digits, '-' and '_', as in 'home_feed'."
        )
    return run / "predictions" / surface / f"window={window:05d}.parquet"


def prediction_table(requests: Requests, columns: Mapping[Column, np.ndarray], *, tasks: list[str]) -> pa.Table:
    """The table of one surface's requests, as :func:`write` takes it.

    Args:
        requests: of one surface, with C candidates.
        columns: probabilities ``[C]`` by arm and seed.
        tasks: all tasks of the data set, in its order; every one's labels are in the table.
    """
    owner, supervision = requests.owner, requests.supervision
    known = supervision.known_time < supervision.NEVER
    fields: dict[str, pa.Array] = {
        "request_id": pa.array(requests.request_id[owner]),
        "user_id": pa.array(requests.user_id[owner]),
        "candidate_id": pa.array(requests.candidate_id.astype(np.int32)),
        "time": pa.array(requests.time[owner]).cast(pa.timestamp("us", tz="UTC")),
        "weight": pa.array(supervision.weight),
        "stratum": pa.array(supervision.stratum),
        **{f"tag_{tag}": pa.array(flags[owner]) for tag, flags in requests.tags.items()},
        **{
            f"label_{task}": pa.array(supervision.label[:, index], mask=~known[:, index])
            for index, task in enumerate(tasks)
        },
        **{column.name: pa.array(values.astype(np.float32)) for column, values in columns.items()},
    }
    layout = schema(tasks=tasks, tags=list(requests.tags), columns=list(columns))
    return pa.table(fields, schema=layout)


def write(run: Path, *, surface: str, window: int, table: pa.Table) -> Path:
    """Check and store a table, whole or not at all; an earlier table of that window is replaced.

    Raises:
        DataError: see :func:`check`.
    """
    path = path_of(run, surface, window)
    check(table, source=f"predictions of surface '{surface}', window {window}")
    files.write_file(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
    return path


def read(run: Path, *, surface: str, window: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a stored table; ``columns`` names the ones wanted (None = all).

    Raises:
        DataError: there is no such table.
    """
    path = path_of(run, surface, window)
    if not path.exists():
        have = windows(run, surface)
        spread = f"windows {have[0]} to {have[-1]} are there" if have else "the surface has none so far"
        raise DataError(f"{path}: no predictions of surface '{surface}' in window {window}; {spread}.")
    with pq.ParquetFile(path) as file:
        return file.read(columns=None if columns is None else list(columns))


def surfaces(run: Path) -> list[str]:
    """Surfaces with predictions, sorted by name."""
    root = run / "predictions"
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []


def windows(run: Path, surface: str) -> list[int]:
    """Windows with predictions of ``surface``, ascending. Files of a write under way are not counted."""
    folder = path_of(run, surface, 0).parent
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for file in folder.iterdir() if (match := _WINDOW.fullmatch(file.name)))


def _require(table: pa.Table, field: pa.Field, *, source: str) -> None:
    if field.name not in table.column_names:
        raise DataError(f"{source}: column '{field.name}' ({field.type}) is missing.")
    column = table.column(field.name)
    if column.type != field.type:
        raise DataError(f"{source}: column '{field.name}' is {column.type}, must be {field.type}. Cast it.")
    if not field.nullable and column.null_count:
        raise DataError(f"{source}: column '{field.name}' has {column.null_count} nulls; none are allowed there.")
