"""What a round of speculation has computed.

Shape legend: N pairs, U users, R width of the vectors, D model width, T tasks.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hypercast.pins import parse_snapshot_name
from hypercast.serving.speculation.asked_log import Int
from hypercast.snapshot import Snapshot
from hypercast.store.online import OnlineStore

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Speculated:
    """Vectors as of ``now`` (microseconds UTC) by ``snapshot``, of the pairs that are worth it most first.

    Attributes:
        user_id, item_id, surface: int64 ``[N]``.
        chance: float64 ``[N]``, of being asked for until the next round.
        vector: float32 ``[N, R]``, the ``penultimate`` representation.
        logit: float32 ``[N, T]``.
        users: int64 ``[U]``, ascending: those of the pairs.
        encoding: float32 ``[U, D]``, what the model makes of each user before it looks at any item.
    """

    snapshot: Snapshot
    now: int
    user_id: Int
    item_id: Int
    surface: Int
    chance: npt.NDArray[np.float64]
    vector: Float32
    logit: Float32
    users: Int
    encoding: Float32

    def __len__(self) -> int:
        return len(self.user_id)

    def first(self, pairs: int) -> "Speculated":
        """What a round that stops after so many pairs would have computed."""
        names = ("user_id", "item_id", "surface", "chance", "vector", "logit")
        kept = np.isin(self.users, self.user_id[:pairs])
        parts = {name: getattr(self, name)[:pairs] for name in names}
        return replace(self, **parts, users=self.users[kept], encoding=self.encoding[kept])

    def aggregates(self) -> tuple[Float32, Float32]:
        """Means of each user's vectors, float32 ``[U, R]``, and of the logits, float32 ``[U, T]``."""
        place = np.searchsorted(self.users, self.user_id)
        rows = np.bincount(place, minlength=len(self.users))[:, None]
        sums = np.zeros((len(self.users), self.vector.shape[1] + self.logit.shape[1]))
        np.add.at(sums, place, np.concatenate([self.vector, self.logit], axis=1))
        vector, logit = np.split((sums / rows).astype(np.float32), [self.vector.shape[1]], axis=1)
        return vector, logit

    def put(self, store: OnlineStore, *, channel: str = "latest") -> None:
        """Write pairs and users' aggregates into ``store``, and let readers of ``channel`` find them.

        They are FRESH, STALE and EXPIRED by the store's ages, counted from ``now``. Readers that follow a newer
        snapshot stay there. Nothing is written of an empty round.

        Raises:
            StoreError: see :meth:`hypercast.store.online.OnlineStore.put`.
            ConflictError: somebody else has published in the channel meanwhile.
        """
        if not len(self):
            return
        at = np.full(len(self), self.now)
        store.put(
            snapshot=self.snapshot,
            surface=self.surface,
            user_id=self.user_id,
            item_id=self.item_id,
            vector=self.vector,
            computed_at=at,
            history_end=at,
        )
        of_user = np.full(len(self.users), self.now)
        vector, _ = self.aggregates()
        store.put_users(
            snapshot=self.snapshot, user_id=self.users, vector=vector, computed_at=of_user, history_end=of_user
        )
        current = store.current(self.snapshot.lineage, channel=channel)
        if current is None or parse_snapshot_name(current) <= parse_snapshot_name(self.snapshot.name):
            store.publish(self.snapshot.name, expected=current, at=self.now, channel=channel)
        else:
            store.engine.commit(self.snapshot.name)
