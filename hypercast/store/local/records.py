"""A row as one record of 64-bit words, its hash and its checksum, all vectorised.

::

    word 0 1 2       3            4            5         6 ...
         key [3]     computed_at  history_end  checksum  payload, filled up with zeros to whole words

One record a row, so that one gather fetches the key to compare, the times, the checksum and the vector.

The **checksum** makes the sum of all words times fixed odd numbers (modulo 2**64) equal to a number of the snapshot
and its layout, the *seal*. A change within one word changes the sum for certain, since an odd factor loses no bit; any
other change goes unnoticed with probability 2**-64; and so a record of another snapshot or layout does not pass.

Shape legend: N rows, B bytes of a payload, W words of a record.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hypercast.store.engine import KEPT, Bytes, Flags, Integers, Layout

Hashes = NDArray[np.uint64]

KEY = slice(0, 3)
COMPUTED_AT, HISTORY_END, CHECKSUM, HEAD = 3, 4, 5, 6
WORD = 8
# As many bytes of records at once as stay in a core's cache between being gathered, summed and written.
CHUNK_BYTES = 1 << 19

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF, _MIDDLE = np.uint64(32), np.uint64(29)


def words_of(row_bytes: int) -> int:
    """W."""
    return HEAD + -(-row_bytes // WORD)


def rows_per_chunk(words: int) -> int:
    """Records that are handled at once."""
    return max(1, CHUNK_BYTES // (words * WORD))


def seal_of(snapshot: str, layout: Layout) -> np.int64:
    """What the words of each of the snapshot's records sum up to."""
    text = json.dumps([snapshot, layout.to_json()], sort_keys=True)
    # Odd, thus never the sum of a record of zeros.
    return np.int64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:WORD], "little", signed=True) | 1)


@lru_cache(maxsize=64)
def _factors(words: int) -> Integers:
    """Odd int64 ``[W]``; that of the checksum is 1."""
    factors = _mix(np.arange(1, words + 1, dtype=np.uint64) * np.uint64(_GOLDEN)) | np.uint64(1)
    factors[CHECKSUM] = 1
    return factors.view(np.int64)


def hash_of(key_N3: Integers) -> Hashes:
    """uint64 ``[N]``, spread evenly; equal for equal keys. Rows are sorted by it, and never told apart by it alone."""
    return _mix(key_N3.view(np.uint64) @ _factors(HEAD)[KEY].view(np.uint64))


def _mix(value_N: Hashes) -> Hashes:
    """The finish of SplitMix64 (Steele, Lea and Flood 2014), in place."""
    value_N ^= value_N >> _HALF
    value_N *= _MIX[0]
    value_N ^= value_N >> _MIDDLE
    value_N *= _MIX[1]
    value_N ^= value_N >> _HALF
    return value_N


def total(record_NW: Integers) -> Integers:
    """int64 ``[N]``: the seal, for records that are whole."""
    return np.einsum("nw,w->n", record_NW, _factors(record_NW.shape[1]))


def whole(record_NW: Integers, seal: np.int64) -> Flags:
    """Flags bool ``[N]``: whether each record is what was written."""
    return total(record_NW) == seal


class Columns(NamedTuple):
    """Rows as they are put: key int64 ``[N, 3]``, times int64 ``[N]``, payload uint8 ``[N, B]``."""

    key: Integers
    computed_at: Integers
    history_end: Integers
    payload: Bytes


def pack(columns: Columns, rows_M: Integers, seal: np.int64, *, out: Integers) -> Integers:
    """Records of the rows that ``rows_M`` int64 ``[M]`` names, in ``out`` int64 ``[M, W]``."""
    row_bytes = columns.payload.shape[1]
    out[:, KEY] = columns.key.take(rows_M, axis=0)
    out[:, COMPUTED_AT] = columns.computed_at.take(rows_M)
    out[:, HISTORY_END] = columns.history_end.take(rows_M)
    out[:, CHECKSUM] = 0
    if row_bytes % WORD:
        out[:, -1] = 0
        out.view(np.uint8)[:, HEAD * WORD : HEAD * WORD + row_bytes] = columns.payload.take(rows_M, axis=0)
    else:
        # By words instead of bytes: a third faster.
        out[:, HEAD:] = columns.payload.view(np.int64).take(rows_M, axis=0)
    out[:, CHECKSUM] = seal - total(out)
    return out


def pack_all(columns: Columns, rows_M: Integers, seal: np.int64) -> Integers:
    """The same in new memory, int64 ``[M, W]``."""
    out = np.empty((len(rows_M), words_of(columns.payload.shape[1])), np.int64)
    step = rows_per_chunk(out.shape[1])
    for start in range(0, len(rows_M), step):
        pack(columns, rows_M[start : start + step], seal, out=out[start : start + step])
    return out


def pack_chunks(
    columns: Columns, rows_M: Integers, hash_M: Hashes, seal: np.int64
) -> Iterator[tuple[Hashes, Integers]]:
    """The same piece by piece, with their hashes; each takes the memory of the one before."""
    words = words_of(columns.payload.shape[1])
    step = rows_per_chunk(words)
    out = np.empty((min(step, len(rows_M)), words), np.int64)
    for start in range(0, len(rows_M), step):
        rows = rows_M[start : start + step]
        yield hash_M[start : start + step], pack(columns, rows, seal, out=out[: len(rows)])


def arrange(hash_N: Hashes, key_N3: Integers, computed_at_N: Integers, *, prune: bool) -> Integers:
    """The rows int64 ``[M]`` in the order of a segment: by hash, then by key, then the latest first.

    Args:
        hash_N: of the keys.
        key_N3: keys.
        computed_at_N: of rows with equal key and time only the last one remains.
        prune: let only the :data:`~hypercast.store.engine.KEPT` latest rows of a key remain. Right only where there are
            no older rows elsewhere, which would come to light again.
    """
    order = np.argsort(hash_N)
    hash_sorted = hash_N[order]
    tie = hash_sorted[1:] == hash_sorted[:-1]
    if not tie.any():
        return order
    tied = np.flatnonzero(np.append(tie, False) | np.append(False, tie))
    rows = order[tied]
    # Descending without overflow: ~x is -x - 1.
    columns = (~rows, ~computed_at_N[rows], key_N3[rows, 2], key_N3[rows, 1], key_N3[rows, 0], hash_N[rows])
    rows = rows[np.lexsort(columns)]
    order[tied] = rows
    same_key = np.append(False, (key_N3[rows[1:]] == key_N3[rows[:-1]]).all(axis=1))
    replaced = np.append(False, computed_at_N[rows[1:]] == computed_at_N[rows[:-1]]) & same_key
    keep = np.ones(len(order), np.bool_)
    keep[tied] = ~replaced
    if prune:
        remaining, first = tied[~replaced], ~same_key[~replaced]
        place = np.arange(len(remaining))
        keep[remaining] = place - np.maximum.accumulate(np.where(first, place, 0)) < KEPT
    return order[keep]
