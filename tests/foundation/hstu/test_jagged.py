"""Joining jagged sequences is concatenating them one by one."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.hstu.jagged import Join, offsets_of

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=5)


@given(PAIRS)
def test_joined_rows_are_those_of_each_sequence_in_turn(lengths: list[tuple[int, int]]) -> None:
    first, second = (torch.tensor([pair[half] for pair in lengths], dtype=torch.int64) for half in (0, 1))
    a = torch.arange(int(first.sum()) * 2).reshape(-1, 2)
    b = -torch.arange(1, int(second.sum()) * 2 + 1).reshape(-1, 2)
    join = Join.of(offsets_of(first), offsets_of(second))
    joined = join(a, b)
    halves = zip(a.split(first.tolist()), b.split(second.tolist()), strict=True)
    expected = [part for pair in halves for part in pair]
    assert joined.equal(torch.cat([a[:0], *expected]))
    assert join.offsets.equal(offsets_of(first + second))
    assert joined[join.first_S].equal(a) and joined[join.second_T].equal(b)


def test_gradients_reach_both_halves() -> None:
    a, b = torch.randn(3, 2, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    join = Join.of(torch.tensor([0, 1, 3]), torch.tensor([0, 2, 2]))
    weights = torch.arange(10.0).reshape(5, 2)
    (join(a, b) * weights).sum().backward()
    assert a.grad is not None and a.grad.equal(weights[[0, 3, 4]])
    assert b.grad is not None and b.grad.equal(weights[[1, 2]])
