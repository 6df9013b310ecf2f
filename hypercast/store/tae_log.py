"""The TAE log: target-aware embeddings and teacher logits, one segment per (snapshot, window).

::

    ROOT/segments/
      FM@0007/
        window=00012.arrow      rows, Arrow IPC, uncompressed, memory-mapped (hypercast.store.segment)
        window=00012.json       facts, SHA-256 and a digest of itself; written last, makes the segment visible

One call of the foundation model per example serves every expert: all read the same rows, by
``(request_id, candidate_id)``. Segments of several snapshots stand side by side for one window; any window can be
filled in later, by any snapshot whose watermark is not after the window's requests.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from hypercast.codec import arrow
from hypercast.errors import StoreError
from hypercast.pins import Pin, check_name, parse_snapshot_name
from hypercast.registry import Snapshot
from hypercast.store import segment as segments
from hypercast.store import segment_rows, tae_upkeep
from hypercast.store.embeddings import Embeddings
from hypercast.store.engine import Damage
from hypercast.store.segment import LOGIT, Segment
from hypercast.store.status import Freshness, Status
from streaming import files
from streaming.errors import LeakageError

_OPEN_SEGMENTS = 4


class TaeLog:
    """Segments under one folder. Any number of processes may read while one writes."""

    class Config(Freshness):
        """Ages (seconds) up to which a row is FRESH, and after which it is EXPIRED."""

        def build(self, root: Path | str) -> "TaeLog":
            """The log under ``root``."""
            return TaeLog(root, config=self)

    def __init__(self, root: Path | str, *, config: Config | None = None) -> None:
        self.root = Path(root)
        self._folder = self.root / "segments"
        self.config = config or TaeLog.Config()
        self._open: dict[Path, Segment] = {}

    def rows(
        self,
        *,
        snapshot: Snapshot,
        request_id: np.ndarray,
        candidate_id: np.ndarray,
        item_id: np.ndarray,
        time: np.ndarray,
        representations: Mapping[str, np.ndarray | Tensor],
        teacher_logits: Mapping[str, np.ndarray | Tensor],
    ) -> pa.Table:
        """A table that :meth:`write` accepts.

        Args:
            snapshot: the one that computed the rows; its dtype is the vectors' codec.
            request_id: int64 [C].
            candidate_id: int32 [C].
            item_id: int64 [C].
            time: int64 [C], of the request, microseconds UTC.
            representations: name to float [C, D].
            teacher_logits: task to float [C].

        Raises:
            StoreError: a vector that the snapshot's codec cannot hold, or columns that differ in length.
        """
        age = np.asarray(time, np.int64) - snapshot.watermark
        columns: dict[str, pa.Array] = {
            "request_id": pa.array(request_id, pa.int64()),
            "candidate_id": pa.array(candidate_id, pa.int32()),
            "item_id": pa.array(item_id, pa.int64()),
            "time": pa.array(np.asarray(time, np.int64)).cast(segments.TIME),
            "snapshot": pa.DictionaryArray.from_arrays(np.zeros(len(age), np.int32), [snapshot.name]),
            "status": pa.array(self.config.classify(age).astype(np.int8)),
            "age": pa.array(age),
        }
        for name, vectors in representations.items():
            columns[name] = arrow.encode(vectors, snapshot.dtype)
        for task, logits in teacher_logits.items():
            values = logits.detach().float().cpu().numpy() if isinstance(logits, Tensor) else logits
            columns[LOGIT + task] = pa.array(np.asarray(values, np.float32))
        return segment_rows.join(columns, where=f"rows of {snapshot.name}")

    def write(self, *, snapshot: Snapshot, window: int, table: pa.Table, requests_digest: str) -> Segment:
        """Publish the rows of one window; writing the same again returns what exists.

        Args:
            snapshot: the one that computed the rows.
            window: index of the window.
            table: rows in the order of the request log, columns as in :mod:`hypercast.store.segment`.
            requests_digest: ``Dataset.requests_digest(window)``, SHA-256 of the request file.

        Raises:
            LeakageError: a row's time is before the snapshot's watermark (L3).
            StoreError: the table does not fit the snapshot, the segment exists with other content, or the disk is full
                or read-only; then nothing is left of it.
        """
        table, facts = segment_rows.prepare(table, snapshot=snapshot, window=window, requests_digest=requests_digest)
        path = self._path(snapshot.name, window)
        with tae_upkeep.writing(self._folder):
            path.parent.mkdir(exist_ok=True)
            files.fsync_directory(path.parent.parent)
            existing = tae_upkeep.load(path.with_suffix(".json"))
            if existing is None:
                return segments.write(path, table, facts)
            if existing.facts == facts and existing.table.equals(table):
                return existing
            raise StoreError(
                f"{path}: {snapshot.name} has published window {window} already, with other content. Publish with a "
                f"newer snapshot, or delete the segment first: TaeLog.delete({snapshot.name!r}, {window})."
            )

    def segment(self, snapshot: str, window: int) -> Segment:
        """The segment of a snapshot's name and a window.

        Raises:
            StoreError: there is none.
        """
        found = self.find(snapshot, window)
        if found is None:
            raise StoreError(
                f"{self.root}: {snapshot} has not published window {window}; it has published windows "
                f"{[other.window for other in self.segments() if other.snapshot == snapshot]}. "
                "Publish it: hypercast run PLATFORM.yaml."
            )
        return found

    def find(self, snapshot: str, window: int) -> Segment | None:
        """The segment of a snapshot's name and a window, or None if there is none."""
        parse_snapshot_name(snapshot)
        try:
            return Segment.open(self._path(snapshot, window).with_suffix(".json"))
        except FileNotFoundError:
            return None

    def segments(self) -> list[Segment]:
        """All segments, by lineage, version and window."""
        found = []
        for path in tae_upkeep.manifests(self._folder):
            with suppress(FileNotFoundError):  # deleted since it was listed
                found.append(Segment.open(path))
        return sorted(found, key=lambda segment: (*parse_snapshot_name(segment.snapshot), segment.window))

    def delete(self, snapshot: str, window: int) -> None:
        """Remove a segment; its rows read as MISS from then on. It is invisible from the first step on.

        Raises:
            StoreError: there is none, or the disk is read-only.
        """
        with tae_upkeep.writing(self._folder):
            tae_upkeep.remove(self.segment(snapshot, window))

    def prune(self, lineage: str, *, keep: Collection[str]) -> int:
        """Remove the segments of all snapshots of ``lineage`` but those named in ``keep``; returns bytes freed.

        Experts that are yet to learn from a window need the segment that they predicted it with.

        Raises:
            RegistryError: not a lineage's or a snapshot's name.
            StoreError: ``keep`` names a snapshot of another lineage, a segment is damaged, or the disk is read-only.
        """
        check_name(lineage, what="lineage")
        for name in keep:
            if parse_snapshot_name(name)[0] != lineage:
                raise StoreError(f"{self.root}: prune of {lineage} would keep {name}, a snapshot of another lineage.")
        with tae_upkeep.writing(self._folder) as freed:
            removed = [
                segment
                for segment in self.segments()
                if parse_snapshot_name(segment.snapshot)[0] == lineage and segment.snapshot not in keep
            ]
            freed += sum(tae_upkeep.remove(segment) for segment in removed)
            return freed + tae_upkeep.collect(self._folder)

    def collect(self) -> int:
        """Remove what killed writers left: unfinished files, rows without a manifest, empty folders. Bytes freed.

        Raises:
            StoreError: the disk is read-only.
        """
        with tae_upkeep.writing(self._folder) as freed:
            return freed

    def verify(self) -> list[Damage]:
        """Read everything and compare with its digests; empty if all is well. Writers need not wait."""
        return tae_upkeep.verify(self._folder)

    def read(
        self,
        *,
        window: int,
        pin: Pin,
        request_id: np.ndarray,
        candidate_id: np.ndarray,
        time: np.ndarray,
        width: int,
        tasks: Sequence[str],
        representation: str = "penultimate",
        requests_digest: str | None = None,
    ) -> Embeddings:
        """Vectors and teacher logits of C keys of one window, in the order asked for.

        A fixed pin reads the segment of its snapshot; one that follows its lineage reads the newest version's. Keys
        without a row, and all keys if there is no segment, are MISS: counted, not an error.

        Args:
            window: index of the window.
            pin: of the expert that reads.
            request_id: int64 [C].
            candidate_id: int32 [C].
            time: int64 [C], of the requests, microseconds UTC.
            width: D, which the expert was built for.
            tasks: T tasks whose teacher logits are wanted, in this order.
            representation: name of the vectors.
            requests_digest: ``Dataset.requests_digest(window)`` of the request file that the keys come from, to refuse
                rows that were published for another one; None where there is no file.

        Keys that are all rows in order are read in sequence, without a join or (codec ``float32``) a copy.

        Raises:
            RegistryError: the pin refuses the segment's lineage, snapshot, width or codec.
            StoreError: another width than asked for, an unknown representation or task, another request file than the
                segment was published for, or a damaged file.
            LeakageError: a request is earlier than the snapshot's watermark (L3).
        """
        segment = self._find(window, pin)
        if segment is None:
            return Embeddings.missing(len(request_id), width=width, tasks=len(tasks))
        segment.check_read(pin=pin, representation=representation, width=width, tasks=tasks)
        if requests_digest not in (None, segment.requests_digest):
            raise StoreError(
                f"{segment.path}: published for requests with SHA-256 {segment.requests_digest}, but those of window "
                f"{window} have {requests_digest}: the data set has changed since. {segment.remedy}"
            )
        if len(time) and int(time.min()) < segment.facts.watermark:
            row = int(time.argmin())
            raise LeakageError(
                f"{segment.path}: row {row} asked for (request_id {request_id[row]}) has time {time[row]}, before the "
                f"watermark {segment.facts.watermark} of {segment.snapshot} (law L3). Pin an earlier version."
            )
        if segment.facts.rows == 0:
            return Embeddings.missing(len(request_id), width=width, tasks=len(tasks))
        located = segment.locate(request_id=request_id, candidate_id=candidate_id)
        found = np.ones(len(request_id), bool) if located is None else located >= 0
        rows: np.ndarray | slice = slice(None) if located is None else located
        age = np.where(found, segment.numpy("age")[rows], 0)
        status = self.config.classify(age)
        status[~found] = Status.MISS
        vector = segment.vectors(representation, rows)
        teacher_logit = np.empty((len(age), len(tasks)), np.float32)
        for column, task in enumerate(tasks):
            teacher_logit[:, column] = segment.numpy(LOGIT + task)[rows]
        absent = status > Status.STALE
        if absent.any():
            vector = np.where(absent[:, None], np.float32(0), vector)
            teacher_logit[absent] = 0
        return Embeddings(
            vector=vector,
            teacher_logit=teacher_logit,
            status=status,
            age=age,
            snapshot=segment.snapshot,
            aligned=located is None,
        )

    def _path(self, snapshot: str, window: int) -> Path:
        return self._folder / snapshot / f"window={window:05d}.arrow"

    def _find(self, window: int, pin: Pin) -> Segment | None:
        """The segment that ``pin`` reads in ``window``, verified when first opened; None if there is none."""
        if pin.version is not None:
            names = [pin.target]
        else:
            names = [name for name in tae_upkeep.snapshots(self._folder) if name.startswith(f"{pin.lineage}@")]
            names.sort(key=parse_snapshot_name, reverse=True)
        for name in names:
            path = self._path(name, window)
            # What is known has its rows mapped and its keys sorted.
            segment = tae_upkeep.load(path.with_suffix(".json"), known=self._open.pop(path, None))
            if segment is None:
                continue
            self._open[segment.path] = segment  # last: most recently used
            if len(self._open) > _OPEN_SEGMENTS:
                del self._open[next(iter(self._open))]
            return segment
        return None
