"""Ids: each once, on disk, in the order in which they came, and never two behind one code."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.errors import DataError
from streaming.importers.mapping.columns import Ids, ids
from streaming.importers.mapping.registry import IdRegistry

BLOCKS = st.lists(st.lists(st.sampled_from([f"id {n}" for n in range(40)] + ["7", "8"]), max_size=10), max_size=15)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BLOCKS)
def test_every_id_is_kept_once_with_its_text(tmp_path: Path, blocks: list[list[str]]) -> None:
    registry = IdRegistry(file=tmp_path / "ids.parquet")
    for block in blocks:
        registry.add(ids(pa.array(block, pa.string()), column="user"))
    registry.close()
    table = pq.read_table(tmp_path / "ids.parquet")
    assert sorted(table["id"].to_pylist()) == sorted({each for block in blocks for each in block})
    assert sorted(table["code"].to_pylist()) == registry.codes().tolist()
    again = ids(table["id"].combine_chunks(), column="user").code
    np.testing.assert_array_equal(again, table["code"].to_numpy())


@pytest.mark.parametrize("together", [True, False])
def test_two_ids_with_one_code_are_refused(tmp_path: Path, together: bool) -> None:
    def made(check: list[int], text: list[str]) -> Ids:
        size = len(check)
        none = np.zeros(size, dtype=bool)
        code = np.full(size, 2**62)
        return Ids(code=code, check=np.array(check), text=pa.array(text), missing=none, long=none)

    registry = IdRegistry(file=tmp_path / "ids.parquet")
    with pytest.raises(DataError, match="id 'other' has the same code as another id"):  # noqa: PT012 - either may be it
        if together:
            registry.add(made([1, 2], ["one", "other"]))
        else:
            registry.add(made([1], ["one"]))
            registry.add(made([2], ["other"]))
