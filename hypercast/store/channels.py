"""What an engine's readers follow: channels, where they pointed before, and since when.

Pointers are ``LINEAGE/CHANNEL``, and ``LINEAGE/CHANNEL-before`` for the way back of one step; while a channel moves,
``LINEAGE/CHANNEL-left`` names what it leaves, so that who is killed in between loses neither. What is true of a
snapshot since some time (that it was published in a channel, that a window's rows are all there) is a mark: a row
without a vector.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from hypercast.errors import StoreError
from hypercast.pins import check_name, parse_snapshot_name
from hypercast.store import own_keys
from hypercast.store.engine import Engine, Layout

BEFORE, LEFT = "-before", "-left"


class Channels:
    """Pointers and marks of an engine's snapshots.

    All methods raise UnreachableError if the engine is a server that does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def current(self, lineage: str, channel: str) -> str | None:
        """Name of the snapshot that the channel names; None for nothing."""
        return self.engine.pointers().get(_pointer(lineage, channel))

    def publish(self, snapshot: str, channel: str, *, expected: str | None, at: int) -> None:
        """See :meth:`hypercast.store.online.OnlineStore.publish`."""
        pointer = _pointer(parse_snapshot_name(snapshot)[0], channel)
        self.layout(snapshot)
        self.engine.commit(snapshot)
        pointers = self.engine.pointers()
        actual, left = pointers.get(pointer), pointers.get(pointer + LEFT)
        if actual != snapshot:
            if actual is not None and actual == expected:
                self.engine.move(pointer + LEFT, expected=left, to=actual)
                left = actual
            self.engine.move(pointer, expected=expected, to=snapshot)
        if left is not None:
            if left != snapshot:
                self.engine.move(pointer + BEFORE, expected=pointers.get(pointer + BEFORE), to=left)
            self.engine.move(pointer + LEFT, expected=left, to=None)
        # Last: without it the channel has not reached the snapshot, and who was killed publishes once more.
        if self.marked(snapshot, channel) is None:
            self.mark(snapshot, channel, at=at)
            self.engine.commit(snapshot)

    def rollback(self, lineage: str, channel: str) -> str:
        """See :meth:`hypercast.store.online.OnlineStore.rollback`."""
        pointer = _pointer(lineage, channel)
        pointers = self.engine.pointers()
        now = pointers.get(pointer)
        ways = [(way, pointers[way]) for way in (pointer + LEFT, pointer + BEFORE) if way in pointers]
        way, before = next((one for one in ways if one[1] != now), (None, None))
        if way is None or before is None:
            raise StoreError(f"{pointer} names {now or 'nothing'}, and it is not known what it named before.")
        for other, to in ways:
            if other != way:
                self.engine.move(other, expected=to, to=None)
        self.engine.move(pointer, expected=now, to=before)
        self.engine.move(way, expected=before, to=None)
        return before

    def reached(self, lineage: str, channel: str) -> str | None:
        """The newest snapshot with rows that was ever published in the channel: what a rollback leaves is one."""
        versions = reversed(self.versions(lineage))
        return next((name for name in versions if self.marked(name, channel) is not None), None)

    def then(self, lineage: str, channel: str, time: int) -> str | None:
        """The newest snapshot, up to the one that the channel names, that had been published in it by ``time``."""
        now = self.current(lineage, channel)
        versions = self.versions(lineage)
        published = reversed(versions[: versions.index(now) + 1]) if now in versions else ()
        return next((name for name in published if self.marked(name, channel, as_of=time) is not None), None)

    def drop(self, models: Mapping[str, str]) -> list[str]:
        """See :meth:`hypercast.store.online.OnlineStore.drop`."""
        dropped = [name for name, model in models.items() if self._drop(name, model)]
        if dropped:
            self.engine.collect()
        return dropped

    def _drop(self, snapshot: str, model: str) -> bool:
        layout = self.engine.layout(snapshot)
        if layout is None or layout.model != model or self._is_named(snapshot):
            return False
        try:
            self.engine.drop(snapshot)
        except StoreError:
            if self.engine.layout(snapshot) is None or self._is_named(snapshot):
                return False  # somebody else was first
            raise
        return True

    def _is_named(self, snapshot: str) -> bool:
        return snapshot in self.engine.pointers().values()

    def mark(self, snapshot: str, name: str, *, at: int) -> None:
        """Write down that ``name`` is true of a snapshot with rows from ``at`` (microseconds UTC) on."""
        layout = self.layout(snapshot)
        since = np.array([at], np.int64)
        blank = np.zeros((1, layout.row_bytes), np.uint8)
        key = own_keys.of_mark(name)
        self.engine.put(snapshot, layout, key=key, computed_at=since, history_end=since, payload=blank)

    def marked(self, snapshot: str, name: str, *, as_of: int | None = None) -> int | None:
        """Since when ``name`` is true of ``snapshot``, in microseconds UTC; None if it is not (as of then)."""
        rows = self.engine.get(snapshot, own_keys.of_mark(name), as_of=as_of)
        return int(rows.computed_at[0]) if rows.found[0] else None

    def versions(self, lineage: str) -> list[str]:
        """Names of the lineage's snapshots that have rows, oldest first."""
        return [name for name in self.engine.snapshots() if parse_snapshot_name(name)[0] == lineage]

    def layout(self, snapshot: str) -> Layout:
        """Of a snapshot that must have rows.

        Raises:
            StoreError: it has none.
        """
        layout = self.engine.layout(snapshot)
        if layout is None:
            raise StoreError(f"online store: {snapshot} has no rows. Put them first.")
        return layout


@lru_cache(maxsize=1024)
def _pointer(lineage: str, channel: str) -> str:
    check_name(lineage, what="lineage")
    check_name(f"{channel}{BEFORE}", what="channel")
    if channel.endswith((BEFORE, LEFT)):
        raise StoreError(
            f"channel {channel!r}: a name that ends in {BEFORE!r} or {LEFT!r} cannot be used. Example: 'stable'."
        )
    return f"{lineage}/{channel}"
