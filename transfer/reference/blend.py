"""The arm ``blended``: boosted trees and the foundation model, each with half a say.

The mean of both logits. What a user of trees gains from the foundation model without giving trees up, and without one
more training: the two err differently, and the mean is better than either. Both are predicted before their window is
learned (law L4), and nothing is fitted here.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer import predictions
from transfer.gain import BLENDED, FM_HEAD
from transfer.predictions import Column
from transfer.reference.boosting import LIGHTGBM


def blend(trees_C: np.ndarray, teacher_C: np.ndarray) -> np.ndarray:
    """Probabilities float32 ``[C]`` of which the logit is the mean of both arguments' logits."""
    logits = [predictions.logit(each) for each in (trees_C, teacher_C)]
    return (1 / (1 + np.exp(-np.mean(logits, axis=0)))).astype(np.float32)


def add_blended(run: Path) -> None:
    """Add the arm to every prediction table of ``run`` that has both; tables that have it as it is now stay."""
    for surface in predictions.surfaces(run):
        for window in predictions.windows(run, surface):
            table = predictions.read(run, surface=surface, window=window)
            both = blended(table)
            if not both.equals(table):
                predictions.write(run, surface=surface, window=window, table=both)


def blended(table: pa.Table) -> pa.Table:
    """``table`` with the arm's columns, one a task of which it has predictions of trees and of the teacher."""
    for trees in [c for name in table.column_names if (c := Column.parse(name)) is not None and c.arm == LIGHTGBM]:
        teacher, made = Column(trees.task, FM_HEAD, 0), Column(trees.task, BLENDED, trees.seed)
        if teacher.name not in table.column_names:
            continue
        values = pa.array(blend(table[trees.name].to_numpy(), table[teacher.name].to_numpy()))
        field, place = pa.field(made.name, pa.float32(), nullable=False), table.schema.get_field_index(made.name)
        table = table.append_column(field, values) if place < 0 else table.set_column(place, field, values)
    return table
