"""The chance that a pair is asked for: logistic regression on what the past says about it.

Shape legend: N examples, F features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydantic

from streaming.config import Config as BaseConfig

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """A fitted regression: ``weight [F]`` of standardised features, ``bias``; the features' ``mean``, ``scale``."""

    weight: Float
    bias: float
    mean: Float
    scale: Float

    class Config(BaseConfig):
        """Attributes:

        spans: horizons before now whose outcomes are learned from.
        negatives: share of the pairs that were not asked for that is learned from, each counted so much the more.
        ridge: penalty on the squared weights, in examples.
        steps: of Newton's method.
        seed: of the choice of negatives.
        """

        spans: int = pydantic.Field(default=4, ge=1)
        negatives: float = pydantic.Field(default=0.05, gt=0, le=1)
        ridge: float = pydantic.Field(default=1.0, gt=0)
        steps: int = pydantic.Field(default=10, ge=1)
        seed: int = pydantic.Field(default=0, ge=0)

        def fit(self, feature_NF: npt.NDArray[np.float32], asked_N: npt.NDArray[np.bool_], weight_N: Float) -> "Ranker":
            """Learn from N examples, among them some that were asked for and some that were not."""
            mean, scale = feature_NF.mean(axis=0, dtype=np.float64), feature_NF.std(axis=0, dtype=np.float64) + 1e-6
            x_NG = np.concatenate([(feature_NF - mean) / scale, np.ones((len(feature_NF), 1))], axis=1)
            penalty = np.full(x_NG.shape[1], self.ridge)
            penalty[-1] = 0.0
            positive, total = weight_N[asked_N].sum(), weight_N.sum()
            solution = np.zeros(x_NG.shape[1])
            solution[-1] = np.log(positive / (total - positive))
            for _ in range(self.steps):
                chance_N = _sigmoid(x_NG @ solution)
                slope = x_NG.T @ (weight_N * (asked_N - chance_N)) - penalty * solution
                bend = (x_NG * (weight_N * chance_N * (1 - chance_N))[:, None]).T @ x_NG + np.diag(penalty)
                solution = solution + np.linalg.solve(bend, slope)
            return Ranker(weight=solution[:-1], bias=float(solution[-1]), mean=mean, scale=scale)

    def chance(self, feature_NF: npt.NDArray[np.float32]) -> Float:
        """The chance of each pair, float64 ``[N]``."""
        weight = self.weight / self.scale
        return _sigmoid(feature_NF @ weight + (self.bias - self.mean @ weight))


def _sigmoid(value: Float) -> Float:
    return 1.0 / (1.0 + np.exp(-np.clip(value, -30.0, 30.0)))
