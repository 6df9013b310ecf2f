"""What a user has done has one order, and copies count once, however it came."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.serving.features.past import NO_ID, UserPast
from streaming.history import Events


def events(ids: list[int]) -> Events:
    """Of each id always the same engagement, several of them at one time."""
    item = np.array(ids, np.int64)
    nothing = np.zeros_like(item)
    return Events(item=item, surface=nothing, action=nothing, time=item * 7 % 5 + 10)


def add(past: UserPast, ids: list[int], *, named: bool = True, most: int = 100) -> int:
    """Add engagements as a state does, in the order of (time, id); how many were no copies."""
    new, names = events(ids), np.array(ids, np.int64) if named else np.full(len(ids), NO_ID)
    order = np.lexsort((names, new.time))
    return int(past.add(Events(*(column[order] for column in new)), names[order], most=most).sum())


@given(ids=st.lists(st.integers(0, 12), max_size=30), size=st.integers(1, 7), order=st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_ids_order_what_was_done_at_one_time_and_tell_copies(ids: list[int], size: int, order: random.Random) -> None:
    past, taken = UserPast(events([100, 99, 99])), 0
    order.shuffle(ids)
    for start in range(0, len(ids), size):
        taken += add(past, ids[start : start + size])
    assert taken == past.observed == len({*ids})
    wanted = sorted({*ids}, key=lambda one: (one * 7 % 5, one))
    logged = [100, 99, 99]  # at times 10 and 13: before those with an id that came later
    found = past.before(99)
    assert [one for one in found.item.tolist() if one < 99] == wanted
    assert [one for one in found.item.tolist() if one >= 99] == logged
    assert (np.diff(found.time) >= 0).all()
    for time in (10, 13):
        there = found.item[found.time == time].tolist()
        assert there == sorted(there, key=lambda one: one < 99)


def test_what_has_no_id_is_no_copy_and_keeps_its_order() -> None:
    past = UserPast(events([]))
    assert add(past, [5, 0, 5], named=False) == 3
    assert add(past, [0, 0, 10]) == 2
    assert past.before(99).item.tolist() == [0, 10, 5, 0, 5]  # all at one time: those with an id first


def test_a_copy_is_told_in_what_is_held_alone() -> None:
    past = UserPast(events([]))
    for one in (0, 3, 1, 4):  # at times 10, 11, 12, 13
        add(past, [one], most=2)
    assert add(past, [4], most=2) == 0
    assert past.before(99).item.tolist() == [1, 4]
