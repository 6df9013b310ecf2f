"""What each user has done, in memory: the log as of opening, and what has been observed since.

A user's engagements are read from the log when they are first asked for, and grow by what is observed. The users last
touched stay; of one that had to go, what was observed since the log was opened is forgotten, and counted.

Of engagements at one time, those of the log come first, then those with an id, by id, as a sealed window has them
(:mod:`streaming.sources.tables`), then those without, in the order in which they came. One that comes with an id which
the user's past has at that time is a copy, and counts once.

Shape legend: N engagements of one user.
"""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from streaming.history import EngagementLog, Events

Int = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NO_ID = np.iinfo(np.int64).max
"""Stands for the id of an engagement that has none: it is no copy of any."""
_LOGGED = np.iinfo(np.int64).min
_TYPES = (np.int32, np.int8, np.int8, np.int64)  # as in EngagementLog
_ROOM = 8


class UserPast:
    """One user's engagements in the order of time; see the module for equal times.

    What :meth:`before` has returned never changes: rows are appended behind it, and moved in new memory only.
    """

    __slots__ = ("_columns", "_id", "_size", "observed")

    def __init__(self, events: Events) -> None:
        self._columns = tuple(np.asarray(column, dtype=kind) for column, kind in zip(events, _TYPES, strict=True))
        self._size = len(events.time)
        self._id = np.full(self._size, _LOGGED)
        self.observed = 0
        """How many were added since."""

    def before(self, time: int) -> Events:
        """Those strictly before ``time``; views."""
        end = int(np.searchsorted(self._columns[3][: self._size], time, side="left"))
        return Events(*(column[:end] for column in self._columns))

    def add(self, new: Events, ids: Int, *, most: int) -> Flags:
        """Add engagements in the order of (time, id); of more than ``most``, the latest stay.

        Args:
            ids: int64 [N], :data:`NO_ID` for none.

        Returns: bool [N], which of them are not copies.
        """
        fresh = self._fresh(new.time, ids)
        if not fresh.all():
            new, ids = Events(*(column[fresh] for column in new)), ids[fresh]
        size, count, time = self._size, len(ids), self._columns[3]
        self.observed += count
        if not count:
            return fresh
        if size + count > most or (size and (new.time[0], ids[0]) < (time[size - 1], self._id[size - 1])):
            self._rebuild(new, ids, most=most)
        else:
            if size + count > len(time):
                room = size + count + _ROOM
                self._columns = tuple(_grown(column, size, room) for column in self._columns)
                self._id = _grown(self._id, size, room)
            for column, values in zip((*self._columns, self._id), (*new, ids), strict=True):
                column[size : size + count] = values
            self._size = size + count
        return fresh

    def _fresh(self, time_N: Int, ids: Int) -> Flags:
        """Which of some engagements, in the order of (time, id), are copies neither of what is there nor each other."""
        fresh, named = np.ones(len(ids), dtype=bool), ids != NO_ID
        fresh[1:] = (np.diff(time_N) != 0) | (np.diff(ids) != 0) | ~named[1:]
        held = self._columns[3][: self._size]
        first, end = (np.searchsorted(held, time_N, side=side) for side in ("left", "right"))
        for row in np.flatnonzero(named & (end > first)).tolist():
            fresh[row] &= not (self._id[first[row] : end[row]] == ids[row]).any()
        return fresh

    def _rebuild(self, new: Events, ids: Int, *, most: int) -> None:
        columns = [
            np.concatenate([column[: self._size], values.astype(column.dtype)])
            for column, values in zip(self._columns, new, strict=True)
        ]
        all_ids = np.concatenate([self._id[: self._size], ids])
        order = np.lexsort((all_ids, columns[3]))
        # A tenth goes at a time, so that not every further engagement moves all.
        kept = order if len(order) <= most else order[len(order) - max(most - most // 10, 1) :]
        self._columns = tuple(column[kept] for column in columns)
        self._id = all_ids[kept]
        self._size = len(kept)


def _grown(column: np.ndarray, size: int, least: int) -> np.ndarray:
    grown = np.empty(max(least, 2 * size), dtype=column.dtype)
    grown[:size] = column[:size]
    return grown


class Pasts:
    """The pasts of the users last touched.

    Args:
        log: engagements of all users.
        as_of: of the log, only what is strictly before it counts; microseconds.
        users: how many stay in memory.
        most: engagements of a user that stay.

    Attributes: ``forgotten``: users that had to go with what was observed of them.
    """

    def __init__(self, *, log: EngagementLog, as_of: int, users: int, most: int) -> None:
        self._log = log
        self._as_of = as_of
        self._most_users = users
        self._most = most
        self._users: OrderedDict[int, UserPast] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._users)

    def of(self, user_id: int) -> UserPast:
        """The past of a user, who need not be known."""
        past = self._users.get(user_id)
        if past is not None:
            self._users.move_to_end(user_id)
            return past
        asked = np.array([user_id]), np.array([self._as_of])
        past = UserPast(self._log.take(*self._log.spans(*asked, max_length=self._most)))
        self._users[user_id] = past
        if len(self._users) > self._most_users:
            _, gone = self._users.popitem(last=False)
            self.forgotten += gone.observed > 0
        return past

    def add(self, user_id: int, new: Events, ids: Int) -> Flags:
        """Add engagements of a user, in the order of (time, id); which of them are not copies, bool [N]."""
        return self.of(user_id).add(new, ids, most=self._most)
