"""What was asked for: the request log without its labels, as of a time.

Shape legend: R requests, A candidates asked for in all, K context features, F dense features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streaming.requests import Requests
from streaming.workspace import Workspace

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AskedLog:
    """Requests in time order with their candidates; nothing of what became of them (law L6).

    Attributes:
        user_id, time: int64 ``[R]``, time in microseconds UTC.
        context: codes, int64 ``[R, K]``.
        offsets: int64 ``[R + 1]``; request r asked for candidates ``offsets[r]:offsets[r + 1]``.
        item_id, item, surface: int64 ``[A]``; ``item`` is a row of the item catalogue.
        dense: float32 ``[A, F]``, as logged with the request.
    """

    user_id: Int
    time: Int
    context: Int
    offsets: Int
    item_id: Int
    item: Int
    surface: Int
    dense: npt.NDArray[np.float32]

    @staticmethod
    def of(parts: list[Requests]) -> "AskedLog":
        """Windows' requests, one after the other; at least one part."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        return AskedLog(
            user_id=np.concatenate([part.user_id for part in parts]),
            time=np.concatenate([part.time for part in parts]),
            context=np.concatenate([part.context for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            item_id=np.concatenate([part.item_id for part in parts]),
            item=np.concatenate([part.item for part in parts]),
            surface=np.concatenate([part.surface for part in parts]),
            dense=np.concatenate([part.dense for part in parts]),
        )

    def between(self, since: int, before: int) -> "AskedLog":
        """The requests with ``since <= time < before``; views."""
        first, last = np.searchsorted(self.time, [since, before], side="left")
        begin, end = self.offsets[first], self.offsets[last]
        return AskedLog(
            user_id=self.user_id[first:last],
            time=self.time[first:last],
            context=self.context[first:last],
            offsets=self.offsets[first : last + 1] - begin,
            item_id=self.item_id[begin:end],
            item=self.item[begin:end],
            surface=self.surface[begin:end],
            dense=self.dense[begin:end],
        )

    @property
    def owner(self) -> Int:
        """Index of each candidate's request, int64 ``[A]``."""
        return np.repeat(np.arange(len(self.time)), np.diff(self.offsets))


class AskedReader:
    """Reads :class:`AskedLog` of a data set; keeps the windows that ended within ``kept_for`` (microseconds)."""

    def __init__(self, workspace: Workspace, *, kept_for: int) -> None:
        self._workspace = workspace
        self._kept_for = kept_for
        self._windows: dict[int, Requests] = {}

    def between(self, since: int, before: int) -> AskedLog:
        """The requests with ``since <= time < before``. No window that begins at ``before`` or later is opened."""
        windows = [each for each in self._workspace.dataset.windows if each.start < before and each.end > since]
        # One window there must be, for the shapes: the first, whose requests are cut off again by their times.
        reach = [each.index for each in windows] or [self._workspace.dataset.windows[0].index]
        for index in reach:
            if index not in self._windows:
                self._windows[index] = self._workspace.requests(index)
        found = AskedLog.of([self._windows[index] for index in reach]).between(since, before)
        old = before - self._kept_for
        self._windows = {
            index: part for index, part in self._windows.items() if self._workspace.dataset.window(index).end > old
        }
        return found
