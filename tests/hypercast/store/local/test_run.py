"""Finding keys where hashes are alike, and merging without holding everything."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.store.engine import Layout
from hypercast.store.local import delta, merge, records, run
from hypercast.store.local.delta import Delta
from hypercast.store.local.records import COMPUTED_AT, HEAD, Columns
from hypercast.store.local.run import Found, Run

LAYOUT = Layout(representation="penultimate", width=1, codec="bytes", row_bytes=8, model="ab12")
SEAL = records.seal_of("FM@0001", LAYOUT)
Row = tuple[int, int]


def find(one: Run, asked: np.ndarray, hashes: np.ndarray, as_of: int | None = None) -> Found:
    return one.find(asked, hashes, one.locate(hashes), as_of)


def hash_of(key: np.ndarray, spread: int) -> np.ndarray:
    """A bad one: ``spread`` values, all in few buckets."""
    return (key[:, 1] % spread).astype(np.uint64)


def run_of(rows: list[Row], spread: int, byte: int = 0) -> Run:
    """Rows of (user, computed_at); the vector says both, and ``byte``."""
    key = np.array([(0, row[0], 0) for row in rows])
    at = np.array([row[1] for row in rows])
    payload = np.stack([key[:, 1], at, at * 0 + byte, *[at * 0] * 5], axis=1).astype(np.uint8)
    order = records.arrange(hash_of(key, spread), key, at, prune=False)
    record = records.pack_all(Columns(key, at, at, payload), order, SEAL)
    return run.in_memory(where="here", seal=SEAL, hash_R=hash_of(key, spread)[order], record=record)


rows = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=60)


@settings(max_examples=200)
@given(rows=rows, spread=st.integers(1, 10), as_of=st.none() | st.integers(-1, 6))
def test_keys_are_found_although_hashes_are_alike(rows: list[Row], spread: int, as_of: int | None) -> None:
    asked = np.array([(0, user, 0) for user in range(-2, 13)])
    found, record = find(run_of(rows, spread), asked, hash_of(asked, spread), as_of)
    for place, user in enumerate(asked[:, 1].tolist()):
        times = [row[1] for row in rows if row[0] == user and (as_of is None or row[1] <= as_of)]
        assert found[place] == bool(times)
        if times:
            assert record[place, COMPUTED_AT] == max(times)
            assert record.view(np.uint8)[place, HEAD * 8 : HEAD * 8 + 2].tolist() == [user, max(times)]


def test_rows_behind_many_of_one_key_are_found() -> None:
    """More than the steps that are taken from a bucket's beginning."""
    one = run_of([(1, time % 256) for time in range(200)] + [(2, 5), (3, 6)], spread=10)
    asked = np.array([(0, 3, 0), (0, 2, 0), (0, 1, 0), (0, 4, 0)])
    found, record = find(one, asked, hash_of(asked, 10))
    assert run.STEPS < 200
    assert found.tolist() == [True, True, True, False]
    assert record[:3, COMPUTED_AT].tolist() == [6, 5, 199]


def test_greatest_hash_is_a_hash_like_others() -> None:
    """It is also what stands behind the last row."""
    one = run_of([(1, 1), (2, 2)], spread=10)
    hashes = np.array([5, 2**64 - 1], np.uint64)
    last = run.in_memory(where="here", seal=SEAL, hash_R=hashes, record=one.record)
    asked = np.array([(0, 2, 0), (0, 3, 0)])
    assert find(last, asked, np.full(2, hashes[1])).found.tolist() == [True, False]
    first = run.in_memory(where="here", seal=SEAL, hash_R=hashes[:1], record=one.record[:1])
    assert find(first, asked, np.full(2, hashes[1])).found.tolist() == [False, False]


@settings(max_examples=100)
@given(runs=st.lists(rows, min_size=1, max_size=4), spread=st.integers(1, 10), as_of=st.none() | st.integers(-1, 6))
def test_latest_of_several_runs_is_that_of_all_rows(runs: list[list[Row]], spread: int, as_of: int | None) -> None:
    parts = [run_of(some, spread, byte) for byte, some in enumerate(runs)]
    last = {row: byte for byte, some in enumerate(runs) for row in some}
    asked = np.array([(0, user, 0) for user in range(-2, 13)])
    found, record = run.find_latest(parts, asked, hash_of(asked, spread), as_of)
    for place, user in enumerate(asked[:, 1].tolist()):
        times = [row[1] for row in last if row[0] == user and (as_of is None or row[1] <= as_of)]
        seen = record.view(np.uint8)[place, HEAD * 8 : HEAD * 8 + 3].tolist()
        assert found[place] == bool(times)
        assert seen == ([user, max(times), last[user, max(times)]] if times else [0, 0, 0])


@settings(max_examples=100)
@given(runs=st.lists(rows, min_size=1, max_size=4), spread=st.integers(1, 10), prune=st.booleans())
def test_merging_piece_by_piece_is_merging_at_once(runs: list[list[Row]], spread: int, prune: bool) -> None:
    parts = [run_of(some, spread, byte) for byte, some in enumerate(runs)]
    last = {row: byte for byte, some in enumerate(runs) for row in some}
    merged = [record for _, record in merge.chunks(parts, prune=prune and len(runs) > 1)]
    data = np.concatenate(merged).view(np.uint8)[:, HEAD * 8 : HEAD * 8 + 3].tolist()
    everything = {(user, time): byte for user, time, byte in data}
    assert len(everything) == len(data) and everything.items() <= last.items()
    for user in {row[0] for row in last}:
        times = sorted((row[1] for row in last if row[0] == user), reverse=True)
        kept = sorted((row[1] for row in everything if row[0] == user), reverse=True)
        assert kept == (times[:2] if prune and len(runs) > 1 else times)


def test_pieces_are_small_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "PIECE_BYTES", 56 * 10)
    random = np.random.default_rng(0)
    parts = []
    for number in range(3):
        key = np.stack([np.full(100, number), np.arange(100), np.arange(100)], axis=1)
        hashes = records.hash_of(key)
        order = np.argsort(hashes)
        payload = random.integers(0, 256, (100, 8)).astype(np.uint8)
        record = records.pack_all(Columns(key, np.arange(100), np.arange(100), payload), order, SEAL)
        parts.append(run.in_memory(where="here", seal=SEAL, hash_R=hashes[order], record=record))
    pieces = [(hash_N, record.copy()) for hash_N, record in merge.chunks(parts, prune=True)]
    assert len(pieces) > 20 and max(len(hash_N) for hash_N, _ in pieces) < 40
    hashes = np.concatenate([hash_N for hash_N, _ in pieces])
    assert len(hashes) == 300 and (np.diff(hashes.astype(object)) >= 0).all()


def test_many_small_puts_leave_few_runs() -> None:
    one = Delta(LAYOUT, (run_of([(0, 0)], 10),))
    for number in range(1, 200):
        one = one.add(run_of([(number, 0)], 256))
    assert sum(map(len, one.runs)) == 200
    assert len(one.runs) <= 8 and all(len(a) > 2 * len(b) for a, b in pairwise(one.runs))
    assert delta.pieces(one.runs) == [list(one.runs)]


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([5], 1),
        ([100, 1], 2),
        ([100, 1, 1], 2),
        ([4, 1, 1], 3),
        ([100, 30, 10, 5], 3),
        ([100, 9, 10, 5], 3),
        ([1] * 9, 9),
    ],
)
def test_long_old_segments_are_left_alone(rows: list[int], count: int) -> None:
    assert merge.count_to_merge(rows) == count
