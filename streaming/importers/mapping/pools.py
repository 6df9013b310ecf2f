"""What a surface had on offer when, and fair draws from it.

Legend: N items of one surface's catalogue, E engagements.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


class Catalogue:
    """What one surface has shown, in the order of (first time, item): a position, once given, stays.

    Attributes:
        item: [N].
    """

    def __init__(self) -> None:
        self.item: Int = np.zeros(0, np.int64)
        self._first: Int = np.zeros(0, np.int64)
        self._taken: Float = np.zeros(0)
        self._sorted: Int = np.zeros(0, np.int64)
        self._by_item: Int = np.zeros(0, np.int64)  # positions of the sorted items

    def add(self, item: Int, time: Int) -> None:
        """Rows of the next window, in any order."""
        order = np.lexsort((item, time))
        order = order[self.positions(item[order], len(self.item)) < 0]
        new = order[np.sort(np.unique(item[order], return_index=True)[1])]
        self.item = np.append(self.item, item[new])
        self._first = np.append(self._first, time[new])
        self._taken = np.append(self._taken, np.zeros(len(new)))
        self._by_item = np.argsort(self.item)
        self._sorted = self.item[self._by_item]

    def count(self, item: Int) -> None:
        """These were taken; pools of later windows know."""
        self._taken += np.bincount(self.positions(item, len(self.item)), minlength=len(self.item))

    def size_before(self, time: int) -> int:
        """How many had been shown strictly before ``time``: the first ones."""
        return int(np.searchsorted(self._first, time, side="left"))

    def positions(self, item: Int, size: int) -> Int:
        """Position of each item among the first ``size``, -1 for others."""
        if len(self.item) == 0:
            return np.full(len(item), -1)
        at = np.minimum(np.searchsorted(self._sorted, item), len(self._sorted) - 1)
        position = np.where(self._sorted[at] == item, self._by_item[at], -1)
        return np.where(position < size, position, -1)

    def pool(self, *, weighted: bool) -> "Pool":
        """To draw from, as of the current window."""
        return Pool(rate=1.0 + self._taken * float(weighted))


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Draws from the first items of a catalogue, without replacement, at rates ``rate`` [N]."""

    rate: Float
    _sums: Float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sums", np.cumsum(self.rate))

    def draw(self, random: np.random.Generator, *, size: int, taken: Int, draws: int) -> tuple[Int, Float]:
        """Positions below ``size`` that are not ``taken`` (sorted, distinct), and weights that sum to their number."""
        free = size - len(taken)
        if free == 0:
            return taken[:0], np.zeros(0)
        # All races as one: arrivals at the pool's total rate, each at an item with its share of it.
        total = self._sums[size - 1]
        arrival = np.cumsum(random.standard_exponential(2 * draws + 16)) / total
        position = np.searchsorted(self._sums[:size], random.random(len(arrival)) * total, side="right")
        position = np.minimum(position, size - 1)  # a product may round up to the total
        first = np.sort(np.unique(position, return_index=True)[1])
        first = first[~np.isin(position[first], taken)]
        position, last, arrival = position[first], arrival[-1], arrival[first]
        if len(position) <= draws:
            # Who has not arrived by now starts anew, for exponential times have no memory.
            waiting = np.setdiff1d(np.arange(size), np.concatenate([taken, position]), assume_unique=True)
            later = last + random.standard_exponential(len(waiting)) / self.rate[waiting]
            order = np.argsort(later, kind="stable")
            position, arrival = np.append(position, waiting[order]), np.append(arrival, later[order])
        threshold = arrival[draws] if len(arrival) > draws else np.inf
        position = position[:draws]
        weight = 1.0 / -np.expm1(-self.rate[position] * threshold)
        return position, weight * (free / weight.sum())


class Seen:
    """The first time at which each user engaged with each item, sorted by (user, time)."""

    def __init__(self) -> None:
        self._user = self._time = self._item = np.zeros(0, np.int64)

    def add(self, user: Int, item: Int, time: Int) -> None:
        user, item = np.append(self._user, user), np.append(self._item, item)
        time = np.append(self._time, time)
        by_pair = np.lexsort((time, item, user))
        again = (np.diff(user[by_pair]) == 0) & (np.diff(item[by_pair]) == 0)
        kept = by_pair[np.concatenate([[True], ~again])]
        kept = kept[np.lexsort((time[kept], user[kept]))]
        self._user, self._item, self._time = user[kept], item[kept], time[kept]

    def before(self, user: int, time: int) -> Int:
        """Items that the user engaged with strictly before ``time``, all different."""
        start, end = np.searchsorted(self._user, [user, user + 1])
        return self._item[start : start + np.searchsorted(self._time[start:end], time, side="left")]
