"""Attributes: of an id's earliest row, whatever the order in which rows come."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.importers.mapping import entities
from streaming.importers.mapping.entities import Attributes, attribute
from streaming.importers.mapping.roles import AttributeConfig

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from(["a", "b", "c", None])), max_size=30)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(1, 5))
def test_an_ids_earliest_row_counts(rows: list[tuple[int, int, str | None]], size: int) -> None:
    kept = Attributes(names=["genre"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entities, "PENDING", 3)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            code, rank = (np.array([row[at] for row in part], dtype=np.int64) for at in range(2))
            kept.add(code=code, rank=rank, values=[pa.array([row[2] for row in part], pa.string())])
    expected = []
    for code in range(6):
        of_code = [row for row in rows if row[0] == code]
        expected.append(min(of_code, key=lambda row: row[1])[2] if of_code else None)
    assert kept.of(np.arange(6))["genre"].to_pylist() == expected


def test_the_first_of_several_values() -> None:
    array = pa.array(["Comedy|Drama", "Drama", "", None, "|x", " A | B"])
    config = AttributeConfig(column="genres", first_of="|")
    assert attribute(array, config).to_pylist() == ["Comedy", "Drama", None, None, None, "A"]
    assert attribute(pa.array([1, None]), AttributeConfig(column="year")).to_pylist() == ["1", None]
