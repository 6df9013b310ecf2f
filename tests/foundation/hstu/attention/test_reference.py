"""The reference against the definition pair by pair, in float64, and what no information may pass."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.attention.reference import TableGather, hstu_attention
from tests.foundation.hstu.attention.cases import (
    Case,
    assert_close,
    assert_results_close,
    cases,
    gradients,
    make_case,
    split_rows,
)
from tests.foundation.hstu.attention.definition import naive


@settings(max_examples=60, deadline=None)
@given(cases(longest=6))
def test_outputs_and_all_gradients(made: Case) -> None:
    actual, expected = made.attend(), naive(made)
    assert_close(actual, expected, relative=1e-12, size=1.0)
    if sum(made.sizes):
        pairs = zip(gradients(actual, made.leaves()).items(), gradients(expected, made.leaves()).values(), strict=True)
        for (name, mine), theirs in pairs:
            assert_close(mine, theirs, relative=1e-11, size=1.0, name=name)


@settings(max_examples=40, deadline=None)
@given(cases(longest=6), st.data())
def test_cached(made: Case, data: st.DataObject) -> None:
    stored = [data.draw(st.integers(0, before)) for before, _ in made.sequences]
    new = split_rows(made.sizes, stored)[1]
    assert_close(made.attend_cached(stored), naive(made)[new], relative=1e-12, size=1.0)


@pytest.mark.parametrize("biases", [{}, {"positions": None}, {"buckets": None}, {"positions": None, "buckets": None}])
@pytest.mark.parametrize("mask", [{}, {"max_distance": 2}, {"max_distance": 2, "full_tail": 2}])
def test_single_precision(biases: dict[str, None], mask: dict[str, int]) -> None:
    made = make_case([(7, 3), (0, 2), (6, 0)], value_width=5, dtype=torch.float32, **biases, **mask)
    assert_close(made.attend(), naive(made), relative=1e-5)
    assert_results_close(made, "reference", relative=1e-5)


@pytest.mark.parametrize("mask", [{}, {"max_distance": 1, "full_tail": 1}])
def test_gradcheck(mask: dict[str, int]) -> None:
    made = make_case([(3, 2), (0, 1)], context=1, width=2, value_width=3, **mask)

    def attend(*leaves: Tensor) -> Tensor:
        return replace(made, **dict(zip(made.leaves(), leaves, strict=True))).attend()

    assert torch.autograd.gradcheck(attend, list(made.leaves().values()))


def test_the_number_of_targets_changes_nothing() -> None:
    many = make_case([(6, 5)])
    one = many.at(torch.arange(7), sequences=((6, 1),))
    assert_close(one.attend(), many.attend()[:7], relative=1e-14)


def test_a_target_without_history_or_context_sees_itself_only() -> None:
    made = make_case([(0, 1)], context=0, heads=1)
    score = made.q[0, 0] @ made.k[0, 0] / math.sqrt(3) + made.position_bias[0] + made.time_bias[0]
    assert_close(made.attend()[0, 0], torch.nn.functional.silu(score) * made.v[0, 0] / 11, relative=1e-14)


def test_moving_all_times_changes_nothing() -> None:
    made = make_case([(7, 2)])
    assert made.attend().equal(replace(made, time=made.time + 10**15).attend())


def test_what_is_left_out_is_nothing() -> None:
    made = make_case([(5, 0), (2, 0)], context=0, positions=None, buckets=None)
    assert hstu_attention(made.q, made.k, made.v, made.offsets, max_seq_len=made.divisor).equal(made.attend())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12))
def test_table_gather_is_indexing(index: list[int]) -> None:
    table = torch.randn(5, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor(index, dtype=torch.int64)
    weights = torch.arange(len(index), dtype=torch.float64) + 1
    gathered = TableGather.apply(table, rows)
    assert gathered.equal(table[rows])
    (mine,) = torch.autograd.grad((gathered * weights).sum(), table)
    (plain,) = torch.autograd.grad((table[rows] * weights).sum(), table)
    assert mine.equal(plain)
