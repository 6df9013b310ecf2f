"""Work that is done ahead of whoever consumes it, by threads or processes, in order and never too far ahead."""

import itertools
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, Generic, Literal, TypeVar

import pydantic

from streaming.config import Config as BaseConfig
from streaming.errors import UserError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


class WorkerError(UserError):
    """A worker process died."""


class Prefetch(Generic[TaskT, ResultT]):
    """Maps ``work`` over tasks; results come in the order of the tasks and do not depend on who made them.

    Args:
        work: a function of the task alone. For processes it is pickled once for each, tasks and results every time.
    """

    class Config(BaseConfig):
        """Attributes:

        kind: ``thread`` shares memory and costs nothing; ``process`` is for work that holds Python's lock for long.
        workers: how many; 0 works when asked, in the consumer's own thread.
        ahead: the most results that are in progress or wait to be taken.
        """

        kind: Literal["thread", "process"] = "thread"
        workers: int = pydantic.Field(default=1, ge=0)
        ahead: int = pydantic.Field(default=4, ge=1)

    def __init__(self, *, config: Config, work: Callable[[TaskT], ResultT]) -> None:
        self.config = config
        self._work = work
        self._pool: Executor | None = None

    def __call__(self, tasks: Iterable[TaskT]) -> Iterator[ResultT]:
        """Results, oldest first. An error in ``work`` is raised where its result would have come.

        Raises:
            WorkerError: a worker process died; the results before it have been given.
        """
        if self.config.workers == 0:
            yield from map(self._work, tasks)
            return
        waiting: deque[Future[Any]] = deque()
        pending = iter(tasks)
        try:
            while True:
                for task in itertools.islice(pending, self.config.ahead - len(waiting)):
                    waiting.append(self._submit(task))
                if not waiting:
                    return
                yield self._result(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()

    def _submit(self, task: TaskT) -> "Future[Any]":
        config = self.config
        if config.kind == "thread":
            self._pool = self._pool or ThreadPoolExecutor(config.workers, thread_name_prefix="prefetch")
            return self._pool.submit(self._work, task)
        if self._pool is None:
            # Not forked: a copy of a process with threads in it may hang.
            self._pool = ProcessPoolExecutor(
                config.workers, mp_context=get_context("spawn"), initializer=_start, initargs=(self._work,)
            )
        try:
            return self._pool.submit(_run, task)
        except BrokenProcessPool as error:
            raise self._died() from error

    def _result(self, future: "Future[Any]") -> ResultT:
        try:
            result = future.result()
        except BrokenProcessPool as error:
            raise self._died() from error
        return pickle.loads(result) if self.config.kind == "process" else result

    def _died(self) -> WorkerError:
        self._pool = None  # the next call starts new ones
        return WorkerError(
            f"one of {self.config.workers} prefetching processes died: it was killed, or the machine ran out of "
            "memory. Nothing is lost: start again, with fewer workers or kind 'thread' if it happens again."
        )


_worker_work: Callable[[Any], Any]
"""In a worker process: what it does."""


def _start(work: Callable[[Any], Any]) -> None:
    global _worker_work
    _worker_work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run(task: Any) -> bytes:
    # Pickled here and not by the pool, which would pass tensors by handles that a dead worker takes with it.
    return pickle.dumps(_worker_work(task), protocol=pickle.HIGHEST_PROTOCOL)
