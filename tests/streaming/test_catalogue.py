"""Codes are a function of the value alone: no vocabulary, no order, no future (law L5)."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.catalogue import UNKNOWN, Catalogue, encode
from streaming.errors import DataError

VALUES = st.one_of(st.none(), st.text(max_size=5))


@given(st.lists(VALUES, max_size=20), st.lists(VALUES, max_size=20))
def test_a_code_depends_on_its_value_only(before: list[str | None], after: list[str | None]) -> None:
    alone = encode(pa.array(after, pa.string()))
    together = encode(pa.array(before + after, pa.string()))
    assert together[len(before) :].tolist() == alone.tolist()


@given(st.lists(VALUES, max_size=30))
def test_equal_codes_mean_equal_values(values: list[str | None]) -> None:
    codes = encode(pa.array(values, pa.string())).tolist()
    assert len(set(codes)) == len(set(values))
    assert [code == UNKNOWN for code in codes] == [value is None for value in values]
    assert all(code >= 0 for code in codes)


def test_chunks_do_not_matter() -> None:
    parts = [pa.array([3, None]), pa.array([], pa.int64()), pa.array([5, 3])]
    assert encode(pa.chunked_array(parts)).tolist() == encode(pa.array([3, None, 5, 3])).tolist()
    assert encode(pa.chunked_array([], pa.string())).tolist() == []
    assert encode(pa.array([None, None], pa.string())).tolist() == [UNKNOWN, UNKNOWN]


def test_codes_are_the_same_in_another_process() -> None:
    program = "import pyarrow as pa; from streaming.catalogue import encode; print(*encode(pa.array(['a', 'ä', ''])))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert [int(code) for code in said.split()] == encode(pa.array(["a", "ä", ""])).tolist()


def table() -> pa.Table:
    return pa.table({"item_id": [10, 30, 40], "brand": ["x", None, "x"], "size": [7, 7, 8]})


def test_rows_and_codes() -> None:
    items = Catalogue.read(table(), id_column="item_id", attributes=["brand", "size"])
    assert items.features == ["item_id", "brand", "size"]
    assert items.rows(np.array([30, 10, 40])).tolist() == [1, 0, 2]
    assert items.code.shape == (4, 3)
    assert items.code[:3, 0].tolist() == encode(pa.array([10, 30, 40])).tolist()
    assert items.code[0, 1] == items.code[2, 1] != UNKNOWN
    assert items.code[1, 1] == UNKNOWN


def test_unlisted_ids_share_the_unknown_row() -> None:
    items = Catalogue.read(table(), id_column="item_id", attributes=["brand", "size"])
    rows = items.rows(np.array([9, 11, 35, 41, -1]))
    assert rows.tolist() == [3] * 5
    assert items.code[rows].tolist() == [[UNKNOWN] * 3] * 5


def test_an_empty_catalogue() -> None:
    empty = table().slice(0, 0)
    items = Catalogue.read(empty, id_column="item_id", attributes=["brand"])
    assert items.code[items.rows(np.array([1, 2]))].tolist() == [[UNKNOWN, UNKNOWN]] * 2


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1, 1]])
def test_ids_out_of_order_or_repeated(order: list[int]) -> None:
    with pytest.raises(DataError, match="item_id: ids must be unique and ascending; sort"):
        Catalogue.read(table().take(order), id_column="item_id", attributes=[])
