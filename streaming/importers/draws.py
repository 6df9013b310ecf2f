"""Candidates that were on offer but not bought, drawn so that the sample's bias is known and reproducible."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BOUGHT, UNIFORM, POPULAR = 0, 1, 2

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One request's candidates in random order.

    Attributes:
        position: Positions in the pool, all different [n].
        stratum: BOUGHT, UNIFORM or POPULAR [n].
        weight: How many of the pool's products each one stands for [n]: 1 where bought, the unbought products per
            uniform draw, 0 for popularity draws. A request's weights sum to the size of its pool.
    """

    position: Int
    stratum: Int
    weight: npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Pool:
    """What was on offer, and how candidates are drawn from it.

    Args:
        popularity: Of each product of the pool [N]; a popularity draw never takes one with 0.
        draws: Uniform draws from what was not bought, and as many popularity draws from what then remains.
    """

    popularity: npt.NDArray[np.float64]
    draws: int = 10
    _popular: Int = field(init=False, repr=False)
    _mean: npt.NDArray[np.float64] = field(init=False, repr=False)
    _taken: npt.NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._popular = np.flatnonzero(self.popularity > 0)
        self._mean = 1.0 / self.popularity[self._popular]
        self._taken = np.zeros(len(self.popularity), dtype=bool)

    def draw(self, random: np.random.Generator, bought: Int) -> Drawn:
        """Draw the candidates of one request.

        Args:
            bought: Positions in the pool of what was bought, all different.
        """
        size = len(self.popularity)
        self._taken[bought] = True
        # In a random sequence of draws + len(bought) products at least `draws` were not bought, if that many exist.
        sequence = random.choice(size, min(size, self.draws + len(bought)), replace=False)
        uniform = sequence[~self._taken[sequence]][: self.draws]
        self._taken[uniform] = True
        popular = self._draw_popular(random)
        self._taken[bought] = False
        self._taken[uniform] = False

        position = np.concatenate([bought, uniform, popular])
        stratum = np.repeat((BOUGHT, UNIFORM, POPULAR), (len(bought), len(uniform), len(popular)))
        share = (size - len(bought)) / max(1, len(uniform))
        weight = np.repeat((1.0, share, 0.0), (len(bought), len(uniform), len(popular)))
        order = random.permutation(len(position))
        return Drawn(position=position[order], stratum=stratum[order], weight=weight[order])

    def _draw_popular(self, random: np.random.Generator) -> Int:
        # Exponential races: the first `draws` arrivals at rates p are a sample without replacement proportional to p.
        arrival = random.standard_exponential(len(self._popular)) * self._mean
        arrival[self._taken[self._popular]] = np.inf
        if len(arrival) > self.draws:
            first = np.argpartition(arrival, self.draws)[: self.draws]
        else:
            first = np.arange(len(arrival))
        return self._popular[first[np.isfinite(arrival[first])]]
