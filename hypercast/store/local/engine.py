"""The engine of one machine.

Rows that are put wait in memory, sorted; many at once go to a file without a name. ``commit`` makes a segment of them
and then names it in the manifest, which is the moment from which others see them. Too many segments are merged. Any
number of processes read, without a lock; those who write wait for each other. What a process that was killed left
behind is removed by the next one that writes.
"""

import logging
import threading
from pathlib import Path

import numpy as np
import pydantic

from hypercast.errors import StoreError
from hypercast.pins import parse_snapshot_name
from hypercast.store import engine
from hypercast.store.engine import Bytes, Damage, Integers, Layout, Rows, Stats
from hypercast.store.local import records, segment, verification
from hypercast.store.local.delta import WHERE, Delta
from hypercast.store.local.reader import Reader
from hypercast.store.local.records import COMPUTED_AT, HEAD, HISTORY_END, WORD, Columns
from hypercast.store.local.run import Run, find_latest, in_memory
from hypercast.store.local.writer import Writer
from streaming.config import Config as BaseConfig

_logger = logging.getLogger(__name__)


class LocalEngine:
    """See :class:`hypercast.store.engine.Engine`."""

    class Config(BaseConfig):
        """Where, and when to merge.

        Attributes:
            path: folder; made by the first commit.
            max_segments: of one snapshot; a commit that makes more of them merges. Every one costs each read a look.
            bulk_bytes: of vectors in one put; as many or more go to the disk at once, fewer wait for the commit.
        """

        path: Path
        max_segments: int = pydantic.Field(default=4, ge=1)
        bulk_bytes: int = pydantic.Field(default=16 << 20, ge=1)

        def build(self) -> "LocalEngine":
            """An engine on the folder as it is."""
            return LocalEngine(config=self)

    def __init__(self, *, config: Config) -> None:
        self._root, self._where = config.path, str(config.path)
        self._reader = Reader(config.path)
        self._writer = Writer(config.path, self._reader, max_segments=config.max_segments)
        self._bulk_bytes = config.bulk_bytes
        self._delta: dict[str, Delta] = {}
        self._lock = threading.RLock()

    def put(
        self,
        snapshot: str,
        layout: Layout,
        *,
        key: Integers,
        computed_at: Integers,
        history_end: Integers,
        payload: Bytes,
    ) -> None:
        with self._lock:
            arrays = engine.check_put(
                self._where, snapshot, layout, self.layout(snapshot), arrays=(key, computed_at, history_end, payload)
            )
            if not len(key):
                return
            segment.check_header(self._where, snapshot, layout)
            run = self._run(snapshot, layout, Columns(*arrays))
            delta = self._delta.get(snapshot)
            self._delta[snapshot] = Delta(layout, (run,)) if delta is None else delta.add(run)

    def _run(self, snapshot: str, layout: Layout, columns: Columns) -> Run:
        """The rows of a put: many of them in a file already, so that neither memory nor ``commit`` has to take them."""
        hash_N = records.hash_of(columns.key)
        rows_M = records.arrange(hash_N, columns.key, columns.computed_at, prune=False)
        hash_M, seal = hash_N[rows_M], records.seal_of(snapshot, layout)
        if len(rows_M) * layout.row_bytes >= self._bulk_bytes:
            chunks = records.pack_chunks(columns, rows_M, hash_M, seal)
            draft = self._writer.draft(snapshot, layout, chunks)
            if draft is not None:
                return draft
        return in_memory(where=WHERE, seal=seal, hash_R=hash_M, record=records.pack_all(columns, rows_M, seal))

    def commit(self, snapshot: str) -> None:
        parse_snapshot_name(snapshot)
        with self._lock:
            delta = self._delta.get(snapshot)
            if delta is None:
                return
            self._writer.append(snapshot, delta.layout, delta.runs)
            del self._delta[snapshot]
            try:
                self._writer.tidy(snapshot)
            except StoreError as error:
                _logger.warning("%s is committed, its segments could not be merged: %s", snapshot, error)

    def get(self, snapshot: str, key: Integers, *, as_of: int | None = None) -> Rows:
        key = engine.check_key(self._where, key)
        # In this order: what is committed in between is seen twice rather than not at all.
        delta, kept = self._delta.get(snapshot), self._reader.snapshot(snapshot)
        layout = kept.layout if kept else delta.layout if delta else None
        runs: tuple[Run, ...] = kept.segments if kept else ()
        if delta is not None and delta.layout == layout:
            runs = (*runs, *delta.runs)
        if layout is None:
            parse_snapshot_name(snapshot)
            return engine.no_rows(len(key), 0)
        found, record = find_latest(runs, key, records.hash_of(key), as_of)
        return Rows(
            found=found,
            computed_at=record[:, COMPUTED_AT],
            history_end=record[:, HISTORY_END],
            payload=record.view(np.uint8)[:, HEAD * WORD : HEAD * WORD + layout.row_bytes],
        )

    def layout(self, snapshot: str) -> Layout | None:
        parse_snapshot_name(snapshot)
        delta, kept = self._delta.get(snapshot), self._reader.manifest().snapshots.get(snapshot)
        if kept is not None:
            return kept.layout
        return None if delta is None else delta.layout

    def snapshots(self) -> list[str]:
        return sorted({*self._delta, *self._reader.manifest().snapshots}, key=parse_snapshot_name)

    def stats(self, snapshot: str) -> Stats:
        parse_snapshot_name(snapshot)
        delta, kept = self._delta.get(snapshot), self._reader.snapshot(snapshot)
        segments, runs = kept.segments if kept else (), delta.runs if delta else ()
        return Stats(
            rows=sum(map(len, (*segments, *runs))),
            bytes=sum(one.bytes for one in segments) + sum(run.record.nbytes for run in runs),
            segments=len(segments) + len(runs),
        )

    def drop(self, snapshot: str) -> None:
        if self.layout(snapshot) is None:
            raise StoreError(engine.cannot_drop(self._where, snapshot, {}))
        with self._lock:
            self._writer.drop(snapshot)
            self._delta.pop(snapshot, None)

    def collect(self) -> int:
        with self._lock:
            return self._writer.collect()

    def compact(self, snapshot: str) -> None:
        """Merge all segments of a snapshot into one; replaced rows go, and all but the latest of each key."""
        parse_snapshot_name(snapshot)
        with self._lock:
            self._writer.compact(snapshot)

    def pointers(self) -> dict[str, str]:
        return dict(self._reader.manifest().pointers)

    def move(self, pointer: str, *, expected: str | None, to: str | None) -> None:
        engine.check_pointer(self._where, pointer)
        if to is not None:
            parse_snapshot_name(to)
        with self._lock:
            self._writer.move(pointer, expected=expected, to=to)

    def verify(self) -> list[Damage]:
        return list(verification.verify(self._root))

    def close(self) -> None:
        self._delta.clear()
        self._reader.forget()
