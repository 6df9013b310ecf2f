"""What every job of a run does right now, and who waits for whom: for people who look on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

IDLE = "idle"
"""What a job does that has no call to answer."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One job.

    Attributes:
        name, title: as in :class:`hypercast.runtime.engine.Job`.
        doing: what it does, or waits for, in words.
        seconds: for how long it has done so.
        window: the last that it has finished, None before the first.
        per_minute: windows finished a minute since it began its first.
        restarts: how often it has died and was started anew.
    """

    name: str
    title: str
    doing: str = "starting"
    seconds: float = 0.0
    window: int | None = None
    per_minute: float = 0.0
    restarts: int = 0


class Board:
    """One line a job, written by the engine from any thread and read from any other."""

    COUNTED = "run_window"
    """The method whose calls finish windows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._since: dict[str, float] = {}
        self._finished: dict[str, int] = {}
        self._begun: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, title: str = "") -> None:
        """A job was started; of one that was stopped before, the counts go on."""
        with self._lock:
            known = self._lines.get(name, Line(name=name, title=title))
            self._lines[name] = replace(known, title=title, doing="starting")
            self._since[name] = self._clock()

    def waiting(self, name: str, reason: str) -> None:
        """The job has nothing to do until what ``reason`` says."""
        self._change(name, doing=reason)

    def ready(self, name: str) -> None:
        """The job is there, and can answer calls."""
        self._change(name, doing=IDLE)

    def restarted(self, name: str) -> None:
        """The job has died and is started anew."""
        self._change(name, doing="restarting", restarts=self._lines[name].restarts + 1)

    @contextmanager
    def doing(self, name: str, method: str, *arguments: Any) -> Iterator[None]:
        """Inside, the job works on a call; a window counts as finished if the call returns."""
        said = " ".join([method.replace("_", " "), *(str(each) for each in arguments if isinstance(each, int))])
        counts = method == self.COUNTED
        if counts:
            self._begun.setdefault(name, self._clock())
        self._change(name, doing=said)
        yield
        if counts:
            self._finished[name] = self._finished.get(name, 0) + 1
            minutes = max(self._clock() - self._begun[name], 1e-9) / 60
            window = next((each for each in arguments if isinstance(each, int)), None)
            self._change(name, window=window, per_minute=self._finished[name] / minutes)
        self._change(name, doing=IDLE)

    def lines(self) -> list[Line]:
        """One a job, in the order in which they were added. Who is idle and ahead of others waits for the last."""
        with self._lock:
            now = self._clock()
            lines = [replace(line, seconds=now - self._since[name]) for name, line in self._lines.items()]
        last = min(lines, key=lambda line: line.window or 0, default=None)
        return [
            replace(line, doing=f"waits for {last.name}")
            if last is not None and line.doing == IDLE and (line.window or 0) > (last.window or 0)
            else line
            for line in lines
        ]

    def _change(self, name: str, **fields: Any) -> None:
        with self._lock:
            before = self._lines[name]
            self._lines[name] = replace(before, **fields)
            if self._lines[name].doing != before.doing:
                self._since[name] = self._clock()
