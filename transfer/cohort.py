"""Gains by cohort: what an arm is worth to part of the rows, by name.

Who is in a cohort is kept beside the predictions, one Parquet file per surface and window, row by row as there::

    RUN/cohorts/SURFACE/window=00012.parquet      one column a cohort, named as it is: user.income=50-74K bool ...

Cohorts are found while a run goes on; a window before that has no such file and counts for none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming import files
from streaming.errors import DataError
from transfer import predictions
from transfer.sums import UserSums, accumulate, combine

_TAG = "in_this_cohort"


def path_of(run: Path, surface: str, window: int) -> Path:
    """Where the members of a surface's cohorts lie in a run folder."""
    return run / "cohorts" / predictions.path_of(run, surface, window).relative_to(run / "predictions")


def write(run: Path, *, surface: str, window: int, members: Mapping[str, np.ndarray]) -> Path:
    """Store which rows of a window's predictions are in each cohort, bool ``[N]`` by name; replaces what was there."""
    path = path_of(run, surface, window)
    table = pa.table({name: pa.array(member) for name, member in members.items()})
    files.write_file(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
    return path


def of_windows(run: Path, *, surface: str, windows: Sequence[int], task: str) -> dict[str, UserSums]:
    """Sums over each cohort of a surface, by its name, added up over those of ``windows`` that know of it.

    Raises:
        DataError: a membership does not fit its predictions; see also :func:`cohort_sums`.
    """
    parts: dict[str, list[UserSums]] = {}
    for window in windows:
        path = path_of(run, surface, window)
        if path.exists():
            table = predictions.read(run, surface=surface, window=window)
            with pq.ParquetFile(path) as file:
                of_cohort = file.read()
            for name in of_cohort.column_names:
                member = of_cohort[name].to_numpy()
                parts.setdefault(name, []).append(cohort_sums(table, member=member, task=task))
    return {name: combine(each) for name, each in parts.items()}


def cohort_sums(table: pa.Table, *, member: np.ndarray, task: str) -> UserSums:
    """Sums over the rows of one cohort; add windows up with :func:`transfer.sums.combine`.

    Args:
        table: see :mod:`transfer.predictions`.
        member: bool [N], which rows of ``table`` are in the cohort.
        task: whose labels and probabilities.

    Raises:
        DataError: ``member`` has another length than the table, or see :func:`transfer.sums.accumulate`.
    """
    if len(member) != len(table):
        raise DataError(
            f"a cohort's membership has {len(member)} rows, the predictions {len(table)}; give one for each."
        )
    flags = pa.array(np.asarray(member, dtype=bool))
    return accumulate(table.append_column(f"tag_{_TAG}", flags), task=task, tag=_TAG).select(tagged=True)
