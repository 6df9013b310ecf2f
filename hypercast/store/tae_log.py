"""The TAE log: target-aware embeddings and teacher logits, one segment per (snapshot, window).

::

    ROOT/segments/
      FM@0007/
        window=00012.arrow      rows, Arrow IPC, uncompressed, memory-mapped (hypercast.store.segment)
        window=00012.json       facts and SHA-256; written last, makes the segment visible

One call of the foundation model per example serves every expert: all read the same rows, by
``(request_id, candidate_id)``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from hypercast import codec
from hypercast.errors import StoreError
from hypercast.lock import exclusive
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.registry import Snapshot
from hypercast.store import segment as segments
from hypercast.store import status as statuses
from hypercast.store.segment import LOGIT, Segment
from hypercast.store.status import Freshness, Status
from streaming.errors import LeakageError

_OPEN_SEGMENTS = 4


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What was read for C keys.

    Attributes:
        vector: float32 [C, D]; zeros where the status is EXPIRED or MISS. May be a read-only view of the file.
        teacher_logit: float32 [C, T], by task; zeros as above.
        status: uint8 [C], values of :class:`Status`.
        age: int64 [C], microseconds between the snapshot's watermark and the request; 0 where the status is MISS.
        snapshot: the snapshot that was read; None if there was no segment.
        aligned: whether the rows were read in sequence, without a join.
    """

    vector: np.ndarray
    teacher_logit: np.ndarray
    status: np.ndarray
    age: np.ndarray
    snapshot: str | None
    aligned: bool

    @property
    def present(self) -> np.ndarray:
        """Bool [C]: where there is a vector; the mask bit that experts read beside it."""
        return self.status <= Status.STALE

    def counts(self) -> dict[str, int]:
        """Number of keys by status name; all four names are always there."""
        return statuses.count(self.status)


class TaeLog:
    """Segments under one folder. Any number of processes may read while one writes."""

    class Config(Freshness):
        """Ages (seconds) up to which a row is FRESH, and after which it is EXPIRED."""

        def build(self, root: Path | str) -> "TaeLog":
            """The log under ``root``."""
            return TaeLog(root, config=self)

    def __init__(self, root: Path | str, *, config: Config | None = None) -> None:
        self.root = Path(root)
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
            snapshot: the one that computed the rows; its dtype is the vectors'.
            request_id: int64 [C].
            candidate_id: int32 [C].
            item_id: int64 [C].
            time: int64 [C], of the request, microseconds UTC.
            representations: name to float [C, D].
            teacher_logits: task to float [C].

        Raises:
            StoreError: a vector that is not finite in the snapshot's dtype.
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
            columns[name] = codec.encode(vectors, snapshot.dtype)
        for task, logits in teacher_logits.items():
            values = logits.detach().float().cpu().numpy() if isinstance(logits, Tensor) else logits
            columns[LOGIT + task] = pa.array(np.asarray(values, np.float32))
        return pa.table(columns)

    def write(self, *, snapshot: Snapshot, window: int, table: pa.Table, requests_digest: str) -> Segment:
        """Publish the rows of one window; writing the same again returns what exists.

        Args:
            snapshot: the one that computed the rows.
            window: index of the window.
            table: rows in the order of the request log, columns as in :mod:`hypercast.store.segment`.
            requests_digest: ``Dataset.requests_digest(window)``, SHA-256 of the request file.

        Raises:
            LeakageError: a row's time is before the snapshot's watermark (L3).
            StoreError: the table does not fit the snapshot, or the segment exists with other content.
        """
        table, facts = segments.prepare(table, snapshot=snapshot, window=window, requests_digest=requests_digest)
        path = self._path(snapshot.name, window)
        with exclusive(self.root / "segments"):
            path.parent.mkdir(exist_ok=True)
            for left_over in path.parent.glob(".*.partial"):
                left_over.unlink()
            try:
                existing = Segment.open(path.with_suffix(".json"))
            except FileNotFoundError:
                return segments.write(path, table, facts)
            existing.verify()
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
        manifests = [path for path in (self.root / "segments").glob("*/window=*.json") if path.name[0] != "."]
        found = [Segment.open(path) for path in manifests]
        return sorted(found, key=lambda segment: (*parse_snapshot_name(segment.snapshot), segment.window))

    def delete(self, snapshot: str, window: int) -> None:
        """Remove a segment; its rows read as MISS from then on. It is invisible from the first step on.

        Raises:
            StoreError: there is none.
        """
        with exclusive(self.root / "segments"):
            segment = self.segment(snapshot, window)
            segment.manifest_path.unlink()
            segment.path.unlink(missing_ok=True)

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
            requests_digest: of the request file that the keys come from. If it is the segment's and the keys are all
                of its rows in order, they are read in sequence, without a join or (single precision) a copy.

        Raises:
            RegistryError: the pin refuses the segment's lineage, snapshot, width or dtype.
            StoreError: another width than asked for, an unknown representation or task, or a damaged file.
            LeakageError: a request is earlier than the snapshot's watermark (L3).
        """
        segment = self._find(window, pin)
        if segment is None:
            return _all_missing(len(request_id), width, len(tasks))
        _check_request(segment, pin=pin, representation=representation, width=width, tasks=tasks)
        if len(time) and int(time.min()) < segment.facts.watermark:
            row = int(time.argmin())
            raise LeakageError(
                f"{segment.path}: row {row} asked for (request_id {request_id[row]}) has time {time[row]}, before the "
                f"watermark {segment.facts.watermark} of {segment.snapshot} (law L3). Pin an earlier version."
            )
        if segment.facts.rows == 0:
            return _all_missing(len(request_id), width, len(tasks))
        vectors = codec.decode(segment.table.column(representation))
        aligned = requests_digest == segment.requests_digest and _same_keys(segment, request_id, candidate_id)
        if aligned:
            found = np.ones(len(request_id), bool)
            rows: np.ndarray | slice = slice(None)
        else:
            rows = segment.keys.locate(request_id=request_id, candidate_id=candidate_id)
            found = rows >= 0
        age = np.where(found, segment.numpy("age")[rows], 0)
        status = self.config.classify(age)
        status[~found] = Status.MISS
        vector = vectors[rows].astype(np.float32, copy=False)
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
            aligned=aligned,
        )

    def _path(self, snapshot: str, window: int) -> Path:
        return self.root / "segments" / snapshot / f"window={window:05d}.arrow"

    def _find(self, window: int, pin: Pin) -> Segment | None:
        """The segment that ``pin`` reads in ``window``, verified when first opened; None if there is none."""
        if pin.version is not None:
            names = [pin.target]
        else:
            folders = (self.root / "segments").glob(f"{pin.lineage}@*")
            names = sorted((path.name for path in folders), key=parse_snapshot_name, reverse=True)
        for name in names:
            try:
                segment = Segment.open(self._path(name, window).with_suffix(".json"))
            except FileNotFoundError:
                continue
            known = self._open.pop(segment.path, None)
            if known is None or known.sha256 != segment.sha256:
                segment.verify()
                known = segment
            self._open[segment.path] = known  # last: most recently used
            if len(self._open) > _OPEN_SEGMENTS:
                del self._open[next(iter(self._open))]
            return known
        return None


def _check_request(segment: Segment, *, pin: Pin, representation: str, width: int, tasks: Sequence[str]) -> None:
    facts = segment.facts
    stored = facts.representations.get(representation)
    if stored is None:
        raise StoreError(
            f"{segment.path}: no representation {representation!r}; there are {sorted(facts.representations)}."
        )
    pin.check(snapshot=facts.snapshot, representation=representation, width=stored, dtype=facts.dtype)
    if stored != width:
        raise StoreError(
            f"{segment.path}: {representation!r} of {facts.snapshot} has width {stored}, but expert {pin.expert!r} was "
            f"built for {width}. Pin it to a snapshot of that width, or create the expert anew."
        )
    unknown = [task for task in tasks if task not in facts.tasks]
    if unknown:
        raise StoreError(f"{segment.path}: no teacher logit for task {unknown[0]!r}; there are {facts.tasks}.")


def _same_keys(segment: Segment, request_id: np.ndarray, candidate_id: np.ndarray) -> bool:
    return (
        len(request_id) == segment.facts.rows
        and np.array_equal(segment.numpy("request_id"), request_id)
        and np.array_equal(segment.numpy("candidate_id"), candidate_id)
    )


def _all_missing(rows: int, width: int, tasks: int) -> Embeddings:
    return Embeddings(
        vector=np.zeros((rows, width), np.float32),
        teacher_logit=np.zeros((rows, tasks), np.float32),
        status=np.full(rows, Status.MISS, np.uint8),
        age=np.zeros(rows, np.int64),
        snapshot=None,
        aligned=False,
    )
