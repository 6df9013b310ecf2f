"""Vectors keep their bits through Arrow, and reading them is a view."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hypercast import codec
from hypercast.errors import StoreError


@given(
    st.sampled_from(["float16", "float32"]).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            st.tuples(st.integers(0, 6), st.integers(1, 5)),
            elements=st.floats(-100, 100, width=16 if dtype == "float16" else 32),
        )
    ),
    st.booleans(),
)
def test_round_trip_keeps_every_bit(vectors: np.ndarray, as_tensor: bool) -> None:
    column = codec.encode(torch.from_numpy(vectors) if as_tensor else vectors, str(vectors.dtype))
    assert (codec.width_of(column.type), codec.dtype_of(column.type)) == (vectors.shape[1], str(vectors.dtype))
    assert codec.decode(column).tobytes() == vectors.tobytes()
    assert codec.decode(pa.chunked_array([column, column])).tobytes() == vectors.tobytes() * 2
    assert torch.equal(codec.decode_tensor(column), torch.from_numpy(vectors))


def test_reading_shares_memory_also_through_a_slice() -> None:
    column = codec.encode(np.arange(12, dtype=np.float32).reshape(4, 3), "float32")
    whole, part = codec.decode(column), codec.decode(column.slice(1, 2))
    assert np.shares_memory(whole, part)
    assert part.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert not whole.flags.writeable
    assert codec.decode_tensor(column).data_ptr() == whole.ctypes.data
    assert codec.decode_tensor(column.slice(1, 2)).tolist() == part.tolist()


def test_what_is_not_finite_in_the_dtype_is_refused() -> None:
    vectors = np.array([[1.0], [70_000.0]], np.float32)
    codec.encode(vectors, "float32")
    with pytest.raises(StoreError, match=r"row 1 .* 65504"):
        codec.encode(vectors, "float16")
    with pytest.raises(StoreError, match="row 0"):
        codec.encode(np.full((1, 2), np.nan, np.float32), "float32")


@pytest.mark.parametrize(
    ("vectors", "dtype", "message"),
    [
        (np.zeros(3, np.float32), "float32", r"shape \[N, D\]"),
        (np.zeros((3, 0), np.float32), "float32", r"shape \[N, D\]"),
        (np.zeros((3, 2), np.float32), "int8", "allowed are"),
    ],
)
def test_bad_vectors_are_refused(vectors: np.ndarray, dtype: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        codec.encode(vectors, dtype)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0]),
        pa.array([[1.0]]),
        pa.array([[1]], pa.list_(pa.int8(), 1)),
        pa.array([[1.0], None], pa.list_(pa.float32(), 1)),
    ],
)
def test_columns_that_hold_no_vectors_are_refused(column: pa.Array) -> None:
    with pytest.raises(StoreError, match="column of vectors"):
        codec.decode(column)
