"""What becomes a segment of the TAE log: rows in one chunk, checked one by one before any is written."""

import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from hypercast.codec import arrow
from hypercast.codec.rows import check_finite
from hypercast.errors import StoreError
from hypercast.registry import Snapshot
from hypercast.store.keys import KeyIndex
from hypercast.store.segment import FIXED, LOGIT, METADATA, Facts, as_numpy
from streaming.errors import LeakageError


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
        weights_digest=snapshot.manifest["weights_digest"],
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
    table = table.replace_schema_metadata({METADATA: json.dumps(asdict(facts))})
    _check_rows(table, facts=facts, where=where)
    return table, facts


def join(columns: Mapping[str, pa.Array], *, where: str) -> pa.Table:
    """Columns as a table.

    Raises:
        StoreError: their lengths differ; ``where`` begins the message.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StoreError(f"{where}: columns have lengths {lengths}; every row has a value of each.")
    return pa.table(dict(columns))


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
            fits = kind == expected or (name == "snapshot" and _is_dictionary_of(kind, expected.value_type))
        elif name.startswith(LOGIT):
            expected = pa.float32()
            fits = kind == expected
            tasks.append(name.removeprefix(LOGIT))
        else:
            if name not in snapshot.dims:
                raise StoreError(
                    f"{where}: column '{name}' is no representation of {snapshot.name} with dims {snapshot.dims}. "
                    "Publish the snapshot with the representation's width, for example dims={'penultimate': 64}."
                )
            width = representations[name] = snapshot.dims[name]
            expected = arrow.column_type(snapshot.dtype, width)
            fits = arrow.is_column_type(kind, codec=snapshot.dtype, width=width)
        if not fits:
            raise StoreError(f"{where}: column '{name}' has type {kind}, not {expected} as {snapshot.name} declares.")
        if table.column(name).null_count:
            raise StoreError(f"{where}: column '{name}' holds nulls; a vector that is not known has no row.")
    if not representations:
        raise StoreError(f"{where}: no column of vectors; {snapshot.name} declares {snapshot.dims}.")
    return representations, tasks


def _is_dictionary_of(kind: pa.DataType, value_type: pa.DataType) -> bool:
    """Whatever its codes are: integers of any size stand for the same words."""
    return pa.types.is_dictionary(kind) and kind.value_type == value_type


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
    for name, width in facts.representations.items():
        arrow.check_finite(table.column(name), codec=facts.dtype, width=width)
    for task in facts.tasks:
        check_finite(as_numpy(table, LOGIT + task))
