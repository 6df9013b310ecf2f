"""Area under the ROC curve: the chance that a positive is ranked above a negative, ties counting one half.

:func:`auc`, :func:`auc_by_stratum` and :func:`grouped_auc` are exact and need all rows at once. :class:`BinnedAuc` is
for streams: it keeps a histogram of probabilities, so memory does not grow with rows, and bounds its own error.
"""

import math
from typing import Self

import numpy as np
import numpy.typing as npt

_SHIFT = 16  # keeps the sign, the exponent and 7 bits of the mantissa of a float32: 128 bins per factor of two
_LOWEST = int(np.float32(1e-7).view(np.uint32)) >> _SHIFT
BINS = (int(np.float32(1.0).view(np.uint32)) >> _SHIFT) - _LOWEST + 1
"""Number of bins of :func:`bin_of`."""


def auc(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Exact AUC.

    Args:
        probability: [N]; any increasing score does.
        label: [N] of 0, 1 or nan (not known: skipped).

    Returns:
        The area, or nan unless both classes are present.
    """
    area, _, _ = _auc_per_group(probability, label, np.zeros(np.shape(label), dtype=np.int8))
    return float(area[0]) if len(area) else math.nan


def auc_by_stratum(probability: npt.ArrayLike, label: npt.ArrayLike, stratum: npt.ArrayLike) -> dict[int, float]:
    """Exact AUC per sampling stratum.

    A stratum that holds both classes is judged on its own rows. A stratum of negatives only (a way of drawing
    negatives) is judged against the positives of all strata. A stratum of positives only has no AUC and is left out.

    Args:
        probability: [N].
        label: [N] of 0, 1 or nan (not known: skipped).
        stratum: [N] integers.
    """
    scores, labels, strata = (np.asarray(values) for values in (probability, label, stratum))
    areas: dict[int, float] = {}
    for value in np.unique(strata):
        rows = strata == value
        if not (labels[rows] == 1).any():
            rows = rows | (labels == 1)
        area = auc(scores[rows], labels[rows])
        if not math.isnan(area):
            areas[int(value)] = area
    return areas


def grouped_auc(probability: npt.ArrayLike, label: npt.ArrayLike, user: npt.ArrayLike) -> float:
    """AUC within each user, averaged over users with both classes, each weighted by its rows (Zhu et al., 2017).

    Args:
        probability: [N].
        label: [N] of 0, 1 or nan (not known: skipped).
        user: [N] integer ids.

    Returns:
        The mean, or nan if no user has both classes.
    """
    area, rows, _ = _auc_per_group(probability, label, user)
    defined = ~np.isnan(area)
    return float(np.average(area[defined], weights=rows[defined])) if defined.any() else math.nan


def _auc_per_group(
    probability: npt.ArrayLike, label: npt.ArrayLike, group: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC float64 [G] (nan for one class only), rows int64 [G] and ids [G] of every group, by average ranks."""
    labels = np.asarray(label, dtype=np.float64)
    known = ~np.isnan(labels)
    labels, scores = labels[known], np.asarray(probability)[known]
    ids, code = np.unique(np.asarray(group)[known], return_inverse=True)
    if not len(ids):
        return np.empty(0), np.empty(0, dtype=np.int64), ids
    order = np.lexsort((scores, code))
    labels, scores, code = labels[order], scores[order], code[order]
    rows = np.bincount(code, minlength=len(ids))
    begin = np.cumsum(rows) - rows
    tie_starts = np.flatnonzero(np.r_[True, (scores[1:] != scores[:-1]) | (code[1:] != code[:-1])])
    tie_sizes = np.diff(np.r_[tie_starts, len(labels)])
    rank = np.repeat(tie_starts + (tie_sizes + 1) / 2.0, tie_sizes) - begin[code]
    positives = np.bincount(code, weights=labels, minlength=len(ids))
    negatives = rows - positives
    wins = np.bincount(code, weights=rank * labels, minlength=len(ids)) - positives * (positives + 1) / 2.0
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.where((positives > 0) & (negatives > 0), wins / (positives * negatives), np.nan)
    return area, rows, ids


def bin_of(probability: npt.ArrayLike) -> np.ndarray:
    """Bin of each probability, int64 [N] in [0, BINS): logarithmic, 128 per factor of two, from 1e-7 to 1.

    Reads the leading bits of the float32 itself, which for positive numbers are in the order of the numbers.
    """
    clipped = np.clip(np.asarray(probability, dtype=np.float32), np.float32(1e-7), np.float32(1.0))
    return (clipped.view(np.uint32) >> _SHIFT).astype(np.int64) - _LOWEST


class BinnedAuc:
    """Streaming AUC from a histogram of probabilities per class, int64 [2, BINS].

    Rows that share a bin (probabilities within 0.8 % of each other) count as ties. :meth:`error_bound` says how far
    the exact value can be.
    """

    def __init__(self, counts: np.ndarray | None = None) -> None:
        self.counts = np.zeros((2, BINS), dtype=np.int64) if counts is None else counts

    def update(self, probability: npt.ArrayLike, label: npt.ArrayLike) -> Self:
        """Add rows; see :func:`auc` for the arguments."""
        labels = np.asarray(label, dtype=np.float64)
        known = ~np.isnan(labels)
        cell = bin_of(np.asarray(probability)[known]) + labels[known].astype(np.int64) * BINS
        self.counts += np.bincount(cell, minlength=2 * BINS).reshape(2, BINS)
        return self

    def merge(self, other: Self) -> Self:
        """Add the rows of ``other``."""
        self.counts += other.counts
        return self

    def value(self) -> float:
        """AUC so far, ties within a bin counting one half; nan unless both classes are present."""
        negatives, positives = self.counts.astype(np.float64)
        pairs = positives.sum() * negatives.sum()
        if pairs == 0:
            return math.nan
        below = np.cumsum(negatives) - negatives
        return float(positives @ (below + negatives / 2.0) / pairs)

    def error_bound(self) -> float:
        """Largest possible distance to the exact AUC: half the share of (positive, negative) pairs within one bin."""
        negatives, positives = self.counts.astype(np.float64)
        pairs = positives.sum() * negatives.sum()
        return float(positives @ negatives / 2.0 / pairs) if pairs else math.nan
