"""Mask, positions and buckets of time, each against its definition for one pair of tokens."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.hstu.attention.semantics import (
    attention_mask,
    sees,
    sequence_positions,
    time_buckets,
    time_thresholds,
)
from tests.foundation.hstu.attention import definition
from tests.foundation.hstu.attention.cases import SECOND, Case, make_case

ONE = make_case([(0, 0)])


def options(given_case: Case) -> dict[str, int | None]:
    return {
        "contextual_len": given_case.context,
        "max_distance": given_case.max_distance,
        "full_tail": given_case.full_tail,
    }


def masks() -> st.SearchStrategy[Case]:
    return st.builds(
        lambda context, distance, tail: replace(ONE, context=context, max_distance=distance, full_tail=tail),
        st.integers(0, 4),
        st.none() | st.integers(0, 9),
        st.integers(0, 5),
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10), st.integers(0, 4), masks())
def test_mask_is_its_definition(before: int, targets: int, rule: Case) -> None:
    length = before + targets
    expected = [
        [definition.sees(row, column, length=length, targets=targets, given=rule) for column in range(length)]
        for row in range(length)
    ]
    mask = attention_mask(length, targets, **options(rule))
    assert mask.dtype == torch.bool and mask.shape == (length, length)
    assert mask.tolist() == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10), st.integers(0, 4), masks(), st.data())
def test_any_rows_and_columns_of_the_mask(before: int, targets: int, rule: Case, data: st.DataObject) -> None:
    length = before + targets
    places = st.lists(st.integers(0, max(0, length - 1)), max_size=4 if length else 0)
    rows, columns = (torch.tensor(data.draw(places), dtype=torch.int64) for _ in range(2))
    part = sees(rows[:, None], columns[None, :], history_end=before, **options(rule))
    assert part.equal(attention_mask(length, targets, **options(rule))[rows][:, columns])


def test_mask_of_one_sequence() -> None:
    # context 2, history 2, targets 2
    expected = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]
    assert attention_mask(6, 2, 2).long().tolist() == expected


def test_mask_with_distance_and_tail() -> None:
    # context 1, history 4, target 1; two positions back, but the last of the history and the target see everything
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert attention_mask(6, 1, 1, 2, 1).long().tolist() == expected
    expected[4] = [1, 0, 1, 1, 1, 0]
    expected[5] = [1, 0, 0, 1, 1, 1]
    assert attention_mask(6, 1, 1, 2, 0).long().tolist() == expected


@pytest.mark.parametrize(
    ("length", "targets", "expected"), [(0, 0, []), (3, 0, [0, 1, 2]), (5, 2, [0, 1, 2, 3, 3]), (2, 2, [0, 0])]
)
def test_targets_share_one_position(length: int, targets: int, expected: list[int]) -> None:
    assert sequence_positions(length, targets).tolist() == expected


def test_time_buckets_grow_with_the_logarithm() -> None:
    seconds = [0, 1, 2, 10, 3_600, 86_400, 10 * 365 * 86_400]
    times = torch.tensor([0, *(second * SECOND for second in seconds)])
    expected = [int(math.log(max(1, second)) / 0.301) for second in seconds]
    assert time_buckets(times, times, count=1000)[0, 1:].tolist() == expected
    assert time_buckets(times, times, count=20)[0, 1:].tolist() == [min(bucket, 19) for bucket in expected]
    assert time_buckets(times[:3], times, count=1000).equal(time_buckets(times, times[:3], count=1000).T)


def test_one_bucket_holds_all_times() -> None:
    assert time_buckets(torch.tensor([0, 10**15]), torch.tensor([5]), count=1).tolist() == [[0], [0]]


def test_a_bucket_begins_at_its_threshold() -> None:
    for count in (2, 64, 300):
        starts = time_thresholds(count)
        assert starts.dtype == torch.float32 and len(starts) == count - 1
        assert (starts.diff() >= 0).all()
    starts = time_thresholds(64)[:40]
    at = starts.long()  # whole microseconds
    at = torch.where(at.float() < starts, at + 1, at)
    assert time_buckets(at, torch.tensor([0]), count=64)[:, 0].tolist() == list(range(1, 41))
