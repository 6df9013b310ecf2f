"""User histories, materialised late: a request stores none, it finds its own by ``(user, time)``.

Law L1 lives here: a request at time t sees engagements with time strictly before t and no others.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streaming.catalogue import Catalogue
from streaming.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class EngagementLog:
    """Engagements sorted by (user, time), held in memory.

    Attributes:
        users: sorted distinct user ids, int64.
        moments: sorted distinct engagement times, int64 microseconds.
        key: ``user rank << 32 | time rank``, int64 ``[engagements]``, ascending.
        item: item rows of the catalogue, int64 ``[engagements]``.
        surface: index of the surface or -1, int64 ``[engagements]``.
        action: index of the action, int64 ``[engagements]``.
        time: int64 microseconds ``[engagements]``.
    """

    users: np.ndarray
    moments: np.ndarray
    key: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    action: np.ndarray
    time: np.ndarray

    @staticmethod
    def read(dataset: Dataset, items: Catalogue) -> "EngagementLog":
        """Read the engagements of every window. Spans are cut by time, so later windows stay invisible to a request."""
        return EngagementLog.of(pa.concat_tables([dataset.engagements(w.index) for w in dataset.windows]), items)

    @staticmethod
    def of(table: pa.Table, items: Catalogue) -> "EngagementLog":
        """Build from an engagement table in any order; events of one user at one time keep their order."""
        time = table["time"].cast(pa.int64()).to_numpy()
        users, user_rank = np.unique(table["user_id"].to_numpy(), return_inverse=True)
        moments, time_rank = np.unique(time, return_inverse=True)
        key = user_rank.astype(np.int64) << 32 | time_rank
        order = np.argsort(key, kind="stable")
        return EngagementLog(
            users=users,
            moments=moments,
            key=key[order],
            item=items.rows(table["item_id"].to_numpy())[order],
            surface=table["surface"].to_numpy().astype(np.int64)[order],
            action=table["action"].to_numpy().astype(np.int64)[order],
            time=time[order],
        )

    def only(self, surface: int) -> "EngagementLog":
        """The engagements of one surface."""
        keep = self.surface == surface
        return EngagementLog(
            users=self.users,
            moments=self.moments,
            key=self.key[keep],
            item=self.item[keep],
            surface=self.surface[keep],
            action=self.action[keep],
            time=self.time[keep],
        )

    def spans(self, user_id: np.ndarray, time: np.ndarray, *, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the latest ``max_length`` engagements before each request lie: ``start``, ``end``, int64 ``[B]``.

        Every engagement in ``[start, end)`` has the request's user and a time strictly before the request's.
        """
        if len(self.users) == 0:
            nothing = np.zeros(len(user_id), dtype=np.int64)
            return nothing, nothing
        rank = np.searchsorted(self.users, user_id).clip(max=len(self.users) - 1)
        known = self.users[rank] == user_id
        first = np.searchsorted(self.key, rank.astype(np.int64) << 32)
        end = np.searchsorted(self.key, rank.astype(np.int64) << 32 | np.searchsorted(self.moments, time))
        end = np.where(known, end, first)
        return np.maximum(first, end - max_length), end


def gather(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices covered by the spans one after the other, and offsets ``[B + 1]`` into them."""
    length = end - start
    offsets = np.concatenate([[0], np.cumsum(length)])
    index = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], length)
    return index, offsets
