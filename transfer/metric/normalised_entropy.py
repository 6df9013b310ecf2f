"""Normalised entropy: mean log loss over the entropy of the base rate (He et al., 2014, "Practical Lessons from
Predicting Clicks on Ads at Facebook").

1 is what the constant base rate scores; smaller is better. Comparable between data of different base rates, which the
bare log loss is not.
"""

import math
from typing import Self

import numpy as np
import numpy.typing as npt

CLIP = 1e-7
"""Probabilities are clipped to [CLIP, 1 - CLIP]: one confident mistake costs 16 nats at most."""


def log_loss(probability: npt.ArrayLike, label: npt.ArrayLike) -> np.ndarray:
    """Log loss per row in nats, float64 [N].

    Args:
        probability: [N], of the label being 1.
        label: [N] of 0 or 1.
    """
    positive = np.asarray(label, dtype=np.float64)
    # |1 - y - p| is p where y = 1 and 1 - p where y = 0: one logarithm for both classes.
    chance = np.abs((1.0 - positive) - np.asarray(probability, dtype=np.float64))
    np.clip(chance, CLIP, 1.0 - CLIP, out=chance)
    np.log(chance, out=chance)
    return np.negative(chance, out=chance)


def from_sums(*, loss: float, positives: float, rows: float) -> float:
    """Normalised entropy from the sum of log losses, of labels and of rows (or of their weights).

    nan where it is not defined: no rows, or rows of one class only.
    """
    if rows <= 0 or positives <= 0 or positives >= rows:
        return math.nan
    rate = positives / rows
    entropy = -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))
    return loss / rows / entropy


def normalised_entropy(probability: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """Normalised entropy of rows whose labels are known; rows with a nan label are skipped.

    Args:
        probability: [N].
        label: [N] of 0, 1 or nan (not known).
        weight: [N], non-negative; None counts every row once. With the sampling weights this is ``ne_pop``, the value
            for the population that the sample stands for.

    Returns:
        The value, or nan where it is not defined (no rows, one class only).
    """
    return NormalisedEntropy().update(probability, label, weight).value()


class NormalisedEntropy:
    """Streaming normalised entropy: three exact sums, whatever the number of rows."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.positives = 0.0
        self.rows = 0.0

    def update(self, probability: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Self:
        """Add rows; see :func:`normalised_entropy` for the arguments."""
        labels = np.asarray(label, dtype=np.float64)
        known = ~np.isnan(labels)
        labels = labels[known]
        weights = np.ones_like(labels) if weight is None else np.asarray(weight, dtype=np.float64)[known]
        self.loss += float(log_loss(np.asarray(probability)[known], labels) @ weights)
        self.positives += float(labels @ weights)
        self.rows += float(weights.sum())
        return self

    def merge(self, other: Self) -> Self:
        """Add the rows of ``other``."""
        self.loss += other.loss
        self.positives += other.positives
        self.rows += other.rows
        return self

    def value(self) -> float:
        """Normalised entropy so far; nan where it is not defined."""
        return from_sums(loss=self.loss, positives=self.positives, rows=self.rows)
