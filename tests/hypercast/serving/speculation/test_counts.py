"""Sums by key are those of a dictionary."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hypercast.serving.speculation.counts import Sums, decayed, find

KEYS = st.lists(st.integers(-3, 12), max_size=30)


@given(events=st.lists(st.tuples(st.integers(-3, 12), st.integers(0, 8)), max_size=30), wanted=KEYS)
def test_sums_are_a_dictionarys(events: list[tuple[int, int]], wanted: list[int]) -> None:
    expected: dict[int, int] = defaultdict(int)
    for key, weight in events:
        expected[key] += weight
    key, weight = (np.array([event[part] for event in events], np.int64) for part in (0, 1))
    sums = Sums(key, weight.astype(np.float64))
    assert sums.of(np.array(wanted, np.int64)).tolist() == [expected[each] for each in wanted]


@given(table=KEYS, wanted=KEYS)
def test_what_is_found_stands_there(table: list[int], wanted: list[int]) -> None:
    have = np.unique(np.array(table, np.int64))
    at, known = find(have, np.array(wanted, np.int64))
    assert known.tolist() == [each in table for each in wanted]
    assert have[at[known]].tolist() == [each for each in wanted if each in table]


def test_decay() -> None:
    np.testing.assert_allclose(decayed(np.array([0, 7, 14]), 7), [1, np.exp(-1), np.exp(-2)])
