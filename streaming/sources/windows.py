"""Messages into windows of event time, by a rule under which a log has one outcome in whatever order it is read.

A partition's **clock** is the largest event time that it has given so far. A message is **late** if its partition's
clock had passed the end of its window by the allowed lateness before it came. A window is **ripe** when that is so of
the clocks of all partitions: whatever comes for it after that is late by its own partition's clock already. So which
messages a window holds depends on the order within partitions only, which is the log's own, and not on how the reading
of several happened to be interleaved. Partitions that are set aside as idle are the exception, see :meth:`idle`.

Copies of a message (the same ``request_id``, ``engagement_id``, or label of a candidate) count once; of copies that
differ, the one in the first partition and at the lowest offset counts and the others are put into quarantine.
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from streaming.dataset import Window
from streaming.sources.ledger import Ledger, Log
from streaming.sources.messages import Message
from streaming.sources.positions import FOREVER, NEVER, Partition, Position, Positions

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Held:
    """A message in an open window, or one label of it, and where it came from."""

    at: tuple[Partition, int]
    row: Any


@dataclass
class OpenWindow:
    """What has come for a window so far.

    Attributes:
        requests, engagements: messages' rows by id.
        labels: ``(request_time, time, label)`` by ``(request_id, candidate_id, task)``.
        copies: messages, or labels of them, that were there already.
        needs: by partition, the first offset that it has given for this window and the clock before it.
    """

    requests: dict[Key, Held] = field(default_factory=dict)
    engagements: dict[Key, Held] = field(default_factory=dict)
    labels: dict[Key, Held] = field(default_factory=dict)
    copies: int = 0
    needs: dict[Partition, tuple[int, int]] = field(default_factory=dict)


class WindowAssembler:
    """Collects the messages of windows that are still open.

    Args:
        windows: all windows that there are, in order.
        sealed: how many of them are sealed already.
        lateness: by how much a partition's clock may be ahead of a message, microseconds.
        positions: where reading begins, of every partition that is read.
        ledger: takes what is late or contradicts what came before.
    """

    def __init__(
        self, *, windows: Sequence[Window], sealed: int, lateness: int, positions: Positions, ledger: Ledger
    ) -> None:
        self._windows, self._lateness, self._ledger = windows, lateness, ledger
        self._starts = dict(positions)
        self._clock = {partition: position.latest for partition, position in positions.items()}
        self._next = {partition: position.offset for partition, position in positions.items()}
        self._open: dict[int, OpenWindow] = {}
        self._aside: frozenset[Partition] = frozenset()
        self.sealed = sealed

    @property
    def ended(self) -> bool:
        """Whether every partition has ended."""
        return all(clock == FOREVER for clock in self._clock.values())

    @property
    def ripe(self) -> Window | None:
        """The next window, if nothing can come for it any more."""
        clocks = [clock for partition, clock in self._clock.items() if partition not in self._aside]
        if self.sealed == len(self._windows) or not clocks:
            return None
        following = self._windows[self.sealed]
        return following if min(clocks) >= following.end + self._lateness else None

    def idle(self, partitions: Collection[Partition]) -> None:
        """Let windows ripen without these partitions, which have had nothing to give for long.

        If they give something for a window that was sealed meanwhile, it is late: what is late then depends on when it
        was read.
        """
        self._aside = frozenset(partitions)

    def begin(self, partition: Partition, offset: int) -> None:
        """Learn which is the first offset of a partition that was read from its beginning."""
        self._starts[partition] = Position(begin=offset, offset=offset, latest=NEVER, read=offset)
        self._next[partition] = offset

    def skip(self, partition: Partition, offset: int) -> None:
        """Pass over a message that cannot be used."""
        self._next[partition] = offset + 1

    def add(self, partition: Partition, offset: int, message: Message) -> None:
        """Put a message into its window, or note that it is late."""
        before, self._next[partition] = self._clock[partition], offset + 1
        self._clock[partition] = FOREVER if message.kind == "end" else max(before, message.time)
        if message.kind == "end":
            return
        if (place := self._place(message.time)) < 0:
            self._note("quarantine", partition, offset, "before the first window", message)
            return
        closed = place < self.sealed
        if closed and offset < self._starts[partition].read:
            return  # the window that it belongs to has it, or the ledger has
        if closed or (place < len(self._windows) and before >= self._windows[place].end + self._lateness):
            self._note("late", partition, offset, f"window {self._windows[place].index} was closed", message)
            return
        opened = self._open.setdefault(place, OpenWindow())
        opened.needs.setdefault(partition, (offset, before))
        if place < len(self._windows):  # what is beyond the last window waits in the log until there is one for it
            self._hold(opened, message, (partition, offset))

    def take(self) -> OpenWindow:
        """What the ripe window holds; it is closed from now on."""
        self.sealed += 1
        return self._open.pop(self.sealed - 1, OpenWindow())

    def positions(self) -> Positions:
        """Where to go on after a restart, given that the windows taken are kept."""
        return {partition: self._position(partition) for partition in self._clock}

    def _position(self, partition: Partition) -> Position:
        begin, read = self._starts[partition].begin, max(self._next[partition], self._starts[partition].read)
        needed = [opened.needs[partition] for opened in self._open.values() if partition in opened.needs]
        offset, latest = min(needed, default=(self._next[partition], self._clock[partition]))
        return Position(begin=begin, offset=offset, latest=latest, read=read)

    def _place(self, time: int) -> int:
        """Which window holds ``time``, counted from 0; -1 before the first, their number beyond the last."""
        if time >= self._windows[-1].end:
            return len(self._windows)
        return bisect_right(self._windows, time, key=lambda window: window.start) - 1

    def _hold(self, opened: OpenWindow, message: Message, at: tuple[Partition, int]) -> None:
        row = message.row
        if message.kind == "labels":
            for candidate, task, label in row["labels"]:
                said = (row["request_time"], message.time, float(label))
                self._put(opened, opened.labels, (message.id, candidate, task), Held(at, said), message)
        else:
            rows = opened.requests if message.kind == "request" else opened.engagements
            self._put(opened, rows, (message.id,), Held(at, row), message)

    def _put(self, opened: OpenWindow, rows: dict[Key, Held], key: Key, new: Held, message: Message) -> None:
        old = rows.get(key)
        if old is None:
            rows[key] = new
            return
        first, second = sorted((old, new), key=lambda held: held.at)
        rows[key] = first
        if first.row == second.row:
            opened.copies += 1
        else:
            self._note("quarantine", *second.at, "repeats an id with other content", message)

    def _note(self, log: Log, partition: Partition, offset: int, reason: str, message: Message) -> None:
        self._ledger.note(log, partition, offset, reason, kind=message.kind, id=message.id, time=message.time)
