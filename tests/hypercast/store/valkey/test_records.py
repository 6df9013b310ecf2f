"""Keys and values: what goes in comes out, and nothing else does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from valkey.crc import key_slot

from hypercast.store.valkey import records, servers, wire

INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = st.lists(st.tuples(INT64, INT64, INT64), min_size=1, max_size=5)


def encoded(key: np.ndarray, at: list[int], row_bytes: int = 13) -> list[bytes]:
    """One record for each key and time."""
    payload = np.random.default_rng(len(at)).integers(0, 256, (len(at), row_bytes), np.uint8)
    times = np.array(at, np.int64)
    record = records.encode(key_N3=key, computed_at=times, history_end=times, payload_NB=payload)
    return [row.tobytes() for row in record]


@settings(max_examples=50, deadline=None)
@given(KEYS, st.integers(0, 40), st.data())
def test_rows_come_back_as_they_were_put(key: list[tuple[int, ...]], row_bytes: int, data: st.DataObject) -> None:
    key_N3 = np.array(key, np.int64)
    at = np.array(data.draw(st.lists(INT64, min_size=len(key), max_size=len(key))), np.int64)
    payload = np.random.default_rng(0).integers(0, 256, (len(key), row_bytes), np.uint8)
    record = records.encode(key_N3=key_N3, computed_at=at, history_end=~at, payload_NB=payload)
    rows, damaged = records.decode([row.tobytes() for row in record], key_N3=key_N3, row_bytes=row_bytes)
    assert rows.found.all() and not len(damaged)
    np.testing.assert_array_equal(rows.computed_at, at)
    np.testing.assert_array_equal(rows.history_end, ~at)
    np.testing.assert_array_equal(rows.payload, payload)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 8 * 40 - 1), st.booleans())
def test_every_flipped_bit_is_seen(bit: int, second: bool) -> None:
    key_N3 = np.array([[0, 5, 9]])
    newest, older = encoded(key_N3.repeat(2, axis=0), [7, 3])
    broken = bytearray(older if second else newest)
    broken[bit // 8] ^= 1 << bit % 8
    value = newest + broken if second else broken + older
    rows, damaged = records.decode([bytes(value)], key_N3=key_N3, row_bytes=13)
    assert damaged.tolist() == [0] and not rows.found.any() and not rows.payload.any()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=90))
def test_nothing_but_a_record_is_read(value: bytes) -> None:
    rows, damaged = records.decode([value, None], key_N3=np.zeros((2, 3), np.int64), row_bytes=13)
    assert damaged.tolist() == [0] and not rows.found.any()


def test_a_value_under_another_key_is_seen() -> None:
    key_N3 = np.array([[0, 5, 9], [0, 9, 5]])
    values = encoded(key_N3, [7, 7])
    assert records.decode(list(reversed(values)), key_N3=key_N3, row_bytes=13)[1].tolist() == [0, 1]


@pytest.mark.parametrize(("as_of", "expected"), [(None, 9), (9, 9), (8, 4), (4, 4), (3, None)])
def test_the_latest_record_not_after(as_of: int | None, expected: int | None) -> None:
    key_N3 = np.array([[0, 1, 2]])
    value = b"".join(encoded(key_N3.repeat(2, axis=0), [9, 4]))
    rows, damaged = records.decode([value], key_N3=key_N3, row_bytes=13, as_of=as_of)
    assert not len(damaged)
    assert (rows.computed_at.tolist() if rows.found[0] else [None]) == [expected]


@settings(max_examples=200, deadline=None)
@given(KEYS, st.binary(min_size=8, max_size=8))
def test_a_row_goes_where_a_cluster_looks_for_it(key: list[tuple[int, ...]], generation: bytes) -> None:
    key_N3 = np.array(key, np.int64)
    server_NK = records.encode_keys(records.row_head("hypercast", generation), key_N3)
    names = [row.tobytes() for row in server_NK]
    assert [servers.slot_of(name) for name in names] == [key_slot(name) for name in names]
    assert {records.generation_of(name) for name in names} == {generation}
    np.testing.assert_array_equal(records.decode_keys(names), key_N3)


@given(st.binary(max_size=12))
def test_slots_of_any_keys(key: bytes) -> None:
    for name in (key, b"{" + key, b"a{" + key + b"}b", b"{}" + key):
        assert servers.slot_of(name) == key_slot(name)


def test_rows_spread_over_all_slots() -> None:
    names = records.encode_keys(
        records.row_head("hypercast", bytes(8)), np.array([(0, user, 1) for user in range(4000)])
    )
    assert len({servers.slot_of(name.tobytes()) for name in names}) > 3000


def test_commands_are_written_as_the_client_writes_them() -> None:
    from valkey.connection import Connection

    key_NK, value_NV = np.arange(12, dtype=np.uint8).reshape(3, 4), np.arange(15, dtype=np.uint8).reshape(3, 5)
    commands = [("SET", key.tobytes(), value.tobytes(), "NX") for key, value in zip(key_NK, value_NV, strict=True)]
    packed = wire.pack(b"SET", key_NK, value_NV, b"NX")
    assert packed.tobytes() == b"".join(Connection().pack_commands(commands))
    mget = ("MGET", *(key.tobytes() for key in key_NK))
    assert wire.pack_mget(key_NK) == b"".join(Connection().pack_command(*mget))
    assert wire.one(b"GET", b"k") == b"".join(Connection().pack_command("GET", "k"))
