"""User histories, materialised late: a request stores none, it finds its own by ``(user, time)``.

Law L1 lives here: a request at time t sees engagements with time strictly before t and no others.

Shape legend: B requests, L events of all their histories together, N engagements, U users.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streaming.catalogue import Catalogue
from streaming.dataset import Dataset


class Events(NamedTuple):
    """Engagements of several histories one after the other, each oldest first; types as in :class:`EngagementLog`."""

    item: np.ndarray
    surface: np.ndarray
    action: np.ndarray
    time: np.ndarray


@dataclass(frozen=True, kw_only=True)
class EngagementLog:
    """Engagements sorted by (user, time), in memory; :class:`streaming.engagement_index.MappedLog` has them on disk.

    Attributes:
        users: sorted distinct user ids, int64 ``[U]``.
        first: user u has the engagements ``first[u]:first[u + 1]``, int64 ``[U + 1]``.
        item: rows of the item catalogue, int32 ``[N]``.
        surface: index of the surface or -1, int8 ``[N]``.
        action: index of the action, int8 ``[N]``.
        time: int64 microseconds ``[N]``.
    """

    users: np.ndarray
    first: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    action: np.ndarray
    time: np.ndarray

    @staticmethod
    def read(dataset: Dataset, items: Catalogue) -> "EngagementLog":
        """Read the engagements of every window into this process's memory; jobs share those that ``Workspace`` maps."""
        return EngagementLog.of(pa.concat_tables([dataset.engagements(w.index) for w in dataset.windows]), items)

    @staticmethod
    def of(table: pa.Table, items: Catalogue) -> "EngagementLog":
        """Build from an engagement table in any order; events of one user at one time keep their order."""
        user, time = table["user_id"].to_numpy(), table["time"].cast(pa.int64()).to_numpy()
        order = np.lexsort((time, user))
        users, count = np.unique(user, return_counts=True)
        return EngagementLog(
            users=users,
            first=np.concatenate([[0], np.cumsum(count)]),
            item=items.rows(table["item_id"].to_numpy())[order].astype(np.int32),
            surface=table["surface"].to_numpy()[order].astype(np.int8),
            action=table["action"].to_numpy()[order].astype(np.int8),
            time=time[order],
        )

    def only(self, surface: int) -> "EngagementLog":
        """The engagements of one surface."""
        keep = np.flatnonzero(self.surface == surface)
        return EngagementLog(
            users=self.users,
            first=np.searchsorted(keep, self.first),
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
        first = self.first[rank]
        end = lower_bound(self.time, first, np.where(known, self.first[rank + 1], first), time)
        return np.maximum(first, end - max_length), end

    def take(self, start: np.ndarray, end: np.ndarray) -> Events:
        """The engagements of the spans ``[start, end)``, one span after the other."""
        index, _ = gather(start, end)
        return Events(*(column[index] for column in (self.item, self.surface, self.action, self.time)))


def lower_bound(values: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """First index in each ``[low, high)`` whose value is not below ``wanted``, or ``high``; all int64 ``[B]``.

    A binary search of every range at once: ``values`` ascend within each range, and are read log2(length) times only.
    """
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) >> 1
        # Ranges that are found already may lie at the end of all values, where there is nothing to read.
        below = values[np.where(open_, middle, 0)] < wanted
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def gather(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices covered by the spans one after the other, and offsets ``[B + 1]`` into them."""
    length = end - start
    offsets = np.concatenate([[0], np.cumsum(length)])
    index = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], length)
    return index, offsets
