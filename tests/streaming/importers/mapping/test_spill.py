"""Rows on disk by window: none lost, none moved, in the order in which they came."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.importers.mapping import spill as module
from streaming.importers.mapping.spill import Spill, partition

SCHEMA = pa.schema([pa.field("time", pa.int64()), pa.field("n", pa.int64()), pa.field("text", pa.string())])


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 39), max_size=8), max_size=8), st.sampled_from([0, 400, 1 << 20]))
def test_rows_are_found_again_in_their_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[list[int]], buffer: int
) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES", buffer)
    shutil.rmtree(tmp_path / "parts", ignore_errors=True)
    spill = Spill(file=tmp_path / "all", schema=SCHEMA)
    number, rows = 0, []
    for batch in batches:
        named = [(time, number + at, f"row {number + at}") for at, time in enumerate(batch)]
        number += len(batch)
        rows += named
        arrays = [pa.array([row[at] for row in named], SCHEMA.field(at).type) for at in range(3)]
        spill.add(pa.record_batch(arrays, schema=SCHEMA))
    spill.close()
    assert spill.rows == len(rows)
    parts = partition(spill, folder=tmp_path / "parts", boundaries=np.array([0, 10, 20, 30, 40]))
    assert not (tmp_path / "all").exists()
    for window in range(4):
        expected = [row for row in rows if row[0] // 10 == window]
        found = parts.window(window)
        assert [tuple(row.values()) for row in found.to_pylist()] == expected
        assert parts.rows[window] == len(expected) == len(found)
