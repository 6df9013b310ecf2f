"""The vectorised join finds what a dict finds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hypercast.store.keys import KeyIndex

_REQUESTS = st.one_of(st.integers(0, 3), st.integers(-(1 << 63), (1 << 63) - 1))
_CANDIDATES = st.one_of(st.integers(-2, 3), st.integers(-(1 << 31), (1 << 31) - 1))
_KEYS = st.lists(st.tuples(_REQUESTS, _CANDIDATES), max_size=30)


def columns(keys: list[tuple[int, int]], dtype: type = np.int32) -> dict[str, np.ndarray]:
    return {
        "request_id": np.array([key[0] for key in keys], np.int64),
        "candidate_id": np.array([key[1] for key in keys], dtype),
    }


@given(_KEYS.map(lambda keys: list(dict.fromkeys(keys))), _KEYS, st.randoms())
def test_equals_a_dict_lookup(table: list[tuple[int, int]], others: list[tuple[int, int]], chance) -> None:
    index = KeyIndex(**columns(table))
    rows = {key: row for row, key in enumerate(table)}
    query = [*table, *others]
    chance.shuffle(query)
    assert index.locate(**columns(query)).tolist() == [rows.get(key, -1) for key in query]
    assert index.duplicate() is None


@given(_KEYS.filter(bool), st.data())
def test_a_repeated_key_is_found(keys: list[tuple[int, int]], data: st.DataObject) -> None:
    keys = list(dict.fromkeys(keys))
    keys.insert(data.draw(st.integers(0, len(keys))), data.draw(st.sampled_from(keys)))
    row = KeyIndex(**columns(keys)).duplicate()
    assert row is not None
    assert keys.count(keys[row]) == 2


def test_a_wide_candidate_does_not_wrap_around() -> None:
    index = KeyIndex(**columns([(5, 1), (6, -(1 << 31))]))
    wide = [(5, 1 + (1 << 32)), (5, 1 << 31), (5, 1)]
    assert index.locate(**columns(wide, np.int64)).tolist() == [-1, -1, 0]
