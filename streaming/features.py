"""Dense features of a (request, candidate), as of just before the request (law L5).

A request at time t reads only engagements with time < t, strictly: what is bought in one basket shares one time and
must not see itself. Values go through fixed transforms, never fitted ones: counts and popularities ``log1p``, recencies
``exp(-days / 30)`` with 0 for never, and ``exp(-days / 7)`` where anything that the user did counts.

===================== =====================================================================================
user_count            the user's past engagements of any kind, decayed by exp(-age / 4 weeks)
user_surface_count    those that came by the candidate's surface, likewise
user_X_count          the user's past engagements with the item, or with items of its category, type, department
user_recency, ...     the time since the last of them
X_popularity          everybody's past engagements, decayed by exp(-age / 4 weeks)
surface_item_popularity  the same of an item by one surface (importers by mapping)
stores_promoting      stores that promote the item in this window, known from the window's start
===================== =====================================================================================

:func:`derived` says of every column but the last what it is made of; whoever makes features, of a whole log
(:class:`DenseFeatures`), window by window (:mod:`streaming.importers.mapping.as_of`) or as events come
(:mod:`hypercast.serving.features.dense`), finds the sums in a way of its own and the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

DENSE = (
    "user_count",
    "user_recency",
    "user_surface_count",
    "user_surface_recency",
    "user_item_count",
    "user_item_recency",
    "user_category_count",
    "user_category_recency",
    "user_type_count",
    "user_type_recency",
    "user_department_count",
    "item_popularity",
    "category_popularity",
    "type_popularity",
    "stores_promoting",
)

_ATTRIBUTES = ("category", "type", "department")

DAY = 86_400_000_000  # microseconds
RECENCY_SCALE = 30 * DAY
ACTIVITY_SCALE = 7 * DAY
POPULARITY_SCALE = 28 * DAY

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies strictly before each of Q queries.

    Attributes:
        count: how many engagements, int64 [Q].
        last: time of the last one, int64 microseconds [Q]; no meaning where there are none.
        decayed: sum of exp(-age / 4 weeks), float64 [Q]; None where nobody asks for it.
    """

    count: Int
    last: Int
    decayed: Float | None = None


Value = Literal["count", "decayed", "recency"]


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """What a column of features is made of: engagements of whom, with what, and what is said of them.

    Attributes:
        whose: ``user``: the request's user's; ``all``: everybody's.
        group: ``item`` or the attribute of items that the engagements share with the candidate; ``surface``: those by
            its surface; ``surface_item``: those with it by its surface; None: all of them.
        value: how many there are, their decayed sum, or how recent the last one is.
        scale: of a recency, microseconds.
    """

    whose: Literal["user", "all"]
    group: str | None
    value: Value
    scale: int = 0

    def of(self, found: Found, time: Int) -> Float:
        """The column for queries at ``time``, microseconds int64 [Q]."""
        if self.value == "recency":
            return np.where(found.count > 0, np.exp((found.last - time) / self.scale), 0.0)
        if self.value == "count":
            return np.log1p(found.count)
        if found.decayed is None:
            raise ValueError("found without decayed sums")
        return np.log1p(found.decayed)


def derived(attributes: Sequence[str]) -> dict[str, Derivation]:
    """Every column that can be made of engagements, for items with ``attributes``, by name and in order."""
    columns = {}
    for name, group in (("user", None), ("user_surface", "surface")):
        columns[f"{name}_count"] = Derivation(whose="user", group=group, value="decayed")
        columns[f"{name}_recency"] = Derivation(whose="user", group=group, value="recency", scale=ACTIVITY_SCALE)
    groups = ["item", *attributes]
    for group in groups:
        columns[f"user_{group}_count"] = Derivation(whose="user", group=group, value="count")
        columns[f"user_{group}_recency"] = Derivation(whose="user", group=group, value="recency", scale=RECENCY_SCALE)
    for group in [*groups, "surface_item"]:
        columns[f"{group}_popularity"] = Derivation(whose="all", group=group, value="decayed")
    return columns


@dataclass(frozen=True, kw_only=True)
class Engagements:
    """Engagements as parallel arrays, in any order. ``user`` and ``item`` are codes counted from 0, ``surface`` is -1
    for none.
    """

    user: Int
    item: Int
    surface: Int
    time: Int


@dataclass(frozen=True, kw_only=True)
class ItemGroups:
    """Code of each item's category, type and department, indexed by item code; -1 = unknown."""

    category: Int
    type: Int
    department: Int


class DenseFeatures:
    """All of :data:`DENSE` for any (user, item, time), from one log of engagements.

    >>> features = DenseFeatures(engagements=engagements, groups=groups)
    >>> dense = features.at(user=user, item=item, surface=surface, time=time, stores_promoting=stores)
    """

    def __init__(self, *, engagements: Engagements, groups: ItemGroups) -> None:
        self._groups = groups
        self._times, rank = np.unique(engagements.time, return_inverse=True)
        user, item = engagements.user, engagements.item
        category, kind, department = groups.category, groups.type, groups.department
        self._by_user = {
            "item": _Past(_pair(user, item, len(category)), rank, engagements.time),
            "category": _Past(_pair(user, category[item], _size(category)), rank, engagements.time),
            "type": _Past(_pair(user, kind[item], _size(kind)), rank, engagements.time),
            "department": _Past(_pair(user, department[item], _size(department)), rank, engagements.time),
        }
        self._surfaces = _size(engagements.surface)
        self._activity = {
            "user": _Past(user, rank, engagements.time, decay=POPULARITY_SCALE),
            "user_surface": _Past(
                _pair(user, engagements.surface, self._surfaces), rank, engagements.time, decay=POPULARITY_SCALE
            ),
        }
        self._by_all = {
            "item": _Past(item, rank, engagements.time, decay=POPULARITY_SCALE),
            "category": _Past(category[item], rank, engagements.time, decay=POPULARITY_SCALE),
            "type": _Past(kind[item], rank, engagements.time, decay=POPULARITY_SCALE),
        }

    def at(self, *, user: Int, item: Int, surface: Int, time: Int, stores_promoting: Int) -> npt.NDArray[np.float32]:
        """Features just before ``time``.

        Args:
            user: Codes [C]; a code that never engaged has no past.
            item: Codes [C].
            surface: On which each is a candidate [C].
            time: Microseconds UTC [C].
            stores_promoting: Number of stores that promote the item in the window [C].

        Returns:
            [C, len(DENSE)], columns as in :data:`DENSE`.
        """
        rank = np.searchsorted(self._times, time, side="left")
        groups = self._groups
        of_item = {
            "item": (item, len(groups.category)),
            "category": (groups.category[item], _size(groups.category)),
            "type": (groups.type[item], _size(groups.type)),
            "department": (groups.department[item], _size(groups.department)),
        }
        # A surface on which nobody engaged yet has no number of its own: no user has a past there.
        own = _pair(user, np.where(surface < self._surfaces, surface, -1), self._surfaces)
        found: dict[tuple[str, str | None], Found] = {}
        for group, past, asked in (
            (None, self._activity["user"], user),
            ("surface", self._activity["user_surface"], own),
            *((name, past, _pair(user, *of_item[name])) for name, past in self._by_user.items()),
        ):
            found["user", group] = past.before(asked, rank, time)
        for name, past in self._by_all.items():
            found["all", name] = past.before(of_item[name][0], rank, time)
        columns: dict[str, Float] = {"stores_promoting": np.log1p(stores_promoting)}
        for name, how in derived(list(_ATTRIBUTES)).items():
            if name in DENSE:
                columns[name] = how.of(found[how.whose, how.group], time)
        return np.stack([columns[name].astype(np.float32) for name in DENSE], axis=1)


def codes(column: pa.ChunkedArray) -> Int:
    """Codes from 0 of a categorical column's values, in the order of first appearance; -1 = null."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


class _Past:
    """Engagements sorted by (group, time): one binary search finds those of a group before a time.

    Args:
        group: [E], -1 = in no group.
        rank: Rank of each engagement's time among all distinct times [E].
        time: [E].
        decay: Where given, sums of exp(-age / decay) are prepared as well.
    """

    def __init__(self, group: Int, rank: Int, time: Int, *, decay: int | None = None) -> None:
        member = group >= 0
        found, code = np.unique(group[member], return_inverse=True)
        self._ranks = int(rank.max(initial=-1)) + 2
        key = code * self._ranks + rank[member]
        order = np.argsort(key, kind="stable")
        self._key, self._time = key[order], time[member][order]
        # One more group than there are, empty and larger than any, for groups that never occurred.
        self._group = np.append(found, np.iinfo(np.int64).max)
        self._first = np.append(np.searchsorted(code[order], np.arange(len(found))), len(key))
        self._decay = decay
        if decay is not None:
            self._sums = _decayed_sums(self._time, np.arange(len(key)) - self._first[code[order]], decay)

    def _span(self, group: Int, rank: Int) -> tuple[Int, Int]:
        """[first, end) of each group's engagements with a lower rank; empty where there are none."""
        code = np.searchsorted(self._group, group)
        first = self._first[code]
        end = np.searchsorted(self._key, code * self._ranks + rank, side="left")
        return first, np.where(self._group[code] == group, end, first)

    def before(self, group: Int, rank: Int, time: Int) -> Found:
        """What each group's engagements before ``rank``, which is that of ``time``, come to [Q]."""
        first, end = self._span(group, rank)
        last = np.append(self._time, 0)[np.where(end > first, end - 1, len(self._time))]
        return Found(count=end - first, last=last, decayed=self._decayed_to(first, end, time))

    def _decayed_to(self, first: Int, end: Int, time: Int) -> Float | None:
        """Sum over engagements [first, end) of exp(-age / decay) at ``time`` [Q]; None if built without decay."""
        if self._decay is None:
            return None
        some = np.flatnonzero(end > first)
        last = end[some] - 1
        sums = np.zeros(len(first))
        sums[some] = self._sums[last] * np.exp((self._time[last] - time[some]) / self._decay)
        return sums


def _decayed_sums(time: Int, position: Int, decay: int) -> Float:
    """For each engagement: sum of exp(-age / decay) over its group's engagements up to and including it.

    A scan that doubles its reach at each step. Unlike differences of one long prefix sum it adds only positive terms of
    the same group's past, so neither another group's nor a later engagement can move so much as a rounding error.
    """
    sums = np.ones(len(time))
    reach = 1
    while reach <= position.max(initial=0):
        later = np.flatnonzero(position >= reach)
        earlier = later - reach
        sums[later] += sums[earlier] * np.exp((time[earlier] - time[later]) / decay)
        reach *= 2
    return sums


def _pair(user: Int, group: Int, size: int) -> Int:
    return np.where(group >= 0, user * size + group, -1)


def _size(group: Int) -> int:
    return int(group.max(initial=-1)) + 1
