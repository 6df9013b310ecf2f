"""A lane: one thread that works off jobs in batches, knows how long they take, and refuses what it cannot do in time.

Jobs that come while it works make the next batch; it never waits for more. A batch is no larger than the earliest of
its deadlines leaves time for. What is put off (:meth:`Lane.put_off`) is done one by one, when there is nothing else.
Times are seconds of ``time.monotonic()``.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
NEVER = float("inf")

REMEMBERED = 31
"""Batches that say what work takes, by medians: one that was held up by something else says nothing of the next."""
PROBE = 0.25
"""Seconds without work, after which a job is let in whatever it was last taken to last: it may be faster by now."""
CAUTION = 1.2
"""What work is taken to last, in medians: what is let in and comes too late has cost as much as what comes in time."""


class TooLate(Exception):
    """The job cannot be done in time, or could not any more when its turn came."""


class LaneFull(Exception):
    """As many jobs wait as may."""


class LaneClosed(Exception):
    """The lane takes no jobs any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry(Generic[JobT, ResultT]):
    """A job, how much work it is, by when it must be done, and whom to tell; nobody waits for one that was put off."""

    job: JobT
    units: float
    by: float = NEVER
    future: "asyncio.Future[ResultT] | None" = None

    def settle(self, *, result: Any = None, error: BaseException | None = None) -> None:
        """Tell, from any thread."""
        future = self.future
        if future is None:
            return

        def tell() -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            future.get_loop().call_soon_threadsafe(tell)


class Lane(Generic[JobT, ResultT]):
    """See the module.

    Args:
        name: of the thread.
        work: results of a batch, one a job, in order. Runs in the lane's thread. If it fails for several jobs it is
            called again for each alone.
        batch: jobs of a batch, at most.
        waiting: jobs that may wait.
        alike: jobs of one batch have equal values of this (the models that they are for).
        behind: jobs that can be put off; the newest are kept.
        behind_after: seconds without a job, after which one that was put off is begun.
        quiet: whether it may be begun; asked each time.
    """

    def __init__(
        self,
        *,
        name: str,
        work: Callable[[Sequence[JobT]], Sequence[ResultT]],
        batch: int,
        waiting: int,
        alike: Callable[[JobT], Hashable] = lambda job: None,
        behind: int = 0,
        behind_after: float = 0.0,
        quiet: Callable[[], bool] = lambda: True,
    ) -> None:
        self._work, self._batch, self._most, self._alike = work, batch, waiting, alike
        self._queue: deque[_Entry[JobT, ResultT]] = deque()
        self._behind: deque[_Entry[JobT, ResultT]] = deque(maxlen=behind)
        self._behind_after, self._quiet = behind_after, quiet
        self._queued_units = 0.0
        self._begun_at: float | None = None
        self._expected = 0.0
        self._batch_seconds, self._unit_seconds, self._learned_at = 0.0, 0.0, 0.0
        self._learned: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait now, those put off not among them."""
        return len(self._queue)

    @property
    def working(self) -> bool:
        """Whether there is anything to do, or being done, but what was put off."""
        return bool(self._queue) or self._begun_at is not None

    def seconds(self, units: float) -> float:
        """What so much work is taken to last in one batch; 0 before the first."""
        return CAUTION * (self._batch_seconds + self._unit_seconds * units)

    def expected(self, units: float) -> float:
        """Seconds until so much work would be done if it were submitted now."""
        with self._changed:
            return self._expected_for(units)

    def submit(self, job: JobT, *, units: float = 1.0, by: float = NEVER) -> "asyncio.Future[ResultT]":
        """The result to come. Called in an event loop.

        The future raises what the work raises, :class:`TooLate` if its turn comes too late, and :class:`LaneClosed`.

        Args:
            job: for ``work``.
            units: how much work it is, in any measure that stays the same.
            by: when it must be done.

        Raises:
            TooLate: with all that waits before it, it would not be done in time.
            LaneFull: too many wait.
            LaneClosed: the lane is closed.
        """
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closed:
                raise LaneClosed
            if len(self._queue) >= self._most:
                raise LaneFull
            now = time.monotonic()
            if self._begun_at is None and not self._queue and now - self._learned_at > PROBE:
                by = NEVER
            elif now + self._expected_for(units) > by:
                raise TooLate
            self._queue.append(_Entry(job=job, units=units, by=by, future=future))
            self._queued_units += units
            self._changed.notify()
        return future

    def put_off(self, job: JobT, *, units: float = 1.0) -> bool:
        """Do it when there is nothing else; returns whether one was forgotten for it (itself, if none can be kept)."""
        with self._changed:
            full = len(self._behind) == self._behind.maxlen
            self._behind.append(_Entry(job=job, units=units))
            self._changed.notify()
        return full

    def close(self) -> None:
        """Finish the batch under way, fail what waits, forget what was put off, end the thread."""
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._behind.clear()
            self._changed.notify()
        for entry in left:
            entry.settle(error=LaneClosed())
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            if not batch:  # all were too late
                continue
            begun = time.monotonic()
            if not self._done(batch) and len(batch) > 1:  # no job fails for what comes with another
                for entry in batch:
                    self._done([entry])
            with self._changed:
                self._learn(sum(entry.units for entry in batch), time.monotonic() - begun)
                self._begun_at = None

    def _done(self, batch: "list[_Entry[JobT, ResultT]]") -> bool:
        """Work, and tell who waits; an error is told only of a job that was alone."""
        try:
            results = self._work([entry.job for entry in batch])
        except Exception as error:  # is for those who wait to handle; the lane goes on
            if len(batch) == 1:
                batch[0].settle(error=error)
            return False
        for entry, result in zip(batch, results, strict=True):
            entry.settle(result=result)
        return True

    def _learn(self, units: float, seconds: float) -> None:
        """Fit a line to the remembered batches, by the median of the slopes between two (Theil 1950, Sen 1968)."""
        self._learned.append((units, seconds))
        self._learned_at = time.monotonic()
        units_N, seconds_N = np.array(self._learned).T
        apart_NN = units_N[:, None] - units_N
        slopes = (seconds_N[:, None] - seconds_N)[apart_NN > 0] / apart_NN[apart_NN > 0]
        slope = max(float(np.median(slopes)), 0.0) if len(slopes) else 0.0
        at_once = float(np.median(seconds_N - slope * units_N))
        if not len(slopes) or at_once < 0:  # nothing to tell them apart by, or more than all of it
            at_once, slope = 0.0, float(np.median(seconds_N / units_N))
        self._batch_seconds, self._unit_seconds = at_once, slope

    def _next(self) -> "list[_Entry[JobT, ResultT]] | None":
        """The next batch, perhaps empty; None at the end."""
        with self._changed:
            while not (self._queue or self._closed):
                if not self._behind:
                    self._changed.wait()
                elif not self._changed.wait(self._behind_after) and self._behind and self._quiet():
                    return self._begun([self._behind.pop()])  # the newest: likeliest to be asked for again
            return None if self._closed else self._begun(self._taken())

    def _begun(self, batch: "list[_Entry[JobT, ResultT]]") -> "list[_Entry[JobT, ResultT]]":
        if batch:  # or all were too late, and nothing begins
            self._begun_at, self._expected = time.monotonic(), self.seconds(sum(entry.units for entry in batch))
        return batch

    def _expected_for(self, units: float) -> float:
        """A batch under way that is overdue is taken to last as long again as it has by now; the lock is held."""
        remaining = 0.0
        if self._begun_at is not None:
            lasted = time.monotonic() - self._begun_at
            remaining = self._expected - lasted if lasted < self._expected else lasted
        return remaining + self.seconds(self._queued_units + units)

    def _taken(self) -> "list[_Entry[JobT, ResultT]]":
        """Cut a batch off the queue; the lock is held."""
        now, units, earliest = time.monotonic(), 0.0, NEVER
        batch: list[_Entry[JobT, ResultT]] = []
        while self._queue and len(batch) < self._batch:
            first = self._queue[0]
            late = now + self.seconds(units + first.units) > min(earliest, first.by)
            if batch and (late or self._alike(first.job) != self._alike(batch[0].job)):
                break
            self._queue.popleft()
            self._queued_units -= first.units
            if first.future is not None and first.future.cancelled():
                continue
            if late:
                first.settle(error=TooLate())
                continue
            batch.append(first)
            units, earliest = units + first.units, min(earliest, first.by)
        if not self._queue:
            self._queued_units = 0.0  # sums of floats drift
        return batch
