"""Calibration: the sum of predicted probabilities over the number of positives. 1 is right, above 1 is too high."""

import math
from typing import Self

import numpy as np
import numpy.typing as npt


def from_sums(*, predicted: float, positives: float) -> float:
    """Calibration from the sums of probabilities and of labels; nan without a positive."""
    return predicted / positives if positives > 0 else math.nan


def calibration(probability: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """Sum of p over sum of y, of rows whose labels are known.

    Args:
        probability: [N].
        label: [N] of 0, 1 or nan (not known: skipped).
        weight: [N], non-negative; None counts every row once.

    Returns:
        The ratio, or nan without a positive.
    """
    return Calibration().update(probability, label, weight).value()


class Calibration:
    """Streaming calibration: two exact sums."""

    def __init__(self) -> None:
        self.predicted = 0.0
        self.positives = 0.0

    def update(self, probability: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Self:
        """Add rows; see :func:`calibration` for the arguments."""
        labels = np.asarray(label, dtype=np.float64)
        known = ~np.isnan(labels)
        labels = labels[known]
        weights = np.ones_like(labels) if weight is None else np.asarray(weight, dtype=np.float64)[known]
        self.predicted += float(np.asarray(probability, dtype=np.float64)[known] @ weights)
        self.positives += float(labels @ weights)
        return self

    def merge(self, other: Self) -> Self:
        """Add the rows of ``other``."""
        self.predicted += other.predicted
        self.positives += other.positives
        return self

    def value(self) -> float:
        """Calibration so far; nan without a positive."""
        return from_sums(predicted=self.predicted, positives=self.positives)
