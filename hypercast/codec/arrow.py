"""Vectors as Arrow columns, under any codec.

``float32`` and ``float16``, which Arrow has, are ``fixed_size_list<float or halffloat, D>``; all others are
``fixed_size_binary(B)`` of :mod:`hypercast.codec.rows`, and the codec's name has to be kept beside the column. Reading
is a view of the column's memory wherever the column is one piece; only a change of numbers copies.

Shape legend: N vectors, D numbers of a vector, B bytes of a row.
"""

from typing import cast

import numpy as np
import pyarrow as pa
from torch import Tensor

from hypercast.codec import rows
from hypercast.errors import StoreError

_NUMBERS: dict[str, pa.DataType] = {"float16": pa.float16(), "float32": pa.float32()}


def column_type(codec: str, width: int) -> pa.DataType:
    """Type of a column of vectors of D = ``width`` numbers.

    Raises:
        StoreError: unknown codec.
    """
    if codec in _NUMBERS:
        return pa.list_(_NUMBERS[codec], width)
    return pa.binary(rows.named(codec).row_bytes(width))


def is_column_type(kind: pa.DataType, *, codec: str, width: int) -> bool:
    """Whether ``kind`` is :func:`column_type`, whatever the field inside a list is called ("item", "element")."""
    if codec in _NUMBERS and pa.types.is_fixed_size_list(kind):
        return kind.list_size == width and kind.value_type == _NUMBERS[codec]
    return kind == column_type(codec, width)


def encode(vectors: np.ndarray | Tensor, codec: str) -> pa.Array:
    """Vectors ``[N, D]`` of floats as a column.

    Raises:
        StoreError: unknown codec, not two-dimensional, or a number that the codec cannot hold.
    """
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().float().cpu().numpy()
    payload_NB = rows.named(codec).encode(vectors)
    width = vectors.shape[1]
    if codec in _NUMBERS:
        numbers = payload_NB.view(_NUMBERS[codec].to_pandas_dtype())
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), width)
    return pa.Array.from_buffers(column_type(codec, width), len(vectors), [None, pa.py_buffer(payload_NB)])


def decode(column: pa.Array | pa.ChunkedArray, *, codec: str, width: int) -> np.ndarray:
    """The vectors, float32 ``[N, D]``; of codec ``float32`` a read-only view if the column is one piece.

    Raises:
        StoreError: not a column of that codec and width, or one with nulls.
    """
    if not is_column_type(column.type, codec=codec, width=width):
        raise StoreError(
            f"a column of {codec} vectors of width {width} has type {column_type(codec, width)}, not {column.type}."
        )
    return rows.named(codec).decode(view(column).view(np.uint8), width)


def check_finite(column: pa.Array | pa.ChunkedArray, *, codec: str, width: int) -> None:
    """Refuse a column that holds NaN or infinity, naming the row.

    Raises:
        StoreError: see above, or as :func:`decode`.
    """
    # What float16 decodes to is defined for finite numbers only.
    vectors = decode(column, codec=codec, width=width) if codec not in _NUMBERS else view(column)
    rows.check_finite(vectors)


def view(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column's numbers float ``[N, D]`` or bytes uint8 ``[N, B]`` as they are: a read-only view if it is one piece.

    Raises:
        StoreError: not a column of vectors, or one with nulls.
    """
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks != 1:
            empty = pa.array([], column.type)
            return np.concatenate([view(chunk) for chunk in [empty, *column.chunks]])
        column = column.chunk(0)
    if column.null_count:
        raise StoreError("a column of vectors holds nulls; a vector that is not known has no row.")
    kind = column.type
    if pa.types.is_fixed_size_list(kind) and kind.value_type in _NUMBERS.values():
        values = cast(pa.FixedSizeListArray, column).flatten()
        return values.to_numpy(zero_copy_only=True).reshape(-1, kind.list_size)
    if pa.types.is_fixed_size_binary(kind):
        row = kind.byte_width
        payload = np.frombuffer(column.buffers()[1], np.uint8, len(column) * row, column.offset * row)
        payload.flags.writeable = False
        return payload.reshape(-1, row)
    raise StoreError(
        f"a column of vectors has type fixed_size_list<halffloat or float, D> or fixed_size_binary(B), not {kind}."
    )
