"""The ladder of the online store: where each key's vector came from, and how often.

===========  =====================================================================================
``FRESH``    the key's own vector, young enough
``STALE``    the key's own vector, older, and not yet past its time to live
``NEAREST``  what the store's fallback lends, because the key has no vector or an expired one
``USER``     the user's aggregate, because that is so and nothing is lent either
``ZEROS``    nothing is known: zeros, with the mask bit off
===========  =====================================================================================

What is lent, and an aggregate, may be young enough or stale, as the key's own vector may.

Shape legend: N keys, M of them that are missed, D numbers of a vector.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hypercast.codec import rows as codecs
from hypercast.store import own_keys
from hypercast.store import status as statuses
from hypercast.store.engine import Engine, Integers, Layout, Rows
from hypercast.store.status import Freshness, Status

_STALE = int(Status.STALE)  # arrays are compared with a plain number in half the time


class Rung(IntEnum):
    """Where a vector came from; numbers are those in the log of what was served, and tell nothing of the order.

    ``LIVE`` comes from no store: so who serves counts what it computes itself (:mod:`hypercast.serving.lanes.ladder`).
    """

    LIVE = 0
    FRESH = 1
    STALE = 2
    USER = 3
    ZEROS = 4
    NEAREST = 5


READ = (Rung.FRESH, Rung.STALE, Rung.NEAREST, Rung.USER, Rung.ZEROS)
"""The rungs of this ladder, from the highest down."""


class Fallback(Protocol):
    """What stands in for vectors that are missed, before the user's aggregate does."""

    def remember(self, snapshot: str, layout: Layout, key_N3: Integers, computed_at_N: Integers) -> None:
        """Take note that rows with these keys were put; at least one. ``computed_at_N``: microseconds UTC."""

    def lend(self, snapshot: str, layout: Layout, key_M3: Integers, *, now: int) -> Rows:
        """For each missed key a row that was there as of ``now``, however old, or none.

        The payload has no columns if the rows have been dropped since the layout was read.
        """


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What was read for N keys.

    Attributes:
        vector: float32 [N, D]; may be a read-only view.
        status: uint8 [N], :class:`Status` of the key's own vector.
        rung: uint8 [N], :class:`Rung` that the vector came from.
        age: int64 [N], microseconds since the vector was computed; 0 on the rung ZEROS.
        snapshot: that was read; None if there was none to read.
    """

    vector: NDArray[np.float32]
    status: NDArray[np.uint8]
    rung: NDArray[np.uint8]
    age: NDArray[np.int64]
    snapshot: str | None

    @property
    def present(self) -> NDArray[np.bool_]:
        """Bool [N]: the mask bit; off on the rung ZEROS."""
        return self.rung != Rung.ZEROS

    def counts(self) -> dict[str, int]:
        """Number of keys by status name; all four names are always there."""
        return statuses.count(self.status)

    def rungs(self) -> dict[str, int]:
        """Number of keys by rung name; all of :data:`READ` are always there."""
        totals = np.bincount(self.rung, minlength=len(Rung))
        return {rung.name: int(totals[rung]) for rung in READ}


def nothing(keys: int, width: int) -> Lookup:
    """The answer where there is nothing to read."""
    return Lookup(
        vector=np.zeros((keys, width), np.float32),
        status=np.full(keys, Status.MISS, np.uint8),
        rung=np.full(keys, Rung.ZEROS, np.uint8),
        age=np.zeros(keys, np.int64),
        snapshot=None,
    )


def climb(
    engine: Engine,
    snapshot: str,
    layout: Layout,
    key: Integers,
    *,
    now: int,
    freshness: Freshness,
    fallback: Fallback | None = None,
) -> Lookup | None:
    """Read N candidates' vectors of a snapshot with that layout as of ``now``, microseconds UTC.

    Lower rungs are only asked for keys that the higher ones have left. An aggregate that was computed at ``now`` is of
    the very request that reads it, and is not read.

    Returns:
        None if the rows have been dropped since the layout was read.
    """
    own = engine.get(snapshot, key, as_of=now)
    if own.payload.shape[1] != layout.row_bytes:
        return None
    age = now - own.computed_at
    status = freshness.classify(age)
    if not own.found.all():
        status[~own.found] = Status.MISS
    payload, rung = own.payload, status + np.uint8(Rung.FRESH)
    left = np.flatnonzero(status > _STALE) if status.any() else status[:0]
    if len(left):
        payload = payload.copy()
        rung[left], age[left] = Rung.ZEROS, 0
        steps = {Rung.USER: partial(_aggregates, engine, snapshot, now=now)}
        if fallback is not None:
            steps = {Rung.NEAREST: partial(fallback.lend, snapshot, layout, now=now)} | steps
        for step, ask in steps.items():
            found = ask(key[left])
            if found.payload.shape[1] != layout.row_bytes:
                return None
            found_age = now - found.computed_at
            usable = found.found & (freshness.classify(found_age) <= _STALE)
            taken = left[usable]
            payload[taken], rung[taken], age[taken] = found.payload[usable], step, found_age[usable]
            left = left[~usable]
            if not len(left):
                break
    vector = codecs.named(layout.codec).decode(payload, layout.width)
    if len(left):
        vector[left] = 0
    return Lookup(vector=vector, status=status, rung=rung, age=age, snapshot=snapshot)


def _aggregates(engine: Engine, snapshot: str, key_M3: Integers, *, now: int) -> Rows:
    """The aggregate of each key's user from before ``now``; each user is asked for once."""
    user, place = np.unique(key_M3[:, 1], return_inverse=True)
    rows = engine.get(snapshot, own_keys.of_users(user), as_of=now - 1)
    return Rows(
        found=rows.found[place],
        computed_at=rows.computed_at[place],
        history_end=rows.history_end[place],
        payload=rows.payload[place],
    )


@dataclass(kw_only=True)
class Counters:
    """Keys read since opening.

    Attributes:
        status: int64 [4], by :class:`Status` of the keys' own vectors.
        rung: int64 [6], by :class:`Rung`.
        unreachable: how many of those on the rung ZEROS are there because the engine did not answer.
    """

    status: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Status), np.int64))
    rung: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Rung), np.int64))
    unreachable: int = 0

    def add(self, lookup: Lookup) -> None:
        """Count one answer."""
        if not lookup.status.any():  # the usual case, and a hot path
            self.status[Status.FRESH] += len(lookup.status)
            self.rung[Rung.FRESH] += len(lookup.status)
            return
        self.status += np.bincount(lookup.status, minlength=len(Status))
        self.rung += np.bincount(lookup.rung, minlength=len(Rung))

    def to_dict(self) -> dict[str, int]:
        """``status/NAME``, ``rung/NAME`` and ``unreachable``; every name is always there."""
        return {
            **{f"status/{status.name}": int(self.status[status]) for status in Status},
            **{f"rung/{rung.name}": int(self.rung[rung]) for rung in READ},
            "unreachable": self.unreachable,
        }
