"""Vectors as Arrow columns: ``fixed_size_list<halffloat or float, D>`` to and from NumPy and torch.

Reading is a view of the column's memory wherever the column is one piece; only a change of dtype copies.
"""

from typing import cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hypercast.errors import StoreError

ARROW_TYPES: dict[str, pa.DataType] = {"float16": pa.float16(), "float32": pa.float32()}


def encode(vectors: np.ndarray | Tensor, dtype: str) -> pa.FixedSizeListArray:
    """Vectors [N, D] as a column of ``dtype`` (``float16`` or ``float32``); no copy if they have it already.

    Raises:
        StoreError: unknown dtype, not two-dimensional, or a value that is not finite in ``dtype``.
    """
    if dtype not in ARROW_TYPES:
        raise StoreError(f"vector dtype {dtype!r}: allowed are {sorted(ARROW_TYPES)}.")
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().to(device="cpu", dtype=getattr(torch, dtype)).numpy()
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise StoreError(f"vectors must have shape [N, D] with D > 0, got {tuple(vectors.shape)}.")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(vectors, dtype=dtype)
    check_finite(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def decode(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The vectors [N, D] of a column in its own dtype: a read-only view if the column is one piece, else a copy.

    Raises:
        StoreError: not a column of vectors, or one with nulls.
    """
    width = width_of(column.type)
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks != 1:
            pieces = [decode(chunk) for chunk in column.chunks]
            return np.concatenate([np.empty((0, width), dtype_of(column.type)), *pieces])
        column = column.chunk(0)
    if column.null_count:
        raise StoreError("a column of vectors holds nulls; a vector that is not known has no row.")
    values = cast(pa.FixedSizeListArray, column).flatten()
    return values.to_numpy(zero_copy_only=True).reshape(-1, width)


def decode_tensor(column: pa.Array | pa.ChunkedArray) -> Tensor:
    """As :func:`decode`, as a tensor that shares the memory. It must not be written to."""
    vectors = decode(column)
    # torch has no read-only tensors and warns about NumPy's; an Arrow array hands its memory over without that.
    return torch.from_dlpack(pa.array(vectors.reshape(-1))).reshape(vectors.shape)


def width_of(kind: pa.DataType) -> int:
    """D of a vector column's type.

    Raises:
        StoreError: not a fixed-size list of half or single floats.
    """
    dtype_of(kind)
    return cast(pa.FixedSizeListType, kind).list_size


def dtype_of(kind: pa.DataType) -> str:
    """``float16`` or ``float32``: the dtype of a vector column's type; raises as :func:`width_of`."""
    if pa.types.is_fixed_size_list(kind):
        for name, value in ARROW_TYPES.items():
            if cast(pa.FixedSizeListType, kind).value_type == value:
                return name
    raise StoreError(f"a column of vectors has type fixed_size_list<halffloat or float, D>, not {kind}.")


def check_finite(values: np.ndarray) -> None:
    """Refuse vectors or logits with NaN or infinity, naming the first row.

    Raises:
        StoreError: see above.
    """
    good = np.isfinite(values)
    if not good.all():
        row = int(np.argwhere(~good)[0, 0])
        raise StoreError(
            f"row {row} holds a value that is not finite in {values.dtype}. Half precision ends at 65504: normalise "
            "the representation, or publish float32."
        )
