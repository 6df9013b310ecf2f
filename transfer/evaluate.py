"""Every metric of one window's predictions, per arm and seed: what is logged window by window."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from transfer import predictions
from transfer.metric.auc import auc, auc_by_stratum, grouped_auc
from transfer.metric.calibration import calibration
from transfer.metric.normalised_entropy import normalised_entropy
from transfer.predictions import Column


def evaluate(table: pa.Table, *, task: str, columns: Sequence[Column] | None = None) -> dict[Column, dict[str, float]]:
    """Metrics of the rows whose label is known, all users included; nan where not defined.

    Args:
        table: see :mod:`transfer.predictions`.
        task: whose labels and probabilities.
        columns: arms and seeds to judge; None takes all of the task.

    Returns:
        Per column: ``ne``, ``ne_pop``, ``auc`` (exact), ``auc_by_user``, ``auc_stratum_K`` for every stratum K,
        ``calibration``, ``calibration_pop``, ``base_rate``, ``rows``.
    """
    label = table.column(f"label_{task}").to_numpy()
    known = ~np.isnan(label)
    label = label[known].astype(np.float64)
    weight, stratum, user = (table.column(name).to_numpy()[known] for name in ("weight", "stratum", "user_id"))
    result = {}
    for column in predictions.columns_of(table.column_names, task=task) if columns is None else columns:
        probability = table.column(column.name).to_numpy()[known]
        strata = auc_by_stratum(probability, label, stratum)
        result[column] = {
            "ne": normalised_entropy(probability, label),
            "ne_pop": normalised_entropy(probability, label, weight),
            "auc": auc(probability, label),
            "auc_by_user": grouped_auc(probability, label, user),
            **{f"auc_stratum_{value}": area for value, area in strata.items()},
            "calibration": calibration(probability, label),
            "calibration_pop": calibration(probability, label, weight),
            "base_rate": float(label.mean()) if len(label) else float("nan"),
            "rows": float(len(label)),
        }
    return result
