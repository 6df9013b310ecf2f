"""One segment of the TAE log: the rows that one snapshot published for one window, in one Arrow IPC file.

Columns, one chunk each and without nulls::

    request_id int64, candidate_id int32, item_id int64, time timestamp[us, UTC], snapshot dictionary<string>,
    status int8, age int64 (us), REPRESENTATION fixed_size_list<halffloat or float, D> (one or more),
    teacher_logit_TASK float (any number)

The file is uncompressed and memory-mapped: what a reader does not touch is never read.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hypercast import codec
from hypercast.errors import StoreError
from hypercast.registry import Snapshot
from hypercast.store.keys import KeyIndex
from streaming import files
from streaming.errors import LeakageError

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
_METADATA_KEY = b"hypercast.segment"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is said of a segment beside its rows: in the Arrow schema's metadata, and in the manifest.

    Attributes:
        snapshot: name of the snapshot that computed it.
        window: index of the window.
        watermark: of the snapshot, microseconds UTC.
        requests_digest: SHA-256 of the request file that the rows are aligned with.
        rows: number of rows.
        representations: name to width.
        dtype: of the representations.
        tasks: those that have a teacher logit.
    """

    snapshot: str
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
            StoreError: the manifest is damaged.
        """
        try:
            values = json.loads(manifest_path.read_bytes())
            return Segment(
                path=manifest_path.with_suffix(".arrow"), sha256=values["sha256"], facts=Facts(**values["facts"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{manifest_path}: not a segment's manifest ({error}). Delete it and publish the window again."
            ) from None

    def verify(self) -> None:
        """Read every byte and compare with the manifest.

        Raises:
            StoreError: the rows are missing or differ from what was written.
        """
        if not self.path.is_file() or files.sha256_of(self.path) != self.sha256:
            raise StoreError(
                f"{self.path}: missing, or not what was published (its SHA-256 differs). Delete {self.manifest_path} "
                f"and publish window {self.window} with {self.snapshot} again."
            )

    @cached_property
    def table(self) -> pa.Table:
        """The rows, memory-mapped."""
        with pa.memory_map(str(self.path)) as source:
            return pa.ipc.open_file(source).read_all()

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


def prepare(table: pa.Table, *, snapshot: Snapshot, window: int, requests_digest: str) -> tuple[pa.Table, Facts]:
    """Check rows before they are written; returns them in one chunk with the facts in the schema's metadata.

    Raises:
        StoreError: columns, types, widths, keys or values that do not fit; the message names column and row.
        LeakageError: a row's time is before the snapshot's watermark (L3).
    """
    where = f"segment {snapshot.name}, window {window}"
    representations, tasks = _check_columns(table, snapshot=snapshot, where=where)
    facts = Facts(
        snapshot=snapshot.name,
        window=window,
        watermark=snapshot.watermark,
        requests_digest=requests_digest,
        rows=table.num_rows,
        representations=representations,
        dtype=snapshot.dtype,
        tasks=tasks,
    )
    table = table.select([*FIXED, *representations, *(LOGIT + task for task in tasks)])
    table = pa.Table.from_batches(table.combine_chunks().to_batches(), schema=table.schema)
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(asdict(facts))})
    _check_rows(table, facts=facts, where=where)
    return table, facts


def write(path: Path, table: pa.Table, facts: Facts) -> Segment:
    """Write the Arrow file, then the manifest that makes it visible; each is whole or absent."""
    files.write_file(path, lambda partial: _write_arrow(partial, table))
    segment = Segment(path=path, sha256=files.sha256_of(path), facts=facts)
    manifest: dict[str, Any] = {"sha256": segment.sha256, "facts": asdict(facts)}
    files.write_text(segment.manifest_path, json.dumps(manifest, indent=2) + "\n")
    return segment


def _write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _check_columns(table: pa.Table, *, snapshot: Snapshot, where: str) -> tuple[dict[str, int], list[str]]:
    for name, kind in FIXED.items():
        if name not in table.column_names:
            raise StoreError(f"{where}: column '{name}' ({kind}) is missing. TaeLog.rows() builds a table that fits.")
    representations: dict[str, int] = {}
    tasks: list[str] = []
    for field in table.schema:
        name, kind = field.name, field.type
        if name in FIXED:
            expected = FIXED[name]
        elif name.startswith(LOGIT):
            expected = pa.float32()
            tasks.append(name.removeprefix(LOGIT))
        else:
            if name not in snapshot.dims:
                raise StoreError(
                    f"{where}: column '{name}' is no representation of {snapshot.name} with dims {snapshot.dims}. "
                    "Publish the snapshot with the representation's width, for example dims={'penultimate': 64}."
                )
            expected = pa.list_(codec.ARROW_TYPES[snapshot.dtype], snapshot.dims[name])
            representations[name] = snapshot.dims[name]
        if not _same_type(kind, expected):
            raise StoreError(f"{where}: column '{name}' has type {kind}, not {expected} as {snapshot.name} declares.")
        if table.column(name).null_count:
            raise StoreError(f"{where}: column '{name}' holds nulls; a vector that is not known has no row.")
    if not representations:
        raise StoreError(f"{where}: no column of vectors; {snapshot.name} declares {snapshot.dims}.")
    return representations, tasks


def _same_type(kind: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(expected) and pa.types.is_fixed_size_list(kind):
        # Field names inside a list ("item", "element") do not matter.
        return codec.width_of(kind) == codec.width_of(expected) and codec.dtype_of(kind) == codec.dtype_of(expected)
    if pa.types.is_dictionary(expected):
        return pa.types.is_dictionary(kind) and kind.value_type == expected.value_type
    return kind == expected


def _check_rows(table: pa.Table, *, facts: Facts, where: str) -> None:
    time, age = as_numpy(table, "time"), as_numpy(table, "age")
    request_id, candidate_id = as_numpy(table, "request_id"), as_numpy(table, "candidate_id")
    early = np.flatnonzero((time < facts.watermark) | (age < 0))
    if len(early):
        row = int(early[0])
        raise LeakageError(
            f"{where}: row {row} (request_id {request_id[row]}, candidate_id {candidate_id[row]}) has time {time[row]} "
            f"and age {age[row]}, but {facts.snapshot} has seen everything before {facts.watermark} (law L3). "
            "Publish this window with a snapshot whose watermark is not later than the window's start: "
            "registry.latest(lineage, as_of=window.start)."
        )
    names = set(table.column("snapshot").unique().to_pylist())
    if names - {facts.snapshot}:
        raise StoreError(f"{where}: column 'snapshot' names {sorted(names)}; a segment holds one snapshot's rows.")
    repeated = KeyIndex(request_id=request_id, candidate_id=candidate_id).duplicate()
    if repeated is not None:
        raise StoreError(
            f"{where}: row {repeated} repeats request_id {request_id[repeated]}, candidate_id {candidate_id[repeated]}"
            "; a key has one row. Drop the repetition before publishing."
        )
    for name in facts.representations:
        codec.check_finite(codec.decode(table.column(name)))
    for task in facts.tasks:
        codec.check_finite(as_numpy(table, LOGIT + task))
