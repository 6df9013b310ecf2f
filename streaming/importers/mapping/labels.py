"""Labels of rows, and when each becomes known (law L2)."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.importers.mapping.columns import Float, Int, Mask, flags, numbers, times
from streaming.importers.mapping.quarantine import Checks
from streaming.importers.mapping.roles import LabelConfig

Label = tuple[Float, Int]
"""Values [n], NaN where not known, and the times at which they become known, microseconds UTC [n]."""


def labels(
    tasks: list[LabelConfig], columns: dict[str, pa.Array], time: Int, checks: Checks, *, latest: int
) -> list[Label]:
    """Labels of each task.

    Args:
        time: of the rows, microseconds UTC [n].
        latest: no label is known at this time or later.
    """
    found = []
    for task in tasks:
        value, bad = _value(task, columns, len(time))
        checks.refuse(bad, f"{task.column}: no label of task {task.name}")
        found.append((value, _known(task, columns, time, checks, latest=latest)))
    return _where_given(tasks, found)


def _known(task: LabelConfig, columns: dict[str, pa.Array], time: Int, checks: Checks, *, latest: int) -> Int:
    known = time + round(task.delay_seconds * 1e6)
    if task.known_at is None:
        return known
    at, missing, bad = times(columns[task.known_at.column], task.known_at)
    checks.refuse(bad | (~missing & (at >= latest)), f"{task.known_at.column}: not a time")
    checks.refuse(~missing & ~bad & (at < time), f"{task.known_at.column}: before the row's own time")
    return np.where(missing | bad, known, at)


def _value(task: LabelConfig, columns: dict[str, pa.Array], size: int) -> tuple[Float, Mask]:
    nothing = np.zeros(size, dtype=bool)
    if task.column is None:
        return np.ones(size), nothing
    array = columns[task.column]
    if task.at_least is not None:
        value, bad = numbers(array, column=task.column)
        return np.where(np.isnan(value), value, value >= task.at_least), bad
    if task.equals is None:
        return flags(array, column=task.column)
    text = array if pa.types.is_string(array.type) else array.cast(pa.string())
    equal = pc.equal(pc.utf8_trim_whitespace(text), task.equals).cast(pa.float64())
    return equal.to_numpy(zero_copy_only=False), nothing


def _where_given(tasks: list[LabelConfig], labels: list[Label]) -> list[Label]:
    """Labels only where the task that they are given is 1, and known no earlier than that one."""
    names, result = [task.name for task in tasks], []
    for task, (value, known) in zip(tasks, labels, strict=True):
        if task.given is not None:
            condition, since = labels[names.index(task.given)]
            value, known = np.where(condition == 1, value, np.nan), np.maximum(known, since)
        result.append((value, known))
    return result
