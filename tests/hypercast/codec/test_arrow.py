"""Columns of vectors hold what the codec makes of them, and reading is a view."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hypercast.codec import arrow, rows
from hypercast.errors import StoreError

VECTORS = arrays.arrays(
    np.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=st.floats(-100, 100, width=32)
)


@pytest.mark.parametrize("name", rows.NAMES)
@settings(max_examples=40, deadline=None)
@given(vector_ND=VECTORS, as_tensor=st.booleans(), begin=st.integers(0, 3))
def test_columns_hold_what_the_codec_makes_of_vectors(
    name: str, vector_ND: np.ndarray, as_tensor: bool, begin: int
) -> None:
    width, codec = vector_ND.shape[1], rows.named(name)
    expected = codec.decode(codec.encode(vector_ND), width)
    column = arrow.encode(torch.from_numpy(vector_ND) if as_tensor else vector_ND, name)
    assert column.type == arrow.column_type(name, width)
    assert arrow.is_column_type(column.type, codec=name, width=width)
    for read, rest in [(column, expected), (column.slice(begin), expected[begin:])]:
        assert arrow.decode(read, codec=name, width=width).tobytes() == rest.tobytes()
    for chunks in ([], [column], [column, column.slice(begin)]):
        whole = arrow.decode(pa.chunked_array(chunks, column.type), codec=name, width=width)
        assert whole.shape == (sum(map(len, chunks)), width)
    assert whole.tobytes() == np.concatenate([expected, expected[begin:]]).tobytes()
    arrow.check_finite(column, codec=name, width=width)


@pytest.mark.parametrize("name", rows.NAMES)
def test_types_tell_codecs_and_widths_apart(name: str) -> None:
    for other in rows.NAMES:
        for width in (6, 7):
            same = (name, rows.named(name).row_bytes(6)) == (other, rows.named(other).row_bytes(width))
            kind = arrow.column_type(other, width)
            if other in ("float16", "float32") or name in ("float16", "float32"):
                assert arrow.is_column_type(kind, codec=name, width=6) == same
    renamed = pa.list_(pa.field("element", pa.float32()), 6)
    assert arrow.is_column_type(renamed, codec="float32", width=6)
    assert not arrow.is_column_type(renamed, codec="float32", width=5)


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_reading_shares_memory_also_through_a_slice(name: str) -> None:
    column = arrow.encode(np.arange(12, dtype=np.float32).reshape(4, 3), name)
    whole, part = arrow.view(column), arrow.view(column.slice(1, 2))
    assert np.shares_memory(whole, part)
    assert part.tolist() == whole[1:3].tolist()
    assert not whole.flags.writeable


def test_single_precision_is_decoded_without_a_copy() -> None:
    column = arrow.encode(np.ones((2, 3), np.float32), "float32")
    assert np.shares_memory(arrow.decode(column, codec="float32", width=3), arrow.view(column))


def test_what_is_not_finite_is_found_in_columns_of_others_making() -> None:
    infinite = np.array([[1], [np.inf]], np.float16)
    bytes_of_one = rows.named("bfloat16").encode(np.ones((1, 1)))[0].tobytes()
    for column, name in [
        (pa.FixedSizeListArray.from_arrays(pa.array(infinite[:, 0]), 1), "float16"),
        (pa.array([bytes_of_one, b"\x80\x7f"], pa.binary(2)), "bfloat16"),
    ]:
        with pytest.raises(StoreError, match="row 1 holds a value that is not finite"):
            arrow.check_finite(column, codec=name, width=1)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0]),
        pa.array([[1.0]]),
        pa.array([[1]], pa.list_(pa.int8(), 1)),
        pa.array([[1.0], None], pa.list_(pa.float32(), 1)),
        pa.array([b"1", None], pa.binary(1)),
    ],
)
def test_columns_that_hold_no_vectors_are_refused(column: pa.Array) -> None:
    with pytest.raises(StoreError, match="column of vectors"):
        arrow.view(column)


def test_columns_of_another_codec_are_refused() -> None:
    column = arrow.encode(np.ones((2, 3), np.float32), "float16")
    with pytest.raises(StoreError, match=r"column of int8 vectors of width 3 has type fixed_size_binary\[7\], not"):
        arrow.decode(column, codec="int8", width=3)
