"""One segment of the TAE log: the rows that one snapshot published for one window, in one Arrow IPC file.

Columns, one chunk each and without nulls::

    request_id int64, candidate_id int32, item_id int64, time timestamp[us, UTC], snapshot dictionary<string>,
    status int8, age int64 (us), teacher_logit_TASK float (any number),
    REPRESENTATION (one or more) fixed_size_list<halffloat or float, D> of codecs float16 and float32, else
        fixed_size_binary (hypercast.codec)

The file is uncompressed. It is opened once: read from end to end for its SHA-256, then mapped, so that rows are those
that were checked whatever becomes of the name. Beside it stands its manifest, whose every byte follows from the facts
and the Arrow file's SHA-256, a digest of itself included: no byte of either file can change unseen.
"""

import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from hypercast.codec import arrow
from hypercast.codec import rows as codecs
from hypercast.errors import StoreError
from hypercast.pins import Pin
from hypercast.snapshot import Snapshot
from hypercast.store.keys import KeyIndex
from streaming import files

LOGIT = "teacher_logit_"
TIME = pa.timestamp("us", tz="UTC")
FIXED: dict[str, pa.DataType] = {
    "request_id": pa.int64(),
    "candidate_id": pa.int32(),
    "item_id": pa.int64(),
    "time": TIME,
    "snapshot": pa.dictionary(pa.int32(), pa.string()),
    "status": pa.int8(),
    "age": pa.int64(),
}
METADATA = b"hypercast.segment"
"""Key of the facts in the Arrow schema's metadata."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is said of a segment beside its rows: in the Arrow schema's metadata, and in the manifest.

    Attributes:
        snapshot: name of the snapshot that computed it.
        weights_digest: of the snapshot's weights: its name says nothing once a registry was begun anew.
        window: index of the window.
        watermark: of the snapshot, microseconds UTC.
        requests_digest: SHA-256 of the request file that the rows are aligned with.
        rows: number of rows.
        representations: name to width.
        dtype: codec of the representations.
        tasks: those that have a teacher logit.
    """

    snapshot: str
    weights_digest: str
    window: int
    watermark: int
    requests_digest: str
    rows: int
    representations: dict[str, int]
    dtype: str
    tasks: list[str]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment on disk. ``path`` is the Arrow file; ``sha256`` is of its bytes."""

    path: Path
    sha256: str
    facts: Facts

    @property
    def snapshot(self) -> str:
        """Name of the snapshot that computed it."""
        return self.facts.snapshot

    @property
    def window(self) -> int:
        """Index of the window."""
        return self.facts.window

    @property
    def requests_digest(self) -> str:
        """SHA-256 of the request file that the rows are aligned with."""
        return self.facts.requests_digest

    @property
    def manifest_path(self) -> Path:
        """The JSON file beside the Arrow file; it is written last and makes the segment visible."""
        return self.path.with_suffix(".json")

    @staticmethod
    def open(manifest_path: Path) -> "Segment":
        """The segment that a manifest describes; its rows are not touched yet.

        Raises:
            FileNotFoundError: there is no manifest, and so no segment.
            StoreError: the manifest is damaged, or has another segment's name.
        """
        content = manifest_path.read_bytes()
        try:
            values = json.loads(content)
            facts = Facts(**values["facts"])
            segment = Segment(path=manifest_path.with_suffix(".arrow"), sha256=values["sha256"], facts=facts)
            whole = segment.manifest().encode() == content
            problem = "its digest differs"
        except (ValueError, KeyError, TypeError) as error:
            whole, problem = False, str(error)
        if whole and (facts.snapshot, f"window={facts.window:05d}") != (manifest_path.parent.name, manifest_path.stem):
            whole, problem = False, f"it is that of {facts.snapshot}, window {facts.window}"
        if not whole:
            raise StoreError(
                f"{manifest_path}: not this segment's manifest ({problem}). Delete it and publish the window again."
            )
        return segment

    def manifest(self) -> str:
        """Content of the JSON file beside the Arrow file."""
        content = {"sha256": self.sha256, "facts": asdict(self.facts)}
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps({**content, "digest": digest}, indent=2) + "\n"

    def verify(self) -> None:
        """Read every byte and compare with the manifest.

        Raises:
            StoreError: the rows are missing or differ from what was written.
        """
        self._map()

    @property
    def remedy(self) -> str:
        """What to do about damage."""
        return f"Delete {self.manifest_path} and publish window {self.window} with {self.snapshot} again."

    def check_made_by(self, snapshot: Snapshot) -> None:
        """Refuse what a snapshot of the same name, but of other weights, has published.

        Raises:
            StoreError: the weights differ.
        """
        if self.facts.weights_digest != snapshot.manifest["weights_digest"]:
            raise StoreError(
                f"{self.path}: published by a {self.snapshot} of other weights: the registry has been begun anew since "
                f"and the log has not. {self.remedy}"
            )

    def check_read(self, *, pin: Pin, representation: str, width: int, tasks: Sequence[str]) -> None:
        """Refuse a reader that was made for other vectors.

        Raises:
            RegistryError: the pin refuses the lineage, snapshot, width or codec.
            StoreError: another width than asked for, or an unknown representation or task.
        """
        stored = self.facts.representations.get(representation)
        if stored is None:
            raise StoreError(
                f"{self.path}: no representation {representation!r}; there are {sorted(self.facts.representations)}."
            )
        pin.check(snapshot=self.snapshot, representation=representation, width=stored, dtype=self.facts.dtype)
        if stored != width:
            raise StoreError(
                f"{self.path}: {representation!r} of {self.snapshot} has width {stored}, but expert {pin.expert!r} was "
                f"built for {width}. Pin it to a snapshot of that width, or create the expert anew."
            )
        unknown = [task for task in tasks if task not in self.facts.tasks]
        if unknown:
            raise StoreError(f"{self.path}: no teacher logit for task {unknown[0]!r}; there are {self.facts.tasks}.")

    def locate(self, *, request_id: np.ndarray, candidate_id: np.ndarray) -> np.ndarray | None:
        """Row int64 [C] of each key, -1 where there is none; None if the keys are all rows in order.

        Args:
            request_id: int64 [C].
            candidate_id: int32 [C].
        """
        if np.array_equal(self.numpy("request_id"), request_id) and np.array_equal(
            self.numpy("candidate_id"), candidate_id
        ):
            return None
        return self.keys.locate(request_id=request_id, candidate_id=candidate_id)

    def vectors(self, representation: str, rows: np.ndarray | slice) -> np.ndarray:
        """Those rows' vectors, float32 [C, D]; of codec ``float32`` and a slice, a read-only view of the file."""
        stored = arrow.view(self.table.column(representation))[rows]
        return codecs.named(self.facts.dtype).decode(stored.view(np.uint8), self.facts.representations[representation])

    @cached_property
    def table(self) -> pa.Table:
        """The rows, verified, then memory-mapped.

        Raises:
            StoreError: see :meth:`verify`.
        """
        return self._map()

    def _map(self) -> pa.Table:
        try:
            with self.path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == self.sha256:
                    # The descriptor that was read, not the name: that may belong to another file by now.
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                    return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
        except (FileNotFoundError, IsADirectoryError):
            pass
        raise StoreError(f"{self.path}: missing, or not what was published (its SHA-256 differs). {self.remedy}")

    @cached_property
    def keys(self) -> KeyIndex:
        """The sorted keys of :attr:`table`."""
        return KeyIndex(request_id=self.numpy("request_id"), candidate_id=self.numpy("candidate_id"))

    def numpy(self, column: str) -> np.ndarray:
        """A column of numbers or times (as int64 microseconds), as a read-only view."""
        return as_numpy(self.table, column)


def as_numpy(table: pa.Table, column: str) -> np.ndarray:
    """A column of numbers or times (as int64 microseconds) of a table; a view if it is one chunk, else a copy."""
    values = table.column(column)
    if values.type == TIME:
        values = values.cast(pa.int64())
    if values.num_chunks == 1:
        return values.chunk(0).to_numpy(zero_copy_only=True)
    return values.to_numpy()


def write(path: Path, table: pa.Table, facts: Facts) -> Segment:
    """Write the Arrow file, then the manifest that makes it visible; each is whole or absent."""
    files.write_file(path, lambda partial: _write_arrow(partial, table))
    segment = Segment(path=path, sha256=files.sha256_of(path), facts=facts)
    files.write_text(segment.manifest_path, segment.manifest())
    return segment


def _write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
