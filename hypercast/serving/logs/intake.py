"""Engagements as they come: written to a journal, then seen by every process that serves from it.

``JOURNAL`` is one file of lines, one a post, only ever added to while a service runs. An engagement is acknowledged
when it is on disk. Every process reads on from where it stands, so that replicas on one machine see the same, and a
service that starts again knows what the one before it knew. What the data set itself holds by then is left out.
"""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hypercast.errors import StoreError, told_of_the_disk
from hypercast.serving.metrics import Metrics
from streaming.files import write_file

_logger = logging.getLogger(__name__)

COLUMNS = ("user_id", "item_id", "time", "surface", "action")
PIECE = 1 << 22
"""Bytes of the journal that are read at once."""


class Observer(Protocol):
    """Takes engagements in (:class:`hypercast.serving.features.state.FeatureState`)."""

    def observe(self, engagements: Mapping[str, np.ndarray]) -> int: ...


class Journal:
    """The file; see the module. Any number of processes may add to it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")

    def add(self, events: Sequence[Mapping[str, int]]) -> None:
        """Add one post and return when it is on disk.

        Raises:
            StoreError: the disk is full or broken; the journal is as it was.
        """
        line = json.dumps([[event[name] for name in COLUMNS] for event in events], separators=(",", ":")) + "\n"
        with told_of_the_disk(StoreError, self.path):
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                before = self._whole()
                os.ftruncate(self._file.fileno(), before)
                try:
                    self._file.write(line.encode())
                    self._file.flush()
                    os.fsync(self._file.fileno())
                except OSError:
                    os.ftruncate(self._file.fileno(), before)
                    raise
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def read(self, start: int) -> tuple[list[list[int]], int]:
        """Engagements of the whole lines from byte ``start`` on, some at a time, and the byte where they end."""
        with self.path.open("rb") as file:
            file.seek(start)
            piece = file.read(PIECE)
            while piece and b"\n" not in piece:  # a post longer than a piece
                more = file.read(PIECE)
                if not more:
                    break
                piece += more
        whole = piece[: piece.rfind(b"\n") + 1]
        return [event for line in whole.splitlines() for event in json.loads(line)], start + len(whole)

    def close(self) -> None:
        self._file.close()

    def _whole(self) -> int:
        """Bytes up to the end of the last whole line: a process that was killed may have left the beginning of one."""
        end = os.fstat(self._file.fileno()).st_size
        while end:
            start = max(0, end - PIECE)
            piece = os.pread(self._file.fileno(), end - start, start)
            if b"\n" in piece:
                return start + piece.rfind(b"\n") + 1
            end = start
        return 0


def trim(path: Path, *, since: int) -> None:
    """Rewrite a journal that nobody has open: what is older than ``since`` (microseconds UTC) is in the data set.

    A last line that a killed process has not finished is dropped: it was never acknowledged.
    """
    if not path.exists():
        return
    journal, kept, start = Journal(path), [], 0
    while True:
        events, end = journal.read(start)
        if end == start:
            break
        start = end
        kept += [event for event in events if event[COLUMNS.index("time")] >= since]
    journal.close()
    text = "".join(json.dumps([event], separators=(",", ":")) + "\n" for event in kept)
    write_file(path, lambda partial: _write(partial, text))


class Intake:
    """Adds posts to the journal, and lets the state observe all that is there.

    Args:
        journal: of the service.
        state: observes.
        since: microseconds UTC; what is older is taken to be in the data set that the state began with.
        every: seconds between two looks for what other processes have added.
    """

    def __init__(self, *, journal: Journal, state: Observer, since: int, every: float, metrics: Metrics) -> None:
        self._journal, self._state, self._since, self._every, self._metrics = journal, state, since, every, metrics
        self._read, self._lock = 0, threading.Lock()
        self.catch_up()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def take(self, events: Sequence[Mapping[str, int]]) -> None:
        """Return when the engagements are on disk and the next question sees them.

        Raises:
            StoreError: they cannot be written.
        """
        self._journal.add(events)
        self.catch_up()

    def catch_up(self) -> None:
        """Observe what has been added to the journal, by whomever."""
        with self._lock:
            while True:
                events, end = self._journal.read(self._read)
                if end == self._read:
                    return
                self._read = end
                row = np.array(events, np.int64).reshape(len(events), len(COLUMNS))
                new = row[row[:, COLUMNS.index("time")] >= self._since]
                taken = self._state.observe(dict(zip(COLUMNS, new.T, strict=True)))
                self._metrics.events.labels("observed").inc(taken)
                self._metrics.events.labels("old").inc(len(row) - len(new))

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()
        self._journal.close()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self.catch_up()
            except Exception:  # the service goes on with what it knows
                self._metrics.events.labels("failed").inc()
                _logger.exception("engagements of the journal cannot be observed")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")
