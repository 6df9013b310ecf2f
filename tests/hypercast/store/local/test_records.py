"""Checksums that see every change, an order that keeps what must be kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.store.engine import KEPT, Layout
from hypercast.store.local import records
from hypercast.store.local.records import CHECKSUM, Columns

LAYOUT = Layout(representation="penultimate", width=1, codec="bytes", row_bytes=20, model="ab12")
SEAL = records.seal_of("FM@0001", LAYOUT)


def packed(rows: int, row_bytes: int, seal: np.int64 = SEAL) -> np.ndarray:
    random = np.random.default_rng(rows)
    key, at = random.integers(-9, 9, (rows, 3)), random.integers(0, 9, rows)
    payload = random.integers(0, 256, (rows, row_bytes)).astype(np.uint8)
    return records.pack_all(Columns(key, at, at, payload), np.arange(rows), seal)


@given(row=st.integers(0, 4), word=st.integers(0, 8), change=st.integers(1, 2**64 - 1))
def test_change_of_one_word_is_seen_for_certain(row: int, word: int, change: int) -> None:
    record = packed(5, 20)
    assert record.shape == (5, 9) and records.whole(record, SEAL).all()
    record.view(np.uint64)[row, word] ^= np.uint64(change)
    assert records.whole(record, SEAL).tolist() == [place != row for place in range(5)]


@given(one=st.integers(0, 8), other=st.integers(0, 8))
def test_swapped_words_are_seen(one: int, other: int) -> None:
    record = packed(5, 20)
    swapped = record.copy()
    swapped[:, [one, other]] = record[:, [other, one]]
    same = (swapped == record).all(axis=1)
    np.testing.assert_array_equal(records.whole(swapped, SEAL), same)


def test_records_of_zeros_and_of_others_do_not_pass() -> None:
    assert not records.whole(np.zeros((2, 9), np.int64), SEAL).any()
    other_layout = Layout(**LAYOUT.to_json() | {"codec": "int8"})
    for seal in (records.seal_of("FM@0002", LAYOUT), records.seal_of("FM@0001", other_layout)):
        assert not records.whole(packed(5, 20), seal).any()


@pytest.mark.parametrize("row_bytes", [0, 1, 8, 20])
def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch, row_bytes: int) -> None:
    monkeypatch.setattr(records, "CHUNK_BYTES", 200)
    random = np.random.default_rng(0)
    payload = random.integers(0, 256, (11, row_bytes)).astype(np.uint8)
    columns = Columns(random.integers(-9, 9, (11, 3)), np.arange(11), -np.arange(11), payload)
    order, hashes = random.permutation(11), records.hash_of(columns.key)
    pieces = [(hash_N, record.copy()) for hash_N, record in records.pack_chunks(columns, order, hashes[order], SEAL)]
    assert len(pieces) > 2
    everything = records.pack_all(columns, order, SEAL)
    np.testing.assert_array_equal(np.concatenate([record for _, record in pieces]), everything)
    np.testing.assert_array_equal(np.concatenate([hash_N for hash_N, _ in pieces]), hashes[order])
    data = everything.view(np.uint8)[:, 48:]
    np.testing.assert_array_equal(data[:, :row_bytes], payload[order])
    assert not data[:, row_bytes:].any() and records.whole(everything, SEAL).all()
    assert everything.shape[1] == records.words_of(row_bytes) and everything[:, CHECKSUM].any()


def test_hash_spreads_what_is_close_together() -> None:
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(100), np.arange(100), indexing="ij"), -1).reshape(-1, 3)
    hashes = records.hash_of(grid)
    assert len(np.unique(hashes)) == len(grid)
    # Of 40,000 keys in 1,024 buckets, 39 each: a standard deviation of 6.25.
    counts = np.bincount((hashes >> np.uint64(54)).astype(int), minlength=1_024)
    assert counts.min() > 10 and counts.max() < 75 and 5.5 < counts.std() < 7


@settings(max_examples=200)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(-2, 3)), min_size=1, max_size=25),
    modulus=st.integers(1, 3),
    prune=st.booleans(),
)
def test_arrange(rows: list[tuple[int, int]], modulus: int, prune: bool) -> None:
    """Also where different keys have one hash."""
    key = np.array([(0, row[0], 0) for row in rows])
    at = np.array([row[1] for row in rows])
    order = records.arrange((key[:, 1] % modulus).astype(np.uint64), key, at, prune=prune)
    # Of each key and time the last; of each key the latest first; keys of one hash beside each other.
    last = {row: place for place, row in enumerate(rows)}
    expected = []
    for one in sorted({row[0] for row in rows}, key=lambda one: (one % modulus, one)):
        versions = sorted((row for row in last if row[0] == one), key=lambda row: -row[1])
        expected += [last[row] for row in versions[: KEPT if prune else None]]
    assert order.tolist() == expected
