"""Where jobs run: in this process one after the other, or in Ray actors side by side (:mod:`.ray_engine`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pydantic

from hypercast.runtime.board import Board
from streaming.config import Config


class Resources(Config):
    """What a job is promised on the machine that it is placed on.

    Attributes:
        cpus: cores; null for as many as the job has threads. It decides about placement, and takes nothing away.
        memory_gib: GiB of main memory; 0 for none promised.
    """

    cpus: float | None = pydantic.Field(default=None, ge=0)
    memory_gib: float = pydantic.Field(default=0.0, ge=0)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job to start: an object that owns its state, checkpoints it, and resumes on construction.

    Attributes:
        kind, arguments: its class, and what that is constructed with.
        name: unique in a run, for people and for metrics.
        title: what it works on, for people.
        owns: lock files of what nobody else may write to while it lives.
        resources: what it asks for.
    """

    kind: type
    arguments: tuple[Any, ...] = ()
    name: str = "job"
    title: str = ""
    owns: tuple[Path, ...] = ()
    resources: Resources = field(default_factory=lambda: Resources(cpus=0))

    @property
    def label(self) -> str:
        """Name and title, as ``experts-0: Coupon+Display``."""
        return f"{self.name}: {self.title}" if self.title else self.name


class Engine(Protocol):
    """Starts jobs and calls their methods. Calls to one job run in the order in which they were made."""

    def start(self, job: Job) -> Any:
        """A handle of a new job."""
        ...

    def call(self, handle: Any, method: str, *arguments: Any) -> Any:
        """A promise of ``method``'s result; ``arguments`` may be promises and are waited for.

        What a call does must be the same whether it is made once or, after its job has died, again.
        """
        ...

    def result(self, promise: Any) -> Any:
        """The result of a promise, or the error that the job raised."""
        ...

    def stop(self, handle: Any) -> None:
        """End a job. Its calls have been waited for."""
        ...

    def restarts(self) -> Mapping[str, int]:
        """How often each job that has died was started anew, by name."""
        ...

    def close(self) -> None:
        """End all jobs."""
        ...


class LocalEngine:
    """Every call is made at once, in this process; a promise is its result."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board()

    def start(self, job: Job) -> tuple[str, Any]:
        self._board.add(job.name, job.title)
        return job.name, job.kind(*job.arguments)

    def call(self, handle: tuple[str, Any], method: str, *arguments: Any) -> Any:
        name, job = handle
        with self._board.doing(name, method, *arguments[:1]):
            return getattr(job, method)(*arguments)

    def result(self, promise: Any) -> Any:
        return promise

    def stop(self, handle: tuple[str, Any]) -> None:
        return None

    def restarts(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        return None
