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
from typing import IO, Any, NamedTuple, Protocol

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
    """The file; see the module. Any number of processes may add to it at a time, and any number of threads of each.

    As long as it is open no process trims it: one that has it open would go on in a file that is no longer there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open = _lock_file(path)
        fcntl.flock(self._open, fcntl.LOCK_SH)  # waits for one that trims
        self._file = path.open("a+b", buffering=0)  # or what could not be written would be, with the next post
        self._adding = threading.Lock()  # threads share the file, and so its lock

    def add(self, events: Sequence[Mapping[str, int]]) -> None:
        """Add one post and return when it is on disk.

        Raises:
            StoreError: the disk is full or broken; the journal is as it was.
        """
        line = json.dumps([[event[name] for name in COLUMNS] for event in events], separators=(",", ":")) + "\n"
        with self._adding, told_of_the_disk(StoreError, self.path):
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                before = self._whole()
                os.ftruncate(self._file.fileno(), before)
                try:
                    left = line.encode()
                    while left:
                        left = left[self._file.write(left) :]
                    os.fsync(self._file.fileno())
                except OSError:
                    os.ftruncate(self._file.fileno(), before)
                    raise
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self._file.close()
        self._open.close()

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


def trim(path: Path, *, since: int) -> bool:
    """Rewrite a journal: what is older than ``since`` (microseconds UTC) is in the data set.

    A last line that a killed process has not finished is dropped: it was never acknowledged. So are lines that are no
    posts.

    Returns: whether it did; not while any process has it open.
    """
    if not path.exists():
        return True
    with _lock_file(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        kept, bad, start = [], 0, 0
        while (piece := read(path, start)).end > start:
            start, bad = piece.end, bad + piece.bad
            kept += [event for event in piece.events if event[COLUMNS.index("time")] >= since]
        if bad:
            _logger.warning("%s: %d lines are no posts and are dropped", path, bad)
        text = "".join(json.dumps([event], separators=(",", ":")) + "\n" for event in kept)
        write_file(path, lambda partial: _write(partial, text))
    return True


class Piece(NamedTuple):
    """Of a journal. ``events``: rows of :data:`COLUMNS`; ``bad``: lines that are no posts; ``end``: where it ends."""

    events: list[list[int]]
    bad: int
    end: int


def read(path: Path, start: int) -> Piece:
    """The whole lines from byte ``start`` on, some at a time. What is no post, as a damaged disk leaves, is skipped."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # a post that is being added may yet be taken back
        file.seek(start)
        piece = file.read(PIECE)
        while piece and b"\n" not in piece:  # a post longer than a piece
            more = file.read(PIECE)
            if not more:
                break
            piece += more
    *lines, rest = piece.split(b"\n")
    posts = [_post(line) for line in lines]
    events = [event for post in posts if post is not None for event in post]
    return Piece(events=events, bad=posts.count(None), end=start + len(piece) - len(rest))


def _lock_file(path: Path) -> IO[bytes]:
    """Held shared by all that have the journal open, and by whoever trims it alone."""
    return path.with_suffix(".lock").open("ab")


def _post(line: bytes) -> list[list[int]] | None:
    """The engagements of a line; None if it is no post."""
    try:
        rows = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) and all(map(_is_engagement, rows)) else None


def _is_engagement(row: Any) -> bool:
    return isinstance(row, list) and len(row) == len(COLUMNS) and all(map(_is_int64, row))


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


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
                piece = read(self._journal.path, self._read)
                if piece.end == self._read:
                    return
                row = np.array(piece.events, np.int64).reshape(len(piece.events), len(COLUMNS))
                new = row[row[:, COLUMNS.index("time")] >= self._since]
                taken = self._state.observe(dict(zip(COLUMNS, new.T, strict=True)))
                self._read = piece.end  # only now: what could not be observed is read again
                self._metrics.events.labels("observed").inc(taken)
                self._metrics.events.labels("old").inc(len(row) - len(new))
                self._metrics.events.labels("bad").inc(piece.bad)
                if piece.bad:
                    _logger.warning("%s: %d lines are no posts and are skipped", self._journal.path, piece.bad)

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()
        self._journal.close()

    def _run(self) -> None:
        told = ""
        while not self._ended.wait(self._every):
            try:
                self.catch_up()
                told = ""
            except Exception as error:  # the service goes on with what it knows
                self._metrics.events.labels("failed").inc()
                if repr(error) != told:  # once, and not ten times a second
                    told = repr(error)
                    _logger.exception("engagements of the journal cannot be observed")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")
