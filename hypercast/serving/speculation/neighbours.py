"""An online store with one rung more: the item's vector of the user most like the one who asks.

Beside the vectors it keeps, for every item of a surface, the users for whom it was put last, as rows without a vector
(:mod:`hypercast.store.own_keys` has the others)::

    (-4 - piece, surface, item)    int64 user ids, newest first, cut into pieces as long as a row

A user lies where the user's aggregate does, the mean of the user's vectors: the asker's is at hand while the foundation
model is not, and like the offline policy (:mod:`hypercast.serving.speculation.misses`) it places users by what one
model makes of them. Of the users who are kept, the nearest lends its vector, if that is not expired. Who has no
aggregate has no neighbour, and whose item has been put for nobody else is left on the rung that the ladder found.

A look-up reads :data:`HELD` aggregates a missed candidate at most, in one call; a put writes one row more a vector or
little more. Only what is put through such a store has neighbours.

Shape legend: N rows put, M candidates that were missed, H users kept of each, T things (an item on a surface), R width
of vectors.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypercast.codec import rows as codecs
from hypercast.pins import Pin
from hypercast.snapshot import Snapshot
from hypercast.store import own_keys
from hypercast.store.engine import Integers, Layout, UnreachableError
from hypercast.store.ladder import Lookup, Rung
from hypercast.store.online import OnlineStore
from hypercast.store.status import Status

HOLDERS = -4
"""First number of the keys; see the module."""
HELD = 16
"""Users that are kept of each item of a surface."""
NEAREST = np.uint8(len(Rung))
"""The rung of a neighbour's vector, after those of :class:`hypercast.store.ladder.Rung`."""
_NOBODY = np.iinfo(np.int64).min


class NearestStore(OnlineStore):
    """Answers as :class:`OnlineStore`; where a candidate's own vector is of no use, by a neighbour's if it can."""

    def put(
        self,
        *,
        snapshot: Snapshot,
        surface: Integers,
        user_id: Integers,
        item_id: Integers,
        vector: NDArray[np.floating[Any]],
        computed_at: Integers,
        history_end: Integers,
    ) -> None:
        """As :meth:`OnlineStore.put`; the users are remembered for their items."""
        super().put(
            snapshot=snapshot,
            surface=surface,
            user_id=user_id,
            item_id=item_id,
            vector=vector,
            computed_at=computed_at,
            history_end=history_end,
        )
        if len(user_id):
            self._remember(snapshot, np.stack([surface, item_id], axis=1), np.asarray(user_id), np.asarray(computed_at))

    def get(
        self,
        *,
        pin: Pin,
        surface: Integers,
        user_id: Integers,
        item_id: Integers,
        now: int,
        width: int,
        channel: str = "latest",
        adapt: bool = False,
    ) -> Lookup:
        """As :meth:`OnlineStore.get`; ``rung`` is :data:`NEAREST` where a neighbour's vector was taken.

        Counted by the store are the rungs that it found itself. With ``adapt`` there are no neighbours.
        """
        asked = {"surface": surface, "user_id": user_id, "item_id": item_id}
        lookup = super().get(pin=pin, **asked, now=now, width=width, channel=channel, adapt=adapt)
        missed = np.flatnonzero(lookup.status > Status.STALE)
        if adapt or lookup.snapshot is None or not len(missed):
            return lookup
        try:
            return self._with_neighbours(lookup, own_keys.of_candidates(**asked)[missed], missed, int(now))
        except UnreachableError:  # went away in between: what the ladder has found stands
            return lookup

    def _remember(self, snapshot: Snapshot, thing_N2: Integers, user_N: Integers, time_N: Integers) -> None:
        """Put the users before those who are kept of the same things already."""
        layout = self._layout(snapshot)
        thing_T2, place_N = np.unique(thing_N2, axis=0, return_inverse=True)
        place_N = place_N.reshape(-1)
        before_TH, since_T = self._holders(snapshot.name, layout, thing_T2, as_of=None)
        np.maximum.at(since_T, place_N, time_N)
        order = np.lexsort((np.arange(len(user_N)), time_N, place_N))
        first = np.searchsorted(place_N[order], np.arange(len(thing_T2) + 1))
        held_TH = np.full((len(thing_T2), HELD), _NOBODY)
        for row in range(len(thing_T2)):
            newest = user_N[order[first[row] : first[row + 1]]][::-1]
            users = [*dict.fromkeys([*newest.tolist(), *before_TH[row][before_TH[row] != _NOBODY].tolist()])]
            held_TH[row, : len(users)] = users[:HELD]
        pieces = _pieces(layout)
        data = np.zeros((len(thing_T2), pieces * layout.row_bytes), np.uint8)
        data[:, : HELD * 8] = held_TH.astype("<i8").view(np.uint8)
        since = np.repeat(since_T, pieces)
        self.engine.put(
            snapshot.name,
            layout,
            key=_keys(thing_T2, pieces),
            computed_at=since,
            history_end=since,
            payload=data.reshape(-1, layout.row_bytes),
        )

    def _holders(
        self, snapshot: str, layout: Layout, thing_T2: Integers, *, as_of: int | None
    ) -> tuple[Integers, Integers]:
        """Users kept of each thing, newest first, int64 ``[T, H]``, and since when, int64 ``[T]``; as of a time."""
        pieces = _pieces(layout)
        rows = self.engine.get(snapshot, _keys(thing_T2, pieces), as_of=as_of)
        if rows.payload.shape[1] != layout.row_bytes:  # there is nothing yet, or nothing any more
            return np.full((len(thing_T2), HELD), _NOBODY), np.zeros(len(thing_T2), np.int64)
        data = np.ascontiguousarray(rows.payload.reshape(len(thing_T2), -1)[:, : HELD * 8])
        there_T = np.logical_and.reduce(rows.found.reshape(-1, pieces), axis=1)
        held_TH = np.where(there_T[:, None], data.view("<i8"), _NOBODY)
        return held_TH, rows.computed_at.reshape(-1, pieces).max(axis=1)

    def _with_neighbours(self, lookup: Lookup, key_M3: Integers, missed: Integers, now: int) -> Lookup:
        """``lookup`` with neighbours' vectors where there are any for the rows ``missed``, which have these keys."""
        snapshot = lookup.snapshot
        layout = self.engine.layout(snapshot) if snapshot is not None else None
        if snapshot is None or layout is None:
            return lookup
        near_M = self._nearest(snapshot, layout, key_M3, now)
        found = np.flatnonzero(near_M != _NOBODY)
        key = key_M3[found]
        key[:, 1] = near_M[found]
        rows = self.engine.get(snapshot, key, as_of=now)
        age = now - rows.computed_at
        usable = np.flatnonzero(rows.found & (self.config.classify(age) <= Status.STALE))
        if not len(usable) or rows.payload.shape[1] != layout.row_bytes:
            return lookup
        vector, rung, ages = lookup.vector.copy(), lookup.rung.copy(), lookup.age.copy()
        taken = missed[found[usable]]
        vector[taken] = codecs.named(layout.codec).decode(rows.payload[usable], layout.width)
        rung[taken], ages[taken] = NEAREST, age[usable]
        return replace(lookup, vector=vector, rung=rung, age=ages)

    def _nearest(self, snapshot: str, layout: Layout, key_M3: Integers, now: int) -> Integers:
        """For each missed candidate the nearest other user who is kept of it, int64 ``[M]``; the newest of equals."""
        held_MH, _ = self._holders(snapshot, layout, key_M3[:, [0, 2]], as_of=now)
        user_U, place = np.unique(np.concatenate([key_M3[:, 1], held_MH.ravel()]), return_inverse=True)
        asker_M, held_at_MH = place[: len(key_M3)], place[len(key_M3) :].reshape(held_MH.shape)
        # As on the ladder: an aggregate that was computed now is of a request that is being answered.
        rows = self.engine.get(snapshot, own_keys.of_users(user_U), as_of=now - 1)
        if rows.payload.shape[1] != layout.row_bytes:
            return np.full(len(key_M3), _NOBODY)
        usable_U = rows.found & (self.config.classify(now - rows.computed_at) <= Status.STALE) & (user_U != _NOBODY)
        point_UR = codecs.named(layout.codec).decode(rows.payload, layout.width)
        apart_MH = np.square(point_UR[held_at_MH] - point_UR[asker_M][:, None]).sum(axis=2)
        other_MH = usable_U[held_at_MH] & usable_U[asker_M][:, None] & (held_at_MH != asker_M[:, None])
        best_M = np.where(other_MH, apart_MH, np.inf).argmin(axis=1)[:, None]
        near_M, any_M = (np.take_along_axis(values, best_M, axis=1)[:, 0] for values in (held_MH, other_MH))
        return np.where(any_M, near_M, _NOBODY)


def _pieces(layout: Layout) -> int:
    """Rows that the users of one thing take."""
    return -(-HELD * 8 // layout.row_bytes)


def _keys(thing_T2: Integers, pieces: int) -> Integers:
    """Keys of all pieces, int64 ``[T * pieces, 3]``, those of one thing together."""
    key = np.empty((len(thing_T2), pieces, 3), np.int64)
    key[:, :, 0] = HOLDERS - np.arange(pieces)
    key[:, :, 1:] = thing_T2[:, None]
    return key.reshape(-1, 3)
