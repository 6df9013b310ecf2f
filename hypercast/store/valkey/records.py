"""What the engine keeps under the server's keys.

Key::

    PREFIX {} GENERATION KEY        prefix, two braces, 8 bytes, three int64 (surface, user, item), little-endian

A generation is drawn when a snapshot gets its first rows, from chance and the server's clock: what is put after a drop
has another, so that rows of the dead never come back, not even if a server has forgotten that they lived. A cluster
hashes what stands between the first braces of a key, or all of it if nothing does: the empty pair makes it the whole
key, whatever bytes follow.

Value: up to :data:`hypercast.store.engine.KEPT` records, latest first; a record is a whole number of words::

    COMPUTED_AT  HISTORY_END  CHECKSUM  PAYLOAD, zeros up to a word        int64, int64, uint64, uint8 [B]

The checksum covers the key and the record: damage is seen, and so is a value under another's key.

Shape legend: N keys, B bytes of a vector, W words of a record, R = 8 W its bytes, M records, K bytes of a server's key.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from hypercast.store import engine
from hypercast.store.engine import Bytes, Integers, Rows

Words = NDArray[np.uint64]

KEY_BYTES = 24
GENERATION_BYTES = 8
HEAD_BYTES = 24
_WORD = 8
_HALF = np.uint64(32)
_SEED = 20
_START = np.uint64(0x9E3779B97F4A7C15)


def record_bytes(row_bytes: int) -> int:
    """R for B."""
    return HEAD_BYTES + -(-row_bytes // _WORD) * _WORD


def row_head(prefix: str, generation: bytes) -> bytes:
    """What the keys of a generation's rows begin with."""
    return prefix.encode() + b"{}" + generation


def encode_keys(head: bytes, key_N3: Integers) -> Bytes:
    """Server's keys uint8 ``[N, K]``."""
    key_NK = np.empty((len(key_N3), len(head) + KEY_BYTES), np.uint8)
    key_NK[:, : len(head)] = np.frombuffer(head, np.uint8)
    key_NK[:, len(head) :] = key_N3.view(np.uint8)
    return key_NK


def decode_keys(keys: list[bytes]) -> Integers:
    """int64 ``[N, 3]`` of server's keys."""
    return np.frombuffer(b"".join(key[-KEY_BYTES:] for key in keys), np.int64).reshape(-1, 3)


def generation_of(key: bytes) -> bytes:
    """The generation in a row's key."""
    return key[-KEY_BYTES - GENERATION_BYTES : -KEY_BYTES]


def pattern(prefix: str) -> str:
    """What the keys of all rows match."""
    return prefix + "{}*"


def encode(*, key_N3: Integers, computed_at: Integers, history_end: Integers, payload_NB: Bytes) -> Bytes:
    """Records uint8 ``[N, R]``."""
    rows, row_bytes = payload_NB.shape
    record_NR = np.zeros((rows, record_bytes(row_bytes)), np.uint8)
    record_NR[:, HEAD_BYTES : HEAD_BYTES + row_bytes] = payload_NB
    record_NW = record_NR.view(np.uint64)
    record_NW[:, 0], record_NW[:, 1] = computed_at.view(np.uint64), history_end.view(np.uint64)
    record_NW[:, 2] = _checksums(key_N3, record_NW)
    return record_NR


def decode(
    values: list[bytes | None], *, key_N3: Integers, row_bytes: int, as_of: int | None = None
) -> tuple[Rows, Integers]:
    """Rows of N keys from the server's values, and the places [D] of those that are damaged (of which nothing is read).

    Of a value's records the latest is taken, not computed after ``as_of``.
    """
    size, keys = record_bytes(row_bytes), len(values)
    if not keys:
        return engine.no_rows(0, row_bytes), np.empty(0, np.int64)
    present = [value for value in values if value is not None]
    if as_of is None and len(present) == keys and set(map(len, present)) == {size}:  # what nearly every read is
        record_NW = np.frombuffer(b"".join(present), np.uint64).reshape(keys, -1)
        sound = _checksums(key_N3, record_NW) == record_NW[:, 2]
        if sound.all():
            return _rows(record_NW, np.ones(keys, np.bool_), row_bytes), np.empty(0, np.int64)
    return _decode_any(values, key_N3=key_N3, row_bytes=row_bytes, as_of=as_of)


def _decode_any(
    values: list[bytes | None], *, key_N3: Integers, row_bytes: int, as_of: int | None
) -> tuple[Rows, Integers]:
    """As :func:`decode`: some values are missing, hold several records, or are damaged."""
    size, keys = record_bytes(row_bytes), len(values)
    length_N = np.array([len(value or b"") for value in values], np.int64)
    present_N = np.array([value is not None for value in values], np.bool_)
    whole_N = (length_N % size == 0) & ((length_N > 0) == present_N)
    record_MW = np.frombuffer(
        b"".join(value for value, whole in zip(values, whole_N.tolist(), strict=True) if whole and value), np.uint64
    ).reshape(-1, size // _WORD)
    owner_M = np.repeat(np.arange(keys), np.where(whole_N, length_N, 0) // size)
    sound_M = _checksums(key_N3[owner_M], record_MW) == record_MW[:, 2]
    damaged_N = ~whole_N
    damaged_N[owner_M[~sound_M]] = True

    read_M = ~damaged_N[owner_M]
    if as_of is not None:
        read_M &= record_MW[:, 0].view(np.int64) <= as_of
    owner_F, first_F = np.unique(owner_M[read_M], return_index=True)  # of each key the first that may be read
    found_N = np.zeros(keys, np.bool_)
    found_N[owner_F] = True
    record_NW = np.zeros((keys, size // _WORD), np.uint64)
    record_NW[owner_F] = record_MW[read_M][first_F]
    return _rows(record_NW, found_N, row_bytes), np.flatnonzero(damaged_N)


def _rows(record_NW: Words, found_N: engine.Flags, row_bytes: int) -> Rows:
    record_NR = record_NW.view(np.uint8)
    return Rows(
        found=found_N,
        computed_at=record_NW[:, 0].astype(np.int64),
        history_end=record_NW[:, 1].astype(np.int64),
        payload=record_NR[:, HEAD_BYTES : HEAD_BYTES + row_bytes].copy(),
    )


def _checksums(key_M3: Integers, record_MW: Words) -> Words:
    """uint64 [M] over key and record, without the word that holds it.

    Each word, its upper half folded into the lower, times an odd number of its own, summed: one changed word always
    changes the sum; several do but for one case in 2^32 or fewer.
    """
    key_weight, weight = _weights(record_MW.shape[1])
    return np.asarray(_START + _fold(key_M3.view(np.uint64)) @ key_weight + _fold(record_MW) @ weight, np.uint64)


def _fold(words: Words) -> Words:
    return words ^ (words >> _HALF)


@cache
def _weights(words: int) -> tuple[Words, Words]:
    """Of a key's words, and of a record's: 0 for the checksum."""
    weight = np.random.default_rng(_SEED).integers(0, 2**64, 3 + words, np.uint64) | np.uint64(1)
    weight[3 + 2] = 0
    return weight[:3], weight[3:]
