"""What experts train on of what was served: a TAE log of windows that are over, and whether it is what was logged.

::

    ROOT/parts/       what was served (hypercast.serving.logs.served)
    ROOT/segments/    the TAE log of it, by snapshot and window (hypercast.store.tae_log)
    ROOT/sealed/      a record a window, written last (hypercast.serving.logs.sealed)

A window is sealed once its requests are in the data set. Every candidate that was answered with a vector gets the row
of the first answer that was logged; what was answered without one has none and reads as MISS, as it was when it was
served. If models were swapped within the window, each snapshot has a segment of what it answered, and readers get the
rows of all. A window that is sealed stays as it is: what is logged of it later is not read.

Rows are what the service gave, bit for bit: vectors as float32, zeros for a representation that the answer did not
have. No row expires: the ladder has decided that when it was served.

Shape legend: C candidates that are asked for, S rows served, R width of a representation.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hypercast.codec import arrow
from hypercast.errors import StoreError
from hypercast.lock import exclusive
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.registry import Registry, Snapshot
from hypercast.serving.logs import answers
from hypercast.serving.logs.sealed import FOLDER, Sealed, SealReport
from hypercast.serving.logs.served import VECTOR
from hypercast.store.embeddings import Embeddings
from hypercast.store.segment import LOGIT, as_numpy
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Window
from streaming.workspace import Workspace

NEVER = 1e12
"""Seconds after which rows expire."""


class ServedWindows(TaeLog):
    """The TAE log of what was served, under the folder of a :class:`hypercast.serving.logs.served.ServedLog`."""

    def __init__(self, root: Path | str, *, config: TaeLog.Config | None = None) -> None:
        config = config or TaeLog.Config()
        super().__init__(root, config=config.model_copy(update={"ttl": NEVER}))
        self._sealed: dict[int, Sealed] = {}

    def sealed(self, window: int) -> Sealed | None:
        """The record of the window of that index; None if it is not sealed.

        Raises:
            RegistryError: it is damaged.
        """
        if window not in self._sealed:
            found = Sealed.read(self.root, window)
            if found is None:
                return None
            self._sealed[window] = found
        return self._sealed[window]

    def seal(self, *, window: Window, workspace: Workspace, registry: Registry, published: TaeLog) -> SealReport:
        """Write the segments of ``window`` and its record; the same again returns the same report and writes nothing.

        Args:
            window: that is over.
            workspace: has its requests.
            registry: has the snapshots that answered, or has removed them since;
            published: then what they published says what is to be known of them.

        Raises:
            StoreError: other answers are logged than the window was sealed with, or a part is damaged.
            LeakageError: a snapshot answered a request from before its watermark (law L3).
            RegistryError: nothing is known of a snapshot that answered.
        """
        with exclusive(self.root / FOLDER):
            return self._seal(window, workspace, registry, published)

    def _seal(self, window: Window, workspace: Workspace, registry: Registry, published: TaeLog) -> SealReport:
        found, before = answers.of(self.root, window, workspace), self.sealed(window.index)
        names = sorted(found.has["snapshot"].unique().to_pylist()) if found.has.num_rows else []
        if before is not None:
            counts = (found.report.served, found.report.vectors, names)
            if found.report.served and counts != (before.report.served, before.report.vectors, [*before.segments]):
                raise StoreError(
                    f"{self.root}: window {window.index} is sealed with other answers than are logged by now. What "
                    "came later is not trained on; nothing needs to be done."
                )
            return found.report if found.report.served else before.report
        for left in self.segments():  # by a sealing that was killed: nobody has read it
            if left.window == window.index:
                self.delete(left.snapshot, left.window)
        digest, segments = workspace.dataset.requests_digest(window.index), {}
        for name in names:
            snapshot = _as_served(_answerer(name, registry, published))
            rows = _segment(self, found.has.filter(pc.field("snapshot") == name), snapshot, workspace.inputs.tasks)
            written = self.write(snapshot=snapshot, window=window.index, table=rows, requests_digest=digest)
            segments[name] = written.sha256
        Sealed(
            requests_digest=digest,
            segments=segments,
            request_id=as_numpy(found.without, "request_id").tolist(),
            candidate_id=as_numpy(found.without, "candidate_id").tolist(),
            report=found.report,
        ).write(self.root, window.index)
        return found.report

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
        """As :meth:`TaeLog.read`; a pin that follows its lineage reads the rows of every snapshot that answered.

        Raises:
            StoreError: the window is not sealed, or its rows are not those that it was sealed with.
        """
        found = Embeddings.missing(len(request_id), width=width, tasks=len(tasks))
        for name, sha256 in self._require(window, requests_digest).segments.items():
            lineage, version = parse_snapshot_name(name)
            if lineage != pin.lineage or pin.version not in (None, version):
                continue
            # Vectors are kept wider than the snapshot publishes them, with the same values.
            pinned = replace(pin, version=version, dtype=None)
            segment = self._find(window, pinned)
            if segment is None or segment.sha256 != sha256:
                raise StoreError(
                    f"{self._path(name, window)}: missing, or not what the window was sealed with. Restore it from a "
                    "copy."
                )
            located = segment.locate(request_id=request_id, candidate_id=candidate_id)
            # Only what it answered: its watermark may lie within the window, after what others answered.
            rows = np.arange(len(request_id)) if located is None else np.flatnonzero(located >= 0)
            part = super().read(
                window=window,
                pin=pinned,
                request_id=request_id[rows],
                candidate_id=candidate_id[rows],
                time=time[rows],
                width=width,
                tasks=tasks,
                representation=representation,
                requests_digest=requests_digest,
            )
            if located is None:
                return part
            for into, values in ((found.vector, part.vector), (found.teacher_logit, part.teacher_logit)):
                into[rows] = values
            found.status[rows], found.age[rows] = part.status, part.age
            found = replace(found, snapshot=name)
        return found

    def without(self, *, window: int, request_id: np.ndarray, candidate_id: np.ndarray) -> np.ndarray:
        """Bool ``[C]``: who was answered without a vector.

        Raises:
            StoreError: the window is not sealed.
        """
        return self._require(window).without.locate(request_id=request_id, candidate_id=candidate_id) >= 0

    def _require(self, window: int, requests_digest: str | None = None) -> Sealed:
        found = self.sealed(window)
        if found is None:
            raise StoreError(
                f"{self.root}: window {window} is not sealed, and what was served of it may still grow. Seal it: "
                f"hypercast served PLATFORM.yaml --window {window}."
            )
        if requests_digest not in (None, found.requests_digest):
            raise StoreError(
                f"{self.root}: window {window} was sealed for requests with SHA-256 {found.requests_digest}, and the "
                f"data set has {requests_digest} now: it has changed since. Learn from it in another run folder."
            )
        return found


def _answerer(name: str, registry: Registry, published: TaeLog) -> Snapshot:
    """The snapshot of that name; what it published tells of one that the registry has removed since."""
    lineage, version = parse_snapshot_name(name)
    if all(one.name != name for one in registry.list(lineage)):
        facts = next((one.facts for one in published.segments() if one.snapshot == name), None)
        if facts is not None:
            told = {"dims": facts.representations, "tasks": facts.tasks, "weights_digest": facts.weights_digest}
            path = registry.root / lineage / f"{version:04d}"
            return Snapshot(
                name=name, lineage=lineage, version=version, watermark=facts.watermark, path=path, manifest=told
            )
    return registry.get(name)


def _as_served(snapshot: Snapshot) -> Snapshot:
    """With vectors as they were given: a mean that the online store has made need not fit the snapshot's codec."""
    return replace(snapshot, manifest={**snapshot.manifest, "dtype": "float32"})


def _segment(log: TaeLog, part: pa.Table, snapshot: Snapshot, tasks: Sequence[str]) -> pa.Table:
    return log.rows(
        snapshot=snapshot,
        request_id=as_numpy(part, "request_id"),
        candidate_id=as_numpy(part, "candidate_id"),
        item_id=as_numpy(part, "item_id"),
        time=as_numpy(part, "time"),
        representations={name: _vectors(part, name, width) for name, width in snapshot.dims.items()},
        teacher_logits={task: as_numpy(part, LOGIT + task) for task in tasks},
    )


def _vectors(part: pa.Table, name: str, width: int) -> np.ndarray:
    """Float32 ``[S, R]``; zeros where the answer had none of that name, which is what experts were given then."""
    vector_SR = np.zeros((part.num_rows, width), np.float32)
    if VECTOR + name in part.column_names:
        column = part[VECTOR + name].combine_chunks()
        known = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        vector_SR[known] = arrow.decode(column.drop_null(), codec="float32", width=width)
    return vector_SR
