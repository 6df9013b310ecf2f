"""A budget is kept, and spent on what is worth most."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypercast.serving.speculation.asked_log import AskedLog
from hypercast.serving.speculation.budget import Budget, Plan

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=12)


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([user for user, _ in pairs], np.int64), np.array([chance / 20 for _, chance in pairs])


def cost_of(users: np.ndarray, encoding: float) -> float:
    return len(users) + encoding * len(np.unique(users))


@given(pairs=PAIRS, cost=st.integers(0, 40), more=st.integers(0, 10), encoding=st.integers(0, 5))
def test_the_budget_is_kept_and_a_larger_one_buys_more(
    pairs: list[tuple[int, int]], cost: int, more: int, encoding: int
) -> None:
    user, chance = columns(pairs)
    plan = Plan(user, chance, encoding=encoding)
    chosen, further = plan.within(cost), plan.within(cost + more)
    assert len(set(chosen.tolist())) == len(chosen)
    assert cost_of(user[chosen], encoding) <= cost
    assert further[: len(chosen)].tolist() == chosen.tolist()
    assert sorted(plan.within(1e9).tolist()) == list(range(len(pairs)))
    if len(further) < len(pairs):  # no more than one step is left over
        assert cost_of(user[further], encoding) > cost + more - 1 - encoding


@given(pairs=PAIRS, cost=st.integers(0, 12))
def test_without_encodings_the_likeliest_come_first(pairs: list[tuple[int, int]], cost: int) -> None:
    user, chance = columns(pairs)
    chosen = Plan(user, chance).within(cost)
    assert chance[chosen].tolist() == sorted(chance.tolist(), reverse=True)[:cost]


@given(pairs=PAIRS, encoding=st.integers(1, 6))
def test_what_the_first_step_buys_is_the_best_there_is_for_its_cost(
    pairs: list[tuple[int, int]], encoding: int
) -> None:
    user, chance = columns(pairs)
    if not len(user):
        return
    ranked = Plan(user, chance, encoding=encoding).within(1e9)
    same = list(itertools.takewhile(lambda index: user[index] == user[ranked[0]], ranked.tolist()))
    worth = max(chance[same[:count]].sum() / (encoding + count) for count in range(1, len(same) + 1))
    for one in np.unique(user):
        best = np.sort(chance[user == one])[::-1]
        assert worth >= max(best[:count].sum() / (encoding + count) for count in range(1, len(best) + 1)) - 1e-12


def test_many_fair_pairs_of_one_user_may_be_worth_more_than_one_good_one() -> None:
    user, chance = np.array([1, 2, 2, 2]), np.array([0.9, 0.6, 0.6, 0.6])
    assert Plan(user, chance, encoding=0).within(1).tolist() == [0]
    assert Plan(user, chance, encoding=3).within(6).tolist() == [1, 2, 3]  # 1.8 for 6 against 0.9 for 4


@pytest.mark.parametrize(
    ("budget", "cost"),
    [({"share": 0.5}, 2.5), ({"share": 0.5, "encoding": 3}, 4.0), ({"pairs": 4}, 4.0), ({"share": 0}, 0.0)],
)
def test_a_share_is_one_of_what_was_asked_for_before(budget: dict[str, float], cost: float) -> None:
    """Two requests for ten candidates in two rounds."""
    nothing = np.zeros(10, np.int64)
    asked = AskedLog(
        user_id=nothing[:2],
        time=nothing[:2],
        context=nothing[:2, None],
        offsets=np.array([0, 3, 10]),
        item_id=nothing,
        item=nothing,
        surface=nothing,
        dense=np.zeros((10, 1), np.float32),
    )
    assert Budget.model_validate(budget).cost(asked, spans=2) == cost
