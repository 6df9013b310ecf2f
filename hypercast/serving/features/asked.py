"""Requests that carry their own histories: every model that reads them sees the same past, whatever comes in meanwhile.

Shape legend: B requests, L history tokens, N engagements.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import numpy as np

from hypercast.serving.models.frozen import ListedBatch
from streaming.batch import BatchReader, RequestBatch
from streaming.history import EngagementLog, Events
from streaming.prefetch import Prefetch
from streaming.requests import Requests, Supervision
from streaming.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Asked(Requests):
    """Requests without an outcome, in the order in which they were asked.

    Attributes:
        past: of each request, its user's engagements strictly before it, oldest first (law L1). Read only.
    """

    past: tuple[Events, ...]

    def _of_requests(self, index: np.ndarray) -> "Asked":
        part = cast(Asked, super()._of_requests(index))
        return replace(part, past=tuple(self.past[row] for row in index.tolist()))

    def pages(self) -> tuple["Asked", np.ndarray]:
        """The same candidates with those requests made one that a model sees the same way: one user, time and context.

        Returns:
            the requests, in the order in which each first comes, and int64 ``[C]``: where each candidate is among them.
        """
        seen: dict[tuple[int, int, bytes, int, int], int] = {}
        keys = zip(self.user_id.tolist(), self.time.tolist(), self.context, self.past, strict=True)
        page = np.array(
            [
                seen.setdefault((user, time, code.tobytes(), *_memory(past)), len(seen))
                for user, time, code, past in keys
            ],
            dtype=np.int64,
        )
        if len(seen) == len(page):
            return self, np.arange(len(self.item))
        page_C = page[self.owner]
        # By candidate, as the request log has them: the order in which rows enter a product decides its last bits.
        order = np.lexsort((self.candidate_id, page_C))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        first = np.unique(page, return_index=True)[1]
        one = self._of_candidates(order, np.bincount(page_C, minlength=len(seen)))
        return cast(Asked, one._of_requests(first)), place


@dataclass(frozen=True, kw_only=True)
class OwnHistories(EngagementLog):
    """Histories that lie request by request: ``users`` are their places, whoever they belong to."""

    @staticmethod
    def latest(asked: Asked, *, surface: int | None = None, most: int) -> "OwnHistories":
        """The latest ``most`` engagements of each request's past, of one ``surface`` or of all."""
        parts = [_latest(past, surface, most) for past in asked.past]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [_NONE] * 4
        return OwnHistories(
            users=np.arange(len(parts)),
            first=np.cumsum([0, *(len(part.time) for part in parts)]),
            item=columns[0],
            surface=columns[1],
            action=columns[2],
            time=columns[3],
        )

    def spans(self, user_id: np.ndarray, time: np.ndarray, *, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        end = self.first[1:]
        return np.maximum(self.first[:-1], end - max_length), end


_NONE = np.zeros(0, dtype=np.int64)


def _memory(past: Events) -> tuple[int, int]:
    """Where a past lies and how much of it there is: what a state has given out never changes, so equal is the same.

    The number of engagements alone would not do: of a user who has many, as many may be others by the next call.
    """
    return past.time.__array_interface__["data"][0], len(past.time)


def _latest(past: Events, surface: int | None, most: int) -> Events:
    if surface is None:
        start = max(len(past.time) - most, 0)
        return Events(*(column[start:] for column in past))
    own = np.flatnonzero(past.surface == surface)
    own = own[max(len(own) - most, 0) :]
    return Events(*(column[own] for column in past))


class AskedBatches:
    """Builds a model's batches of what is asked.

    Args:
        histories: by name, as in :class:`streaming.batch.BatchReader`: index of the surface whose engagements they are
            (None: all), and the largest number of them.
    """

    def __init__(self, *, workspace: Workspace, histories: dict[str, tuple[int | None, int]]) -> None:
        self.workspace = workspace
        self.histories = histories

    def batch(self, asked: Asked) -> ListedBatch:
        """One batch of all of ``asked``; nothing is known of its labels."""
        logs: dict[str, tuple[EngagementLog, int]] = {
            name: (OwnHistories.latest(asked, surface=surface, most=most), most)
            for name, (surface, most) in self.histories.items()
        }
        reader = BatchReader(
            items=self.workspace.items,
            users=self.workspace.users,
            context=self.workspace.dataset.config.context,
            histories=logs,
            prefetch=Prefetch.Config(workers=0),
        )
        batch = reader.batch(asked)
        item_U = np.unique(np.concatenate([asked.item, *(log.item for log, _ in logs.values())]))
        parts = {field.name: getattr(batch, field.name) for field in fields(RequestBatch)}
        return ListedBatch(**parts, item_U=item_U, user_B=asked.user)


def merge(parts: Sequence[Asked]) -> Asked:
    """Requests of several calls as if they had been asked together; at least one."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_OF_REQUESTS, *_OF_CANDIDATES)
    }
    supervision = {
        field.name: np.concatenate([getattr(part.supervision, field.name) for part in parts])
        for field in fields(Supervision)
    }
    return replace(
        parts[0],
        **columns,
        tags={name: np.concatenate([part.tags[name] for part in parts]) for name in parts[0].tags},
        offsets=np.cumsum([0, *np.concatenate([np.diff(part.offsets) for part in parts])]),
        supervision=Supervision(**supervision),
        past=tuple(past for part in parts for past in part.past),
    )


_OF_REQUESTS = ("request_id", "user_id", "user", "time", "context")
_OF_CANDIDATES = ("candidate_id", "item_id", "item", "surface", "dense")


def no_outcome(candidates: int, tasks: int) -> Supervision:
    """Supervision of candidates of which nothing is known."""
    return Supervision(
        label=np.zeros((candidates, tasks), dtype=np.float32),
        known_time=np.full((candidates, tasks), Supervision.NEVER),
        weight=np.ones(candidates, dtype=np.float32),
        stratum=np.zeros(candidates, dtype=np.int8),
    )
