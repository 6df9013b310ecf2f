"""As-of dense features of one request, from what is in memory: the columns of :func:`streaming.features.derived`.

A user's own past is looked at as a whole, so a number is exact at any time and one that came late counts as if it had
not. Of what everybody does there are sums by item and attribute; engagements so recent that a question could still lie
before them are kept one by one beside the sums (law L1). Sums are of exp(-age / 4 weeks) towards a fixed moment, to
which every engagement adds a positive number, whenever it comes.

In float64 a number differs from an importer's by the order in which things were added, and so by at most one unit in
the last place once it is float32.

Shape legend: C candidates of one request, N engagements of its user, E engagements, V values of an attribute.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from streaming.catalogue import UNKNOWN, Catalogue
from streaming.features import POPULARITY_SCALE, Derivation, Found, derived
from streaming.history import EngagementLog, Events

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
BLOCK = 1 << 20
"""Engagements of the log that are summed at once."""


class Groups:
    """What engagements and candidates are counted by: of every item one number a group, -1 where it is in none.

    Attributes:
        code: by group, int64, indexed by row of the item catalogue; the last row is that of unlisted items.
        size: by group, how many numbers there are (V).
    """

    def __init__(self, *, items: Catalogue, attributes: Sequence[str]) -> None:
        rows = len(items.ids)
        self.code: dict[str, Int] = {"item": np.append(np.arange(rows), -1)}
        self.size = {"item": rows}
        for name in attributes:
            values, code = np.unique(items.code[:, items.features.index(name)], return_inverse=True)
            self.code[name] = np.where(values[code] == UNKNOWN, -1, code)
            self.size[name] = len(values)


class Popularity:
    """Everybody's engagements by every group, decayed.

    Args:
        groups: what they are counted by.
        surfaces: how many there are, for the group ``surface_item``.
        names: groups that are asked for.
        as_of: moment from which on questions are asked, microseconds.
        lateness: how far before the newest question and the newest engagement a question may still lie, microseconds.
        most: engagements that are kept one by one, at most; beyond that the oldest are summed sooner.
    """

    def __init__(
        self, *, groups: Groups, surfaces: int, names: Sequence[str], as_of: int, lateness: int, most: int
    ) -> None:
        self._groups = groups
        self._surfaces = surfaces
        self._sums = {name: np.zeros(self._size(name)) for name in names}
        self._towards = as_of
        self._lateness = lateness
        self._most = most
        self._recent = Events(*(np.zeros(0, dtype=np.int64) for _ in Events._fields))
        self._newest_event = self._newest_question = as_of
        self.settled = as_of
        """Questions before this cannot be answered any more."""

    @property
    def unsettled(self) -> int:
        """Engagements that are kept one by one."""
        return len(self._recent.time)

    def read(self, log: EngagementLog) -> None:
        """Sum what ``log`` holds from before ``as_of``."""
        for start in range(0, len(log.time), BLOCK):
            part = slice(start, start + BLOCK)
            events = Events(*(np.asarray(getattr(log, name)[part]) for name in Events._fields))
            self._sum(events, np.flatnonzero(events.time < self.settled))

    def add(self, events: Events) -> None:
        """Add engagements in any order; late ones count for every later question."""
        if len(events.time):
            columns = zip(self._recent, events, strict=True)
            self._recent = Events(*(np.concatenate(pair) for pair in columns))
            self._newest_event = max(self._newest_event, int(events.time.max()))
            self._settle()

    def asked_at(self, time: int) -> None:
        """A question is asked at ``time``."""
        self._newest_question = max(self._newest_question, time)

    def before(self, item: Int, surface: int, time: int, names: Sequence[str]) -> dict[str, Float]:
        """Decayed sums of what lies strictly before ``time``, by group, for the rows ``item`` [C] on ``surface``."""
        decay = np.exp((self._towards - time) / POPULARITY_SCALE)
        seen = np.flatnonzero(self._recent.time < time)
        weight = np.exp((self._recent.time[seen] - time) / POPULARITY_SCALE)
        found = {}
        for name in names:
            code_C = self._code(name, item, np.full(len(item), surface))
            sums = np.where(code_C >= 0, self._sums[name][code_C], 0.0) * decay
            if len(seen) and len(item):
                code_E = self._code(name, self._recent.item[seen], self._recent.surface[seen])
                places, inverse = np.unique(code_C, return_inverse=True)
                place_E = np.searchsorted(places, code_E).clip(max=len(places) - 1)
                same = (places[place_E] == code_E) & (code_E >= 0)
                sums += np.bincount(place_E[same], weights=weight[same], minlength=len(places))[inverse]
            found[name] = sums
        return found

    def _settle(self) -> None:
        """Sum what no question can lie before any more."""
        # Both must have passed: one wrong clock alone, of an event or of a question, settles nothing.
        until = max(self.settled, min(self._newest_event, self._newest_question) - self._lateness)
        time = self._recent.time
        if len(time) > self._most:
            until = max(until, int(np.partition(time, len(time) - self._most // 2)[len(time) - self._most // 2]))
        done = time < until
        if done.any():
            self._sum(self._recent, np.flatnonzero(done))
            self._recent = Events(*(column[~done] for column in self._recent))
        self.settled = until

    def _sum(self, events: Events, rows: Int) -> None:
        if not len(rows):
            return
        time = events.time[rows]
        if (ahead := int(time.max()) - self._towards) > POPULARITY_SCALE:
            for sums in self._sums.values():
                sums *= np.exp(-ahead / POPULARITY_SCALE)
            self._towards += ahead
        weight = np.exp((time - self._towards) / POPULARITY_SCALE)
        for name, sums in self._sums.items():
            code = self._code(name, events.item[rows], events.surface[rows])
            known = np.flatnonzero(code >= 0)
            if len(known) < len(sums) >> 4:
                np.add.at(sums, code[known], weight[known])
            else:
                sums += np.bincount(code[known], weights=weight[known], minlength=len(sums))

    def _code(self, name: str, item: Int, surface: Int) -> Int:
        if name != "surface_item":
            return self._groups.code[name][item]
        row = self._groups.code["item"][item]
        return np.where((row >= 0) & (surface >= 0), row * self._surfaces + surface, -1)

    def _size(self, name: str) -> int:
        return self._groups.size["item"] * self._surfaces if name == "surface_item" else self._groups.size[name]


class OwnPast:
    """What a user has done with each candidate and its kin. Not for two threads at once."""

    def __init__(self, *, groups: Groups, names: Sequence[str | None]) -> None:
        self._groups = groups
        self._names = names
        # By value, the first candidate that has it; all -1 between two calls, and always where there is no value.
        self._place = {name: np.full(groups.size[name] + 1, -1) for name in names if name not in (None, "surface")}

    def before(self, past: Events, item: Int, surface: int, time: int) -> dict[str | None, Found]:
        """By group, what ``past``, all of it before ``time``, comes to for the rows ``item`` [C] on ``surface``."""
        found: dict[str | None, Found] = {}
        age = np.exp((past.time - time) / POPULARITY_SCALE) if {None, "surface"} & {*self._names} else None
        for name in self._names:
            if age is not None and name is None:
                found[name] = _alike(past.time, age, len(item))
            elif age is not None and name == "surface":
                own = past.surface == surface
                found[name] = _alike(past.time[own], age[own], len(item))
            elif name is not None:
                found[name] = self._with(name, past, item)
        return found

    def _with(self, name: str, past: Events, item: Int) -> Found:
        code, place = self._groups.code[name], self._place[name]
        code_C = code[item]
        place[code_C] = np.arange(len(item))
        place[-1] = -1
        first_C = place[code_C]
        of_N = place[code[past.item]]
        place[code_C] = -1
        hit = np.flatnonzero(of_N >= 0)
        count, last = np.zeros(len(item) + 1, dtype=np.int64), np.zeros(len(item) + 1, dtype=np.int64)
        if len(hit):
            count[:-1] = np.bincount(of_N[hit], minlength=len(item))
            last[of_N[hit]] = past.time[hit]  # in the order of time: the last one stays
        return Found(count=count[first_C], last=last[first_C])


def _alike(time: Int, age: Float, candidates: int) -> Found:
    return Found(
        count=np.full(candidates, len(time)),
        last=np.full(candidates, time[-1] if len(time) else 0),
        decayed=np.full(candidates, age.sum()),
    )


class DerivedColumns:
    """The dense columns of a data set that follow from engagements.

    Args:
        columns: what is asked for, by name.

    Attributes: ``own`` and ``all``: groups of the user's past and of everybody's that they need.
    """

    def __init__(self, columns: Mapping[str, Derivation]) -> None:
        self.columns = columns
        self.own = _groups(columns, "user")
        self.all = [name for name in _groups(columns, "all") if name is not None]

    @staticmethod
    def of(dense: Sequence[str], attributes: Sequence[str], *, given: Sequence[str]) -> "DerivedColumns":
        """Those of ``dense`` that can be made of engagements, and are not ``given``."""
        known = derived(attributes)
        return DerivedColumns({name: known[name] for name in dense if name in known and name not in given})

    def values(self, own: Mapping[str | None, Found], everybody: Mapping[str, Float], time: int) -> dict[str, Float]:
        """Every column, float64 [C]."""
        found = {("user", name): one for name, one in own.items()}
        nothing = np.zeros(0, dtype=np.int64)
        found |= {("all", name): Found(count=nothing, last=nothing, decayed=sums) for name, sums in everybody.items()}
        at = np.array(time)
        return {name: how.of(found[how.whose, how.group], at) for name, how in self.columns.items()}


def _groups(columns: Mapping[str, Derivation], whose: str) -> list[str | None]:
    return list(dict.fromkeys(how.group for how in columns.values() if how.whose == whose))
