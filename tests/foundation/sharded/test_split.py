"""Requests stay whole, each goes to one shard, and shards differ by no more than one request."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foundation.sharded.split import split_by_tokens

tokens = st.lists(st.integers(1, 600), min_size=1, max_size=40)


@given(tokens, st.integers(1, 8))
def test_every_request_goes_to_one_shard_in_order(counts: list[int], shards: int) -> None:
    split = split_by_tokens(np.array(counts), shards)
    assert len(split) == shards
    assert sorted(np.concatenate(split).tolist()) == list(range(len(counts)))
    assert all((np.diff(each) > 0).all() for each in split)


@given(tokens, st.integers(1, 8))
def test_shards_differ_by_no_more_than_the_longest_request(counts: list[int], shards: int) -> None:
    count_B = np.array(counts)
    loads = [int(count_B[each].sum()) for each in split_by_tokens(count_B, shards)]
    assert max(loads) - min(loads) <= max(counts)


def test_it_balances_tokens_where_rows_would_not() -> None:
    count_B = np.array([512, 500, 496, 480, 9, 8, 8, 8])
    loads = [int(count_B[each].sum()) for each in split_by_tokens(count_B, 2)]
    assert max(loads) - min(loads) == 3
    assert count_B[:4].sum() - count_B[4:].sum() == 1955
