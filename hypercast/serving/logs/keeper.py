"""The logging tier's hand: what was computed goes into the online store, what was served into the log, by one thread.

Requests never wait for it. If it falls behind, the oldest is given up and counted: the next request for the same
candidates finds a lower rung, and the log lacks a request, which is then not trained on.

Shape legend: C candidates, R width of a representation.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from hypercast.serving.features.asked import Asked, merge
from hypercast.serving.lanes.ladder import Given, joined
from hypercast.serving.metrics import Metrics
from hypercast.snapshot import Snapshot
from hypercast.store.online import OnlineStore

_logger = logging.getLogger(__name__)

MOST = 1024
"""Requests that wait to be kept."""
PAUSE = 0.05
"""Seconds for which requests gather: one put of many rows costs little more than one of few."""


class Log(Protocol):
    """What was served (:class:`hypercast.serving.logs.served.ServedLog`)."""

    def append(self, asked: Asked, given: Given) -> None: ...

    def commit(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """``snapshot``: that computed the vectors of ``given``; None: they are to be logged as served."""

    asked: Asked
    given: Given
    snapshot: Snapshot | None


class VectorKeeper:
    """See the module.

    Args:
        store: takes vectors computed live; None for none.
        log: takes what was served; None for none.
        commit_seconds: how often both are made durable.
    """

    def __init__(self, *, store: OnlineStore | None, log: Log | None, commit_seconds: float, metrics: Metrics) -> None:
        self._store, self._log, self._every, self._metrics = store, log, commit_seconds, metrics
        self._waiting: deque[_Kept] = deque(maxlen=MOST)
        self._uncommitted: set[str] = set()
        self._ended = threading.Event()
        self._come = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def served(self, asked: Asked, given: Given) -> None:
        if self._log is not None:
            self._take(_Kept(asked=asked, given=given, snapshot=None))

    def computed(self, asked: Asked, given: Given, snapshot: Snapshot) -> None:
        if self._store is not None and given.present_C.all():  # all are of one request, and so of one age
            self._take(_Kept(asked=asked, given=given, snapshot=snapshot))

    def close(self) -> None:
        """Keep what waits, make it durable, and end."""
        self._ended.set()
        self._come.set()
        self._thread.join()
        if self._log is not None:
            self._log.close()

    def _take(self, kept: _Kept) -> None:
        if len(self._waiting) == MOST:
            self._metrics.kept.labels("lost").inc()
        self._waiting.append(kept)
        self._come.set()

    def _run(self) -> None:
        due = time.monotonic() + self._every
        while not self._ended.is_set():
            self._come.wait(max(0.0, due - time.monotonic()))
            self._ended.wait(PAUSE)
            self._come.clear()
            self._keep()
            if time.monotonic() >= due:
                self._commit()
                due = time.monotonic() + self._every
        self._keep()
        self._commit()

    def _keep(self) -> None:
        served: dict[tuple[str | None, ...], list[_Kept]] = {}
        computed: dict[str, list[_Kept]] = {}
        while self._waiting:
            kept = self._waiting.popleft()
            if kept.snapshot is not None:
                computed.setdefault(kept.snapshot.name, []).append(kept)
            else:
                served.setdefault((kept.given.snapshot, *kept.given.vectors), []).append(kept)
        for group in served.values():
            self._try("log of what was served", partial(self._append, group))
        for group in computed.values():
            self._try("online store", partial(self._put, group))

    def _append(self, group: list[_Kept]) -> None:
        assert self._log is not None
        self._log.append(merge([kept.asked for kept in group]), joined([kept.given for kept in group]))

    def _put(self, group: list[_Kept]) -> None:
        store, snapshot = self._store, group[0].snapshot
        assert store is not None and snapshot is not None
        count = [len(kept.asked.item_id) for kept in group]
        time_C = np.concatenate([kept.asked.time[kept.asked.owner] for kept in group])
        user_C = np.concatenate([kept.asked.user_id[kept.asked.owner] for kept in group])
        vector_CR = np.concatenate([kept.given.vectors[store.config.representation] for kept in group])
        store.put(
            snapshot=snapshot,
            surface=np.concatenate([kept.asked.surface for kept in group]),
            user_id=user_C,
            item_id=np.concatenate([kept.asked.item_id for kept in group]),
            vector=vector_CR,
            computed_at=time_C,
            history_end=time_C,
        )
        first = np.cumsum([0, *count[:-1]])
        time_Q = time_C[first]
        store.put_users(
            snapshot=snapshot,
            user_id=user_C[first],
            vector=np.add.reduceat(vector_CR, first, axis=0) / np.array(count, np.float32)[:, None],
            computed_at=time_Q,
            history_end=time_Q,
        )
        self._uncommitted.add(snapshot.name)
        self._metrics.kept.labels("put").inc()

    def _commit(self) -> None:
        if self._store is not None:
            for snapshot in self._uncommitted:
                self._try("online store", partial(self._store.engine.commit, snapshot))
            self._uncommitted.clear()
        if self._log is not None:
            self._try("log of what was served", self._log.commit)

    def _try(self, where: str, work: Callable[[], object]) -> None:
        """What is kept is a help to later requests: no failure of it ends the service."""
        try:
            work()
        except Exception as error:
            self._metrics.kept.labels("failed").inc()
            _logger.warning("%s: %s", where, error)
