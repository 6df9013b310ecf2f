"""Running statistics of what flows through a layer: batched Welford (LoKA, arXiv 2605.10886).

Shape legend: N rows, I features.
"""

import math

import torch
from torch import Tensor


class Moments:
    """Mean and variance of each of I features over all rows seen so far, in float64.

    Two parts of a stream are joined as Chan, Golub and LeVeque do (1979), so that the order of rows, and how they were
    cut into batches, changes rounding alone; there is no cancellation of large squares.

    Attributes:
        count: rows seen.
        mean_I: float64.
        deviation_I: float64, the sum of squared deviations from the mean.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean_I = torch.zeros(width, dtype=torch.float64)
        self.deviation_I = torch.zeros(width, dtype=torch.float64)

    def update(self, x_NI: Tensor) -> None:
        """Take in rows ``[N, I]`` of any float dtype."""
        if not len(x_NI):
            return
        x_NI = x_NI.detach().double()
        mean_I = x_NI.mean(0)  # two plain sums: var_mean takes ten times as long over rows
        self._join(len(x_NI), mean_I, (x_NI - mean_I).square_().sum(0))

    def merge(self, other: "Moments") -> None:
        """Take in all that ``other`` has seen."""
        if other.count:
            self._join(other.count, other.mean_I, other.deviation_I)

    def _join(self, count: int, mean_I: Tensor, deviation_I: Tensor) -> None:
        total = self.count + count
        apart_I = mean_I - self.mean_I
        self.mean_I = self.mean_I + apart_I * (count / total)
        self.deviation_I = self.deviation_I + deviation_I + apart_I.square() * (self.count * count / total)
        self.count = total

    @property
    def variance_I(self) -> Tensor:
        """Float64, of the rows seen; zeros before there are any."""
        return self.deviation_I / max(self.count, 1)

    @property
    def power_I(self) -> Tensor:
        """Float64, the mean square of each feature."""
        return self.mean_I.square() + self.variance_I

    def typical_largest(self) -> float:
        """The median of a row's largest magnitude, were its features independent Gaussians of these moments.

        Where ``t`` is that median, ``sum(log P(|x_i| <= t)) = -log 2``; found by bisection.
        """
        mean_I, spread_I = self.mean_I.abs(), self.variance_I.sqrt().clamp(min=1e-12) * math.sqrt(2)
        low, high = 0.0, float((mean_I + 6 * spread_I).max()) if len(mean_I) else 0.0
        for _ in range(40):
            middle = (low + high) / 2
            within_I = (torch.erf((middle - mean_I) / spread_I) + torch.erf((middle + mean_I) / spread_I)) / 2
            below = float(within_I.clamp(min=1e-300).log().sum()) < -math.log(2)
            low, high = (middle, high) if below else (low, middle)
        return high
