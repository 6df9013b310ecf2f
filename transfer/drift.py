r"""How far embeddings have moved between two snapshots that scored the same probe.

**Centroid**: the distance between the two means, in units of the earlier one's spread (root mean squared distance from
its mean).

**MMD**: the squared maximum mean discrepancy under a Gaussian kernel
:math:`k(a, b) = \exp(-\|a - b\|^2 / 2 \sigma^2)`, by the unbiased estimator for paired samples (Gretton et al. 2012,
"A kernel two-sample test", JMLR 13, equation 4),

.. math:: \widehat{MMD}^2 = \frac{1}{M} \sum_{i, j} h_{ij}, \qquad
          h_{ij} = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

over the :math:`M` pairs i, j of candidates of different requests: those of one request share a history and are not
independent. It lies between 0 and 2, and a little below 0 by chance. The bandwidth :math:`\sigma` is the median
distance within the first snapshot that scored the probe, and the same ever after, so that values are comparable.

**Null**: were both snapshots' vectors of the same distribution, then exchanging x and y of a request would change
nothing. It turns the sign of every :math:`h_{ij}` with one foot in that request, so that random signs by request give
the distribution of the estimate under that assumption; its 99 % quantile is what an MMD has to exceed to mean anything.

Shape legend: N candidates, D width, R requests, P permutations.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from streaming.config import Config as BaseConfig

Floats = NDArray[np.floating[Any]]
PERMUTATIONS = 400
QUANTILE = 0.99


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Attributes: ``centroid`` in spreads, ``mmd`` (squared), ``mmd_null`` that it has to exceed, and ``alarm``."""

    centroid: float
    mmd: float
    mmd_null: float
    alarm: bool


class DriftMeter:
    """Measures drift on a probe, and tells when it is too much."""

    class Config(BaseConfig):
        """Attributes:

        requests: of the probe, at most.
        candidates: of the probe in all, at most.
        seed: of the choice of the probe, and of the signs.
        centroid_alarm: distance of centroids, in spreads, above which there is an alarm.
        mmd_alarm: squared MMD above which there is one, if it exceeds its null as well.
        """

        requests: int = pydantic.Field(default=64, ge=2)
        candidates: int = pydantic.Field(default=512, ge=2)
        seed: int = pydantic.Field(default=0, ge=0)
        centroid_alarm: float = pydantic.Field(default=1.0, gt=0)
        mmd_alarm: float = pydantic.Field(default=0.25, gt=0)

        def build(self) -> "DriftMeter":
            return DriftMeter(config=self)

    def __init__(self, *, config: Config) -> None:
        self.config = config

    def measure(self, before_ND: Floats, after_ND: Floats, *, group_N: NDArray[np.int64], bandwidth: float) -> Drift:
        """Drift from ``before_ND`` to ``after_ND``, two snapshots' vectors of the same N candidates.

        Args:
            before_ND, after_ND: float, finite.
            group_N: the candidates' requests.
            bandwidth: of the kernel, see :func:`median_distance`.
        """
        distance = centroid(before_ND, after_ND)
        value, null = mmd(before_ND, after_ND, group_N=group_N, bandwidth=bandwidth, seed=self.config.seed)
        moved = value > self.config.mmd_alarm and value > null
        return Drift(centroid=distance, mmd=value, mmd_null=null, alarm=moved or distance > self.config.centroid_alarm)


def centroid(before_ND: Floats, after_ND: Floats) -> float:
    """Distance of the means in units of the first one's spread; nan if it has none (all its vectors are equal)."""
    before_ND, after_ND = np.asarray(before_ND, np.float64), np.asarray(after_ND, np.float64)
    moved_D = after_ND.mean(axis=0) - before_ND.mean(axis=0)
    spread = float(((before_ND - before_ND.mean(axis=0)) ** 2).sum(axis=1).mean() ** 0.5)
    return float((moved_D**2).sum() ** 0.5) / spread if spread else float("nan")


def mmd(
    before_ND: Floats, after_ND: Floats, *, group_N: NDArray[np.int64], bandwidth: float, seed: int
) -> tuple[float, float]:
    """The squared MMD and the 99 % quantile of its null (see the module); nan with fewer than two requests."""
    x_ND, y_ND = np.asarray(before_ND, np.float64), np.asarray(after_ND, np.float64)
    cross_NN = _kernel(x_ND, y_ND, bandwidth)
    h_NN = _kernel(x_ND, x_ND, bandwidth) + _kernel(y_ND, y_ND, bandwidth) - cross_NN - cross_NN.T
    first_R, request_N = np.unique(group_N, return_inverse=True)
    order = np.argsort(request_N, kind="stable")
    size_R = np.bincount(request_N, minlength=len(first_R))
    starts_R = np.cumsum(size_R) - size_R
    h_RR = np.add.reduceat(np.add.reduceat(h_NN[np.ix_(order, order)], starts_R, axis=0), starts_R, axis=1)
    np.fill_diagonal(h_RR, 0)
    pairs = float(size_R.sum() ** 2 - (size_R**2).sum())
    if not pairs:
        return float("nan"), float("nan")
    sign_PR = np.random.default_rng(seed).choice([-1.0, 1.0], (PERMUTATIONS, len(size_R)))
    null_P = (np.einsum("pr,rs->ps", sign_PR, h_RR) * sign_PR).sum(axis=1) / pairs
    return float(h_RR.sum() / pairs), float(np.quantile(null_P, QUANTILE))


def median_distance(vector_ND: Floats) -> float:
    """Median distance of two of N vectors, the usual bandwidth (Gretton et al. 2012, section 8); 1 if it is 0."""
    vector_ND = np.asarray(vector_ND, np.float64)
    squared_NN = _squared_distance(vector_ND, vector_ND)
    median = float(np.median(squared_NN[np.triu_indices(len(squared_NN), k=1)])) if len(vector_ND) > 1 else 0.0
    return median**0.5 or 1.0


def _kernel(left_ND: Floats, right_ND: Floats, bandwidth: float) -> Floats:
    return np.exp(_squared_distance(left_ND, right_ND) / (-2 * bandwidth**2))


def _squared_distance(left_ND: Floats, right_ND: Floats) -> Floats:
    """[N, N]; sums have one order, whatever the number of threads, so that results have the same bits everywhere."""
    product_NN = np.einsum("id,jd->ij", left_ND, right_ND)
    norms_NN = (left_ND**2).sum(axis=1)[:, None] + (right_ND**2).sum(axis=1)
    return np.maximum(norms_NN - 2 * product_NN, 0)
