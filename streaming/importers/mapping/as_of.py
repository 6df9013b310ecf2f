"""Dense features of any (user, item, surface), as of just before a time (law L5), window after window.

The same kinds and fixed transforms as in :mod:`streaming.features`, for any item attributes: counts and popularities
``log1p``, recencies ``exp(-age / scale)`` with 0 for never. Only sums of what lies before a window are carried into it,
so that memory grows with the pairs of user and item or attribute, not with engagements.

====================== ==================================================================================
user_count             the user's past engagements, decayed by exp(-age / 4 weeks)
user_surface_count     those by the candidate's surface, likewise
user_X_count           those with the item, or with items of the same attribute X
user_recency, ...      the time since the last of each
X_popularity           everybody's past engagements with the item or with items of the same X, decayed alike
surface_item_popularity  those with the item by the candidate's surface
====================== ==================================================================================

Legend: E engagements, Q queries, K keys (what is counted by), F features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streaming.features import POPULARITY_SCALE, Found, derived

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Events:
    """Engagements or queries, as parallel int64 arrays: rows of users and items from 0, surfaces or -1, times."""

    user: Int
    item: Int
    surface: Int
    time: Int


class AsOfFeatures:
    """Features of one window after another.

    Args:
        attributes: by name, the number of each item's value, from 0, -1 = unknown; int64 [items] each.
        surfaces: how many there are.

    >>> features = AsOfFeatures(items=100, attributes={"genre": genre}, surfaces=2)
    >>> dense = [features.window(engaged, asked) for engaged, asked in windows]  # float32 [Q, F] each
    """

    def __init__(self, *, items: int, attributes: dict[str, Int], surfaces: int) -> None:
        self._groups = {"item": np.arange(items), **attributes}
        self._columns = list(derived(list(attributes)).values())
        self._surfaces = surfaces
        self._user, self._user_surface, self._surface_item = _Past(), _Past(), _Past()
        self._by_user = {name: _Past() for name in self._groups}
        self._by_all = {name: _Past() for name in self._groups}

    @staticmethod
    def names(attributes: list[str]) -> list[str]:
        """Names of the features, in their order."""
        return list(derived(attributes))

    def window(self, engaged: Events, asked: Events) -> npt.NDArray[np.float32]:
        """Features of the queries, float32 [Q, F]; then the window's engagements are part of the past.

        A query at a time sees the window's engagements before that time, strictly, and all earlier windows'.
        """
        found: dict[tuple[str, str | None], Found] = {}
        for group, past, of in ((None, self._user, _by_user), ("surface", self._user_surface, self._by_surface)):
            found["user", group] = past.window(of(engaged), engaged.time, of(asked), asked.time)
        for name, code in self._groups.items():
            size = int(code.max(initial=-1)) + 1
            keys = [_pair(each.user, code[each.item], size) for each in (engaged, asked)]
            found["user", name] = self._by_user[name].window(keys[0], engaged.time, keys[1], asked.time)
        for name, code in self._groups.items():
            past = self._by_all[name]
            found["all", name] = past.window(code[engaged.item], engaged.time, code[asked.item], asked.time)
        keys = [_pair(each.item, each.surface, self._surfaces) for each in (engaged, asked)]
        found["all", "surface_item"] = self._surface_item.window(keys[0], engaged.time, keys[1], asked.time)
        columns = [how.of(found[how.whose, how.group], asked.time) for how in self._columns]
        return np.stack(columns, axis=1).astype(np.float32)

    def _by_surface(self, events: Events) -> Int:
        return _pair(events.user, events.surface, self._surfaces)


def _by_user(events: Events) -> Int:
    return events.user


class _Past:
    """For each key: how many engagements there were, when the last was, and their decayed sum at that time."""

    def __init__(self) -> None:
        self._key = np.zeros(0, np.int64)
        self._count, self._last = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._sum = np.zeros(0)

    def window(self, key_E: Int, time_E: Int, key_Q: Int, time_Q: Int) -> Found:
        """Answer the queries, then take in the window's engagements. A negative key has no past and leaves none."""
        keep = key_E >= 0
        key_E, time_E = key_E[keep], time_E[keep]
        # The past of each key concerned is one more event: it lies before the window, with its count and its sum.
        keys = np.unique(np.concatenate([key_E, key_Q[key_Q >= 0]]))
        at = np.searchsorted(self._key, keys)
        some = np.flatnonzero(np.append(self._key, -1)[at] == keys)
        at = at[some]
        key = np.concatenate([some, np.searchsorted(keys, key_E)])
        time = np.concatenate([self._last[at], time_E])
        count = np.concatenate([self._count[at], np.ones(len(key_E), np.int64)])
        weight = np.concatenate([self._sum[at], np.ones(len(key_E))])
        order = np.lexsort((time, key))
        key, time = key[order], time[order]
        first = np.searchsorted(key, np.arange(len(keys) + 1))
        total = np.concatenate([[0], np.cumsum(count[order])])
        count = total[1:] - total[first[key]]
        weight = _decayed_sums(weight[order], time, np.arange(len(key)) - first[key])

        known = key_Q >= 0
        of = np.where(known, np.searchsorted(keys, key_Q), len(keys))
        begin = np.append(first, len(key))[of]
        moments, rank = np.unique(time, return_inverse=True)
        asked = of * (len(moments) + 1) + np.searchsorted(moments, time_Q, side="left")
        end = np.searchsorted(key * (len(moments) + 1) + rank, asked, side="left")
        any_ = known & (end > begin)
        last = np.where(any_, end - 1, len(key))
        since = np.where(any_, np.append(time, 0)[last] - time_Q, 0)
        found = Found(
            count=np.append(count, 0)[last],
            last=np.append(time, 0)[last],
            decayed=np.append(weight, 0.0)[last] * np.exp(since / POPULARITY_SCALE),
        )
        end_of = first[1:][np.diff(first) > 0] - 1
        self._replace(keys[key[end_of]], count[end_of], time[end_of], weight[end_of])
        return found

    def _replace(self, key: Int, count: Int, last: Int, total: Float) -> None:
        """Set the past of ``key``, ascending."""
        at = np.searchsorted(self._key, key)
        old = np.append(self._key, -1)[at] == key
        self._count[at[old]], self._last[at[old]], self._sum[at[old]] = count[old], last[old], total[old]
        new, at = ~old, at[~old]
        self._key = np.insert(self._key, at, key[new])
        self._count, self._last = np.insert(self._count, at, count[new]), np.insert(self._last, at, last[new])
        self._sum = np.insert(self._sum, at, total[new])


def _decayed_sums(weight: Float, time: Int, position: Int) -> Float:
    """For each event: the sum over its key's events up to it of their weight, decayed to its time.

    ``position`` counts a key's events from 0. The scan doubles its reach at each step and adds nothing but a key's own
    earlier events: what comes later cannot move so much as a rounding error.
    """
    sums = weight.copy()
    reach = 1
    while reach <= position.max(initial=0):
        later = np.flatnonzero(position >= reach)
        earlier = later - reach
        sums[later] += sums[earlier] * np.exp((time[earlier] - time[later]) / POPULARITY_SCALE)
        reach *= 2
    return sums


def _pair(first: Int, second: Int, size: int) -> Int:
    return np.where(second >= 0, first * size + second, -1)
