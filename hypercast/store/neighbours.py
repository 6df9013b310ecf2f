"""A rung of the online store's ladder: the item's vector of the user most like the one who asks.

Beside the vectors that are put, the store keeps, for every item of a surface, the users for whom it was put last, as
rows without a vector (:mod:`hypercast.store.own_keys` has the others)::

    (-4 - piece, surface, item)    int64 user ids, newest first, cut into pieces as long as a row

A user lies where the user's aggregate does, the mean of the user's vectors: the asker's is at hand while the foundation
model is not, and like the offline policy (:mod:`hypercast.serving.speculation.misses`) it places users by what one
model makes of them. Of the users who are kept, the nearest lends its vector. Who has no aggregate has no neighbour, and
nor has whose item has been put for nobody else.

A look-up reads :data:`HELD` aggregates a missed candidate at most, in one call; a put reads and writes one row more a
vector or little more. Of two processes that put the same item at the same moment, one may forget the other's users.

Shape legend: N rows put, M candidates that were missed, H users kept of each, T things (an item on a surface), R width
of vectors.
"""

from dataclasses import replace

import numpy as np

from hypercast.codec import rows as codecs
from hypercast.store import own_keys
from hypercast.store.engine import Engine, Integers, Layout, Rows, no_rows
from hypercast.store.status import Freshness, Status

HELD = 16
"""Users that are kept of each item of a surface."""
_NOBODY = np.iinfo(np.int64).min


class Neighbours:
    """The users who have vectors of the same items; a :class:`hypercast.store.ladder.Fallback`.

    Args:
        engine: where the store's rows are.
        freshness: up to which age an aggregate places its user.
    """

    def __init__(self, *, engine: Engine, freshness: Freshness) -> None:
        self.engine = engine
        self.freshness = freshness

    def remember(self, snapshot: str, layout: Layout, key_N3: Integers, computed_at_N: Integers) -> None:
        """Put the users of these rows before those who are kept of the same things already."""
        thing_T2, thing_N = np.unique(key_N3[:, [0, 2]], axis=0, return_inverse=True)
        thing_N = thing_N.reshape(-1)
        held_TH, since_T = self._holders(snapshot, layout, thing_T2, as_of=None)
        np.maximum.at(since_T, thing_N, computed_at_N)
        newest = np.lexsort((np.arange(len(key_N3)), computed_at_N))[::-1]
        kept = np.nonzero(held_TH != _NOBODY)
        pair = np.stack(  # of all who have the thing, newest first
            [np.append(thing_N[newest], kept[0]), np.append(key_N3[newest, 1], held_TH[kept])], axis=1
        )
        pair = pair[np.sort(np.unique(pair, axis=0, return_index=True)[1])]  # each once, where it is newest
        thing, user = pair[np.argsort(pair[:, 0], kind="stable")].T
        rank = np.arange(len(thing)) - np.searchsorted(thing, thing)
        within = rank < HELD
        held_TH[:] = _NOBODY
        held_TH[thing[within], rank[within]] = user[within]
        pieces = _pieces(layout)
        data = np.zeros((len(thing_T2), pieces * layout.row_bytes), np.uint8)
        data[:, : HELD * 8] = held_TH.astype("<i8").view(np.uint8)
        since = np.repeat(since_T, pieces)
        self.engine.put(
            snapshot,
            layout,
            key=own_keys.of_holders(thing_T2, pieces),
            computed_at=since,
            history_end=since,
            payload=data.reshape(-1, layout.row_bytes),
        )

    def lend(self, snapshot: str, layout: Layout, key_M3: Integers, *, now: int) -> Rows:
        """For each missed candidate the row of the nearest other user who is kept of it; of equals the newest."""
        held_MH, _ = self._holders(snapshot, layout, key_M3[:, [0, 2]], as_of=now)
        user_U, place = np.unique(np.concatenate([key_M3[:, 1], held_MH.ravel()]), return_inverse=True)
        asker_M, held_at_MH = place[: len(key_M3)], place[len(key_M3) :].reshape(held_MH.shape)
        # As on the ladder: an aggregate that was computed now is of a request that is being answered.
        rows = self.engine.get(snapshot, own_keys.of_users(user_U), as_of=now - 1)
        if rows.payload.shape[1] != layout.row_bytes:
            return no_rows(len(key_M3), 0)
        age = now - rows.computed_at
        usable_U = rows.found & (self.freshness.classify(age) <= Status.STALE) & (user_U != _NOBODY)
        point_UR = codecs.named(layout.codec).decode(rows.payload, layout.width)
        apart_MH = np.square(point_UR[held_at_MH] - point_UR[asker_M][:, None]).sum(axis=2)
        other_MH = usable_U[held_at_MH] & usable_U[asker_M][:, None] & (held_at_MH != asker_M[:, None])
        best_M1 = np.where(other_MH, apart_MH, np.inf).argmin(axis=1)[:, None]
        near_M3 = key_M3.copy()
        near_M3[:, 1] = np.take_along_axis(held_MH, best_M1, axis=1)[:, 0]
        lent = self.engine.get(snapshot, near_M3, as_of=now)
        return replace(lent, found=lent.found & other_MH.any(axis=1))

    def _holders(
        self, snapshot: str, layout: Layout, thing_T2: Integers, *, as_of: int | None
    ) -> tuple[Integers, Integers]:
        """Users kept of each thing, newest first, int64 ``[T, H]``, and since when, int64 ``[T]``; as of a time."""
        pieces = _pieces(layout)
        rows = self.engine.get(snapshot, own_keys.of_holders(thing_T2, pieces), as_of=as_of)
        if rows.payload.shape[1] != layout.row_bytes:  # there is nothing yet, or nothing any more
            return np.full((len(thing_T2), HELD), _NOBODY), np.zeros(len(thing_T2), np.int64)
        data = np.ascontiguousarray(rows.payload.reshape(len(thing_T2), -1)[:, : HELD * 8])
        there_T = np.logical_and.reduce(rows.found.reshape(-1, pieces), axis=1)
        held_TH = np.where(there_T[:, None], data.view("<i8"), _NOBODY)
        return held_TH, rows.computed_at.reshape(-1, pieces).max(axis=1)


def _pieces(layout: Layout) -> int:
    """Rows that the users of one thing take."""
    return -(-HELD * 8 // layout.row_bytes)
