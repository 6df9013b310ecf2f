"""What each user has done, in memory: the log as of opening, and what has been observed since.

A user's engagements are read from the log when they are first asked for, and grow by what is observed. The users last
touched stay; of one that had to go, what was observed since the log was opened is forgotten, and counted.

Shape legend: N engagements of one user.
"""

from collections import OrderedDict

import numpy as np

from streaming.history import EngagementLog, Events

_TYPES = (np.int32, np.int8, np.int8, np.int64)  # as in EngagementLog
_ROOM = 8


class UserPast:
    """One user's engagements in the order of time, equal times in the order in which they came.

    What :meth:`before` has returned never changes: rows are appended behind it, and moved in new memory only.
    """

    __slots__ = ("_columns", "_size", "observed")

    def __init__(self, events: Events) -> None:
        self._columns = tuple(np.asarray(column, dtype=kind) for column, kind in zip(events, _TYPES, strict=True))
        self._size = len(events.time)
        self.observed = 0
        """How many were added since."""

    def before(self, time: int) -> Events:
        """Those strictly before ``time``; views."""
        end = int(np.searchsorted(self._columns[3][: self._size], time, side="left"))
        return Events(*(column[:end] for column in self._columns))

    def add(self, new: Events, *, most: int) -> None:
        """Add engagements in the order of time; of more than ``most``, the latest stay."""
        size, count, time = self._size, len(new.time), self._columns[3]
        self.observed += count
        if size + count > most or (size and new.time[0] < time[size - 1]):
            self._rebuild(new, most=most)
        else:
            if size + count > len(time):
                self._columns = tuple(_grown(column, size, size + count + _ROOM) for column in self._columns)
            for column, values in zip(self._columns, new, strict=True):
                column[size : size + count] = values
            self._size = size + count

    def _rebuild(self, new: Events, *, most: int) -> None:
        columns = [
            np.concatenate([column[: self._size], values.astype(column.dtype)])
            for column, values in zip(self._columns, new, strict=True)
        ]
        order = np.argsort(columns[3], kind="stable")
        # A tenth goes at a time, so that not every further engagement moves all.
        kept = order if len(order) <= most else order[len(order) - max(most - most // 10, 1) :]
        self._columns = tuple(column[kept] for column in columns)
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

    def add(self, user_id: int, new: Events) -> None:
        """Add engagements of a user, in the order of time."""
        self.of(user_id).add(new, most=self._most)
