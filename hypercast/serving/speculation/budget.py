"""How much may be computed, and what of it: the greatest expected number of pairs that will be asked for.

The unit of cost is the scoring of one candidate. Scoring a user's pairs also costs one encoding of the user's history,
whatever their number, and so the pairs of a user who is there already are cheaper than those of another.

Shape legend: N pairs.
"""

import numpy as np
import numpy.typing as npt
import pydantic

from hypercast.serving.speculation.asked_log import AskedLog, Int
from streaming.config import Config as BaseConfig

Float = npt.NDArray[np.float64]


class Budget(BaseConfig):
    """What one round of speculation may cost. Attributes:

    share: of what it would cost to score live whatever is asked for until the next round, as far as the past tells.
    pairs: cost of a round, in candidates; used instead of ``share`` if given.
    encoding: cost of encoding one user's history, in candidates; 0 counts scored pairs alone.
    """

    share: float = pydantic.Field(default=1.0, ge=0)
    pairs: int | None = pydantic.Field(default=None, ge=0)
    encoding: float = pydantic.Field(default=0.0, ge=0)

    def cost(self, asked: AskedLog, *, spans: int) -> float:
        """What a round may cost, given what was asked for in the ``spans`` rounds before it."""
        if self.pairs is not None:
            return float(self.pairs)
        return self.share * (len(asked.item) + self.encoding * len(asked.time)) / spans


class Plan:
    """Pairs in the order in which they are worth computing, best first, by expected hits for each unit of cost.

    A user's likeliest pairs come in together, as many as share the cost of the encoding best; further ones for their
    own chance. With ``encoding`` 0 that is the order of chances. Of equally good pairs the earlier user's come first,
    and of that user's the earlier.

    Args:
        user: int64 ``[N]``.
        chance: float64 ``[N]``.
        encoding: as in :class:`Budget`.
    """

    def __init__(self, user: Int, chance: Float, *, encoding: float = 0.0) -> None:
        self._ranked = self._spent = np.zeros(0, np.int64)
        if not len(user):
            return
        order = np.lexsort((np.arange(len(user)), -chance, user))
        of, p = user[order], chance[order]
        first = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
        size = np.diff(np.append(first, len(of)))
        place = np.arange(len(of)) - np.repeat(first, size)
        before = np.repeat(np.concatenate([[0.0], np.cumsum(p)])[first], size)
        worth = (np.cumsum(p) - before) / (encoding + place + 1)
        best = np.repeat(np.maximum.reduceat(worth, first), size)
        # Up to the best of a user's prefixes all are worth what it is; what comes later is worth its own chance.
        until = np.minimum.reduceat(np.where(worth == best, place, len(of)), first)
        worth = np.where(place <= np.repeat(until, size), best, p)
        ranked = np.lexsort((place, of, -worth))
        self._ranked, self._spent = order[ranked], np.cumsum(1.0 + encoding * (place[ranked] == 0))

    def within(self, cost: float) -> Int:
        """Indices of the pairs to compute for that cost, best first."""
        return self._ranked[: np.searchsorted(self._spent, cost, side="right")]
