"""Which windows are replayed: earlier ones that were trained on, each as likely as any other."""

from collections import Counter

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypercast.training.replay import Replay


def replay(trained: list[int], *, seed: int = 0, name: str = "shop", **settings: int) -> Replay:
    made = Replay.Config(**settings).build(seed=seed, name=name)
    for window in trained:
        made.finish(window)
    return made


@given(
    trained=st.sets(st.integers(-3, 30)),
    window=st.integers(-3, 40),
    windows=st.integers(0, 6),
    reach=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_only_trained_windows_before_this_one_within_reach_and_each_once(
    trained: set[int], window: int, windows: int, reach: int, seed: int
) -> None:
    order = sorted(trained)
    drawn = list(replay(order, windows=windows, reach=reach, seed=seed).draw(window))
    allowed = {index for index in trained if window - reach <= index < window}
    assert set(drawn) <= allowed
    assert len(drawn) == min(windows, len(allowed))
    assert drawn == sorted(set(drawn))
    again = replay(order, windows=windows, reach=reach, seed=seed)
    assert list(again.draw(window)) == list(again.draw(window)) == drawn
    later = [*order, *range(max([window, *order]) + 1, max([window, *order]) + 4)]  # training goes on
    assert list(replay(later, windows=windows, reach=reach, seed=seed).draw(window)) == drawn


def test_draws_differ_by_window_seed_and_name() -> None:
    made = replay(list(range(40)), windows=3, reach=40)
    draws = {tuple(made.draw(40)), tuple(made.draw(41))}
    draws |= {
        tuple(replay(list(range(40)), windows=3, reach=40, **other).draw(40))
        for other in ({"seed": 1}, {"name": "till"})
    }
    assert len(draws) == 4


def test_all_windows_within_reach_are_equally_likely() -> None:
    counts: Counter[int] = Counter()
    for seed in range(3000):
        counts.update(replay(list(range(10)), windows=2, reach=6, seed=seed).draw(10))
    assert sorted(counts) == [4, 5, 6, 7, 8, 9]
    # A third of the draws hold each; 160 are six standard deviations.
    assert all(abs(count - 1000) < 160 for count in counts.values())


def test_nothing_is_replayed_unless_asked_for() -> None:
    assert list(replay([1, 2, 3]).draw(4)) == []
    for wrong in ({"windows": -1}, {"reach": 0}):
        with pytest.raises(pydantic.ValidationError):
            Replay.Config(**wrong)
