"""What the foundation model has said of a user before: the mean of the embeddings of earlier windows (LoopFM).

Of a request in window w, the embeddings that the log holds of the same user's candidates in windows before w, on all
surfaces. The request's own embedding is never among them, nor is any of its window's: so nothing depends on the other
candidates of the window that is being predicted (law L6), on anything at or after the request (law L1), or on a
snapshot other than those that published those windows when they were live (law L3). Which candidates a window has tells
something of their labels; a window therefore counts once the labels of all its tasks are known (law L2).

After LoopFM (arXiv 2605.29280), which keeps embeddings per item of the history; here they are pooled by the mean, which
the normalisation of :class:`experts.fusion.Fusion` makes the same as their sum.

Shape legend: B requests, C candidates, U users of a window, R width of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pydantic
import torch

from experts.fusion import Vectors
from hypercast.store.embeddings import Embeddings
from streaming.config import Config as BaseConfig
from streaming.requests import Requests
from streaming.workspace import Workspace

Read = Callable[[int, Requests], Embeddings]
"""What the log holds for the requests of the window of that index."""


@dataclass(frozen=True, kw_only=True)
class UserTotals:
    """Sums over one window: sorted ``user_U`` int64, ``total_UR`` float64, ``count_U`` int64 of embeddings."""

    user_U: np.ndarray
    total_UR: np.ndarray
    count_U: np.ndarray

    @staticmethod
    def of(user_C: np.ndarray, vector_CR: np.ndarray) -> "UserTotals":
        """Totals of the candidates' vectors by user."""
        user_U, place_C, count_U = np.unique(user_C, return_inverse=True, return_counts=True)
        order = np.argsort(place_C, kind="stable")
        starts = np.cumsum(count_U) - count_U
        total_UR = np.zeros((0, vector_CR.shape[1]))
        if len(starts):
            total_UR = np.add.reduceat(vector_CR[order], starts, axis=0, dtype=np.float64)
        return UserTotals(user_U=user_U, total_UR=total_UR, count_U=count_U)

    def add_to(self, total_BR: np.ndarray, count_B: np.ndarray, user_B: np.ndarray) -> None:
        """Add each user's totals to the rows of ``total_BR`` and ``count_B`` that are that user's."""
        if not len(self.user_U):
            return
        place_B = np.searchsorted(self.user_U, user_B).clip(max=len(self.user_U) - 1)
        known_B = self.user_U[place_B] == user_B
        total_BR[known_B] += self.total_UR[place_B[known_B]]
        count_B[known_B] += self.count_U[place_B[known_B]]


class PastEmbeddings:
    """Pools the log's earlier windows by user; keeps the totals of the windows last asked for."""

    class Config(BaseConfig):
        """Attributes: ``windows``, how many of the latest that count are pooled."""

        windows: int = pydantic.Field(default=8, ge=1)

    def __init__(self, *, config: Config, workspace: Workspace, width: int, read: Read) -> None:
        self.config = config
        self.workspace = workspace
        self.width = width
        self.read = read
        self._totals: dict[int, UserTotals] = {}

    def of(self, window: int, requests: Requests) -> Vectors:
        """The mean embedding before ``window`` of each candidate's user; absent where the log has none."""
        total_BR = np.zeros((len(requests), self.width))
        count_B = np.zeros(len(requests), np.int64)
        earlier = self.windows_before(window)
        for index in earlier:
            self._totals_of(index).add_to(total_BR, count_B, requests.user_id)
        self._totals = {index: self._totals[index] for index in earlier}
        mean_BR = (total_BR / np.maximum(count_B, 1)[:, None]).astype(np.float32)
        return Vectors(
            vector_CR=torch.from_numpy(mean_BR[requests.owner]),
            present_C=torch.from_numpy((count_B > 0).astype(np.float32)[requests.owner]),
        )

    def windows_before(self, window: int) -> list[int]:
        """Indices of the windows that are pooled for ``window``, oldest first."""
        dataset = self.workspace.dataset
        delay = max(int(task.delay_seconds * 1_000_000) for task in dataset.config.tasks)
        start = dataset.window(window).start
        over = [made.index for made in dataset.windows if made.end + delay <= start]
        return over[-self.config.windows :]

    def _totals_of(self, window: int) -> UserTotals:
        if window not in self._totals:
            requests = self.workspace.requests(window)
            read = self.read(window, requests)
            user_C = requests.user_id[requests.owner]
            self._totals[window] = UserTotals.of(user_C[read.present], read.vector[read.present])
        return self._totals[window]
