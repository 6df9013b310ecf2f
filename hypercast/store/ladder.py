"""The ladder of the online store: where each key's vector came from, and how often.

=========  =========================================================================================
``FRESH``  the key's own vector, young enough
``STALE``  the key's own vector, older, and not yet past its time to live
``USER``   the user's aggregate, young enough or stale, because the key has no vector or an expired one
``ZEROS``  nothing is known: zeros, with the mask bit off
=========  =========================================================================================

Shape legend: N keys, D numbers of a vector.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from hypercast.codec import rows as codecs
from hypercast.store import own_keys
from hypercast.store import status as statuses
from hypercast.store.engine import Engine, Integers, Layout
from hypercast.store.status import Freshness, Status

_STALE = int(Status.STALE)  # arrays are compared with a plain number in half the time


class Rung(IntEnum):
    """Where a vector came from; the first two are also the status of the key's own vector."""

    FRESH = 0
    STALE = 1
    USER = 2
    ZEROS = 3


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
        """Number of keys by rung name; all four names are always there."""
        totals = np.bincount(self.rung, minlength=len(Rung))
        return {rung.name: int(totals[rung]) for rung in Rung}


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
    engine: Engine, snapshot: str, layout: Layout, key: Integers, *, now: int, freshness: Freshness
) -> Lookup | None:
    """Read N candidates' vectors of a snapshot with that layout as of ``now``, microseconds UTC.

    Aggregates are only asked for where a key's own vector is of no use. One that was computed at ``now`` is of the very
    request that reads it, and is not read.

    Returns:
        None if the rows have been dropped since the layout was read.
    """
    codec = codecs.named(layout.codec)
    own = engine.get(snapshot, key, as_of=now)
    if own.payload.shape[1] != layout.row_bytes:
        return None
    age = now - own.computed_at
    status = freshness.classify(age)
    if not own.found.all():
        status[~own.found] = Status.MISS
    payload, rung = own.payload, status.copy()
    need = np.flatnonzero(status > _STALE) if status.any() else status[:0]
    if len(need):
        user, place = np.unique(key[need, 1], return_inverse=True)
        aggregate = engine.get(snapshot, own_keys.of_users(user), as_of=now - 1)
        if aggregate.payload.shape[1] != layout.row_bytes:
            return None
        user_age = now - aggregate.computed_at
        usable = (aggregate.found & (freshness.classify(user_age) <= _STALE))[place]
        payload = payload.copy()
        payload[need] = aggregate.payload[place]
        rung[need] = np.where(usable, Rung.USER, Rung.ZEROS)
        age[need] = np.where(usable, user_age[place], 0)
    vector = codec.decode(payload, layout.width)
    if len(need):
        vector[rung == Rung.ZEROS] = 0
    return Lookup(vector=vector, status=status, rung=rung, age=age, snapshot=snapshot)


@dataclass(kw_only=True)
class Counters:
    """Keys read since opening.

    Attributes:
        status: int64 [4], by :class:`Status` of the keys' own vectors.
        rung: int64 [4], by :class:`Rung`.
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
            **{f"rung/{rung.name}": int(self.rung[rung]) for rung in Rung},
            "unreachable": self.unreachable,
        }
