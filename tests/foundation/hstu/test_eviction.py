"""What each policy is for: frequent ids outlast rare ones, old fame fades, unseen ids expire."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.hstu.eviction import DAY, NOTHING, Clock, Eviction, LeastFrequent, LeastRecent, TimeToLive
from foundation.hstu.id_table import MISS, IdTable
from foundation.hstu.vocabulary import BatchVocabulary
from streaming import config
from streaming.errors import ConfigError


def filled(eviction: Eviction, *days: tuple[float, list[int]], capacity: int = 4) -> IdTable:
    """A table that has admitted codes on days."""
    table = IdTable(capacity=capacity, eviction=eviction)
    for day, codes in days:
        table.admit(np.array(codes, dtype=np.int64), time=int(day * DAY))
    return table


def inside(table: IdTable, *codes: int) -> list[bool]:
    return (table.lookup(np.array(codes)) != MISS).tolist()


STREAM = [(0, [1]), (0, [1]), (0, [1]), (1, [2]), (2, [3]), (3, [4])]
"""Code 1 is the most frequent and was seen longest ago; three slots are full when 4 comes."""


def test_the_least_recent_gives_way() -> None:
    assert inside(filled(LeastRecent(), *STREAM), 1, 2, 3, 4) == [False, True, True, True]


def test_the_least_frequent_gives_way_and_of_equal_ones_the_older() -> None:
    table = filled(LeastFrequent(half_life_days=100), *STREAM)
    assert inside(table, 1, 2, 3, 4) == [True, False, True, True]


def test_newcomers_enter_a_table_full_of_favourites() -> None:
    favourites = [(0.0, [1, 2, 3])] * 50
    table = filled(LeastFrequent(half_life_days=100), *favourites, (1, [4]), (1, [5]))
    assert inside(table, 1, 2, 3, 4, 5) == [False, True, True, False, True]  # a favourite once, then the newcomer
    assert table.statistics()["evicted"] == 2


def test_fame_fades() -> None:
    favourite = [(0.0, [1])] * 50
    late = [(day, [2]) for day in (60, 61)] + [(62, [3])]
    for half_life, stays in ((10, False), (1000, True)):
        table = filled(LeastFrequent(half_life_days=half_life), *favourite, *late, (63, [4]))
        assert inside(table, 1) == [stays]


LOOKED_UP = st.lists(st.floats(0, 400), min_size=1, max_size=6).map(sorted)


@given(LOOKED_UP, LOOKED_UP, st.floats(400, 4000))
def test_priorities_order_as_decayed_counts_at_any_later_time(one: list[float], other: list[float], now: float) -> None:
    policy, half_life = LeastFrequent(half_life_days=30), 30
    priorities, counts = [], []
    for days in (one, other):
        priority = np.array([NOTHING])
        for step, day in enumerate(days):
            priority = policy.priority(priority, Clock(step=step, time=int(day * DAY)))
        priorities.append(priority[0])
        counts.append(sum(0.5 ** ((now - day) / half_life) for day in days))
    assert 2 ** (priorities[0] - now / half_life) == pytest.approx(counts[0], rel=1e-6)
    if not np.isclose(*counts, rtol=1e-6):
        assert (priorities[0] < priorities[1]) == (counts[0] < counts[1])


def test_unseen_ids_expire_though_there_is_room() -> None:
    table = filled(TimeToLive(days=10), (0, [1]), (5, [2]), capacity=9)
    slot = table.lookup(np.array([1]))
    _, evicted = table.admit(np.array([3]), time=10 * DAY)
    assert inside(table, 1, 2, 3) == [True, True, True] and len(evicted) == 0
    _, evicted = table.admit(np.array([], dtype=np.int64), time=10 * DAY + 1)
    assert inside(table, 1, 2, 3) == [False, True, True]
    assert evicted.tolist() == slot.tolist()
    assert table.statistics() == {"occupancy": 2 / 8, "evicted": 1, "refused": 0, "collisions": 0}
    table.admit(np.array([4, 5]), time=11 * DAY)
    assert table.lookup(np.array([4, 5])).tolist() == [1, 4]  # the slot that became free, and the next


def test_what_comes_back_too_late_starts_again() -> None:
    """Whether another batch came between or not."""
    table = filled(TimeToLive(days=10), (0, [1, 2]))
    slots, evicted = table.admit(np.array([1]), time=11 * DAY)
    assert slots.tolist() == [1] and sorted(evicted.tolist()) == [1, 2]
    assert inside(table, 1, 2) == [True, False]


def test_in_a_full_table_the_least_recent_gives_way_before_it_expires() -> None:
    assert inside(filled(TimeToLive(days=10), *STREAM), 1, 2, 3, 4) == [False, True, True, True]


def test_batches_of_an_earlier_time_do_not_turn_the_clock_back() -> None:
    table = filled(TimeToLive(days=10), (0, [1]), (8, [2]), (3, [1]))
    table.admit(np.array([3]), time=15 * DAY)  # 1 was seen when the clock stood at 8
    assert inside(table, 1, 2, 3) == [True, True, True]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("{}", LeastRecent, None),
        ("{eviction: {policy: lru}}", LeastRecent, None),
        ("{eviction: {policy: lfu, half_life_days: 7}}", LeastFrequent, 7 * DAY),
        ("{eviction: {policy: ttl, days: 0.5}}", TimeToLive, DAY // 2),
    ],
)
def test_configuration(text: str, kind: type, value: float | None, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.yaml").write_text(text)
    loaded = config.load(tmp_path / "vocabulary.yaml", BatchVocabulary.Config)
    policy = loaded.eviction.build()
    assert type(policy) is kind
    assert value in (None, *vars(policy).values())
    (tmp_path / "again.yaml").write_text(config.dump(loaded))
    assert config.load(tmp_path / "again.yaml", BatchVocabulary.Config) == loaded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{eviction: {policy: fifo}}", "eviction.*'lru', 'lfu', 'ttl'"),
        ("{eviction: {policy: lru, days: 3}}", "days.*Extra inputs are not permitted"),
        ("{eviction: {policy: ttl, days: 0}}", "days.*greater than 0"),
        ("{eviction: {policy: lfu, half_life_days: -1}}", "half_life_days.*greater than 0"),
    ],
)
def test_a_mistake_in_the_configuration(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.load(tmp_path / "vocabulary.yaml", BatchVocabulary.Config)
