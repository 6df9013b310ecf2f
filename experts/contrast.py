"""Which two values of one attribute differ most in how often a label is 1: an effect size with a confidence bound.

Shape legend: V values, G groups of users, M pairs.
"""

import itertools
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_LEAST_GROUPS = 16
"""Fewer say too little about how far they scatter."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One pair of values, ``low`` with the lower rate.

    Attributes:
        low, high: indices of the values.
        effect: Cohen's h, ``2 asin sqrt(rate of high) - 2 asin sqrt(rate of low)``; 0.2 is small, 0.5 medium.
        error: its standard error, by leaving out one group of users at a time.
        degrees: of freedom of that error.
    """

    low: int
    high: int
    effect: float
    error: float
    degrees: int

    def bound(self, confidence: float, comparisons: int) -> float:
        """What the effect exceeds with that confidence, were it the largest of so many that were looked at."""
        tail = (1.0 - confidence) / (2 * max(comparisons, 1))
        return self.effect - student_quantile(tail, self.degrees) * self.error


def contrasts(sums_VG2: np.ndarray, *, least_rows: float, least_positives: float) -> list[Contrast]:
    """All pairs of values with enough support on both sides, in the order of their indices.

    Args:
        sums_VG2: rows and positives, float64.
        least_rows: of either side.
        least_positives: of either side, and as many negatives.
    """
    total_V2 = sums_VG2.sum(axis=1)
    rows_V, positives_V = total_V2.T
    present_VG = sums_VG2[..., 0] > 0
    enough_V = (rows_V >= least_rows) & (np.minimum(positives_V, rows_V - positives_V) >= least_positives)
    enough_V &= present_VG.sum(axis=1) >= _LEAST_GROUPS
    effects = []
    angle_V = _angle(total_V2)
    # Delete-one-group jackknife: what the angle would be without each group of users.
    without_VG = _angle(total_V2[:, None] - sums_VG2)
    for one, other in itertools.combinations(np.flatnonzero(enough_V).tolist(), 2):
        low, high = (one, other) if angle_V[one] <= angle_V[other] else (other, one)
        used_G = present_VG[low] | present_VG[high]
        count = int(used_G.sum())
        left_out_G = (without_VG[high] - without_VG[low])[used_G]
        error = float(np.sqrt((count - 1) / count * np.square(left_out_G - left_out_G.mean()).sum()))
        degrees = int(min(present_VG[low].sum(), present_VG[high].sum())) - 1
        effect = float(angle_V[high] - angle_V[low])
        effects.append(Contrast(low=low, high=high, effect=effect, error=error, degrees=degrees))
    return effects


def student_quantile(tail: float, degrees: int) -> float:
    """Upper quantile of Student's t with so many degrees of freedom, from the normal's (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(1.0 - tail)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _angle(sums: np.ndarray) -> np.ndarray:
    rows, positives = sums[..., 0], sums[..., 1]
    rate = np.divide(positives, rows, out=np.zeros_like(rows), where=rows > 0)
    return 2.0 * np.arcsin(np.sqrt(np.clip(rate, 0.0, 1.0)))
