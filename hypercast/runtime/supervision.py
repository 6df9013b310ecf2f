"""A job in a Ray actor that outlives the actor: if its process or machine dies, it goes on in another.

A call is handed to the actor when its arguments are there and the call before it has returned, by one thread a job in
this process. So nothing is lost with an actor but the call that it was in: its successor resumes from the job's
checkpoints and is given that call once more. An error that the job itself raises is no death, and is raised to whoever
asks for the result.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hypercast.runtime.board import Board
from hypercast.runtime.engine import Job
from hypercast.runtime.ownership import own
from streaming.errors import UserError

_HANDOVER_SECONDS = 120.0
"""How long a job waits for the one before it to be gone."""
_GIB = 2**30
_logger = logging.getLogger(__name__)


class JobDiedError(UserError):
    """A job whose process has died more often than the run allows."""


@dataclass(frozen=True)
class Promise:
    """The result of a call, once it is there; ``of``: name of the job that it was made to."""

    of: str
    future: Future[Any]


@dataclass(kw_only=True)
class Tally:
    """What the jobs of a run share. Attributes:

    most: how often each may be started anew.
    namespace: of the actors' names.
    restarts, launches: by name of the job; they go on if a job is stopped and another of its name is started.
    """

    most: int
    namespace: str
    restarts: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)


class SupervisedJob:
    """An actor, whatever process it lives in, and the calls that it still has to answer.

    Attributes:
        ready: promise of nothing, kept when the job is constructed.
        pid: id of the process, None while the job is being constructed.
    """

    def __init__(self, job: Job, *, board: Board, tally: Tally) -> None:
        self.job = job
        self.pid: int | None = None
        self._board = board
        self._tally = tally
        self._ended = False
        self._lock = threading.Lock()  # ending and starting anew exclude each other
        self._calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix=job.name)
        board.add(job.name, job.title)
        self._actor = self._launch()
        self.ready = Promise(job.name, self._calls.submit(self._outlive, lambda: None))

    def call(self, method: str, *arguments: Any) -> Promise:
        """The promise of a call, which is made after those before it and when promises in ``arguments`` are kept."""
        return Promise(self.job.name, self._calls.submit(self._call, method, arguments))

    def kill(self) -> None:
        """End the process, in the middle of what it does. Calls that it has not answered fail."""
        import ray

        with self._lock:
            self._ended = True
            ray.kill(self._actor)

    def join(self) -> None:
        """Wait until every call of a job that was killed has its result, or its error."""
        self._calls.shutdown(wait=True, cancel_futures=True)

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        given = [self._kept(each) if isinstance(each, Promise) else each for each in arguments]
        return self._outlive(partial(self._ask, method, given))

    def _outlive(self, ask: Callable[[], Any]) -> Any:
        """What ``ask`` returns when it is asked of an actor that lives until it has answered."""
        from ray.exceptions import RayTaskError

        while True:
            try:
                self._wait_for_actor()
                return ask()
            except RayTaskError as error:
                raise error.cause from error
            except _deaths() as death:
                # What a job's constructor raised comes wrapped twice; a process that was killed has no such cause.
                failed = death.args[0] if death.args else None
                if isinstance(failed, RayTaskError):
                    raise failed.cause from death
                self._revive(death)

    def _kept(self, promise: Promise) -> Any:
        if not promise.future.done():
            self._board.waiting(self.job.name, f"waits for {promise.of}")
        return promise.future.result()

    def _wait_for_actor(self) -> None:
        import ray

        if self.pid is None:
            self.pid = ray.get(self._actor.ready.remote())
            self._board.ready(self.job.name)

    def _ask(self, method: str, given: list[Any]) -> Any:
        import ray

        said = " ".join([method.replace("_", " "), *(str(each) for each in given if isinstance(each, int))])
        with self._board.doing(self.job.name, method, *given):
            return ray.get(self._actor.call.options(name=said).remote(method, *given))

    def _revive(self, death: Exception) -> None:
        """Start the job anew.

        Raises:
            JobDiedError: it has died too often.
            CancelledError: it was ended.
        """
        import ray

        name, most = self.job.name, self._tally.most
        with self._lock:
            if self._ended:
                raise CancelledError(f"job '{name}' was ended")
            ray.kill(self._actor)  # it may only be out of reach
            if self._tally.restarts[name] >= most:
                raise JobDiedError(
                    f"job '{self.job.label}' has died again, and `ray.restarts: {most}` in the platform file allows no "
                    f"further start in this run. Ray says: {_reason(death)} The same command goes on from the "
                    "checkpoints. If memory is short, let fewer jobs share a machine, for example: expert_jobs: 1"
                ) from death
            self._tally.restarts[name] += 1
            _logger.warning("job '%s' has died and starts anew from its checkpoints: %s", name, _reason(death))
            self._board.restarted(name)
            self._actor, self.pid = self._launch(), None

    def _launch(self) -> Any:
        import ray

        job = self.job
        self._tally.launches[job.name] += 1
        count = self._tally.launches[job.name]
        named = {"name": job.label if count == 1 else f"{job.label} ({count})", "namespace": self._tally.namespace}
        promised = {"num_cpus": job.resources.cpus or 0, "memory": int(job.resources.memory_gib * _GIB)}
        return ray.remote(_Hosted).options(**named, **promised).remote(job.kind, job.arguments, job.owns)


class _Hosted:
    """What lives in an actor's process: locks that are held until it dies, and the job."""

    def __init__(self, kind: type, arguments: tuple[Any, ...], owns: tuple[Path, ...]) -> None:
        self._held = [own(lock, patience=_HANDOVER_SECONDS) for lock in owns]
        self._job = kind(*arguments)

    def ready(self) -> int:
        """Id of the process, when the constructor has returned."""
        return os.getpid()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._job, method)(*arguments)


def _deaths() -> tuple[type[Exception], ...]:
    """What Ray raises for a call whose process, or machine, is gone."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
    )


def _reason(death: Exception) -> str:
    """The line of Ray's message that says why, no longer than a line is."""
    lines = [line.strip() for line in str(death).splitlines()]
    told = next((line for line in lines if line.startswith("The actor is dead because")), lines[0] if lines else "")
    return told if len(told) <= 200 else told[:199] + "…"
