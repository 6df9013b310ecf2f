"""Rows of one window become requests.

Legend: n rows, B requests.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Requests sorted by (time, request_id), each with its rows.

    Attributes:
        request_id, user, time: int64 [B]; time is that of a request's earliest row.
        offsets: rows of request b are ``rows[offsets[b]:offsets[b + 1]]`` [B + 1].
        rows: indices of rows [n], the earliest of a request first.
    """

    request_id: Int
    user: Int
    time: Int
    offsets: Int
    rows: Int

    @property
    def first(self) -> Int:
        """The earliest row of each request [B]."""
        return self.rows[self.offsets[:-1]]


def group(*, user: Int, time: Int, request: Int, within: int) -> Grouping:
    """Group rows: a request is one user's rows with one ``request`` code, up to ``within`` after the earliest of them.

    A request's id depends on its user, code and time alone, and on nothing else that is imported.

    Args:
        user, time, request: int64 [n]; ``request`` is 0 everywhere where rows have no request id.
        within: microseconds.
    """
    order = np.lexsort((time, request, user))
    user_n, request_n, time_n = user[order], request[order], time[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (np.diff(user_n) != 0) | (np.diff(request_n) != 0)
    starts = _starts(starts, time_n, within)
    first = np.flatnonzero(starts)
    request_id = mixed(user_n[first], request_n[first], time_n[first])
    by_time = np.lexsort((request_id, time_n[first]))
    size = np.diff(np.append(first, len(order)))[by_time]
    offsets = np.concatenate([[0], np.cumsum(size)])
    rows = np.repeat(first[by_time] - offsets[:-1], size) + np.arange(len(order))
    first = first[by_time]
    return Grouping(
        request_id=request_id[by_time], user=user_n[first], time=time_n[first], offsets=offsets, rows=order[rows]
    )


def mixed(*values: Int) -> Int:
    """A hash in [0, 2^63) of each row of integers [n] (the finalizer of SplitMix64, after each value)."""
    state = np.zeros(len(values[0]), dtype=np.uint64)
    for value in values:
        state = state + value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(1)).astype(np.int64)


def _starts(segment: npt.NDArray[np.bool_], time: Int, within: int) -> npt.NDArray[np.bool_]:
    """Where requests start [n], given where segments (of ascending times) start [n].

    All segments step to their next request at once, so that there are as many steps as the longest one has requests.
    """
    number = np.cumsum(segment)
    moments, rank = np.unique(time, return_inverse=True)
    beyond = np.searchsorted(moments, time + within, side="right")
    key = number * (len(moments) + 1) + rank
    starts = segment.copy()
    at = np.flatnonzero(segment)
    while len(at):
        later = np.searchsorted(key, number[at] * (len(moments) + 1) + beyond[at])
        inside = later < len(time)
        at, later = at[inside], later[inside]
        at = later[number[later] == number[at]]
        starts[at] = True
    return starts
