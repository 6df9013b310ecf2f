"""Delay curves say what is known now: unbiased by what has not come yet, blind to what comes later (laws L2, L5)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.labels.attribution import DAY, NEVER
from streaming.labels.delays import DelayCurves
from tests.streaming.labels.stories import WINDOW, Story, stories

NO_GROUPS = np.zeros((1, 0), dtype=np.int64)


def law(random: np.random.Generator, size: int, *, mean_days: float | np.ndarray, days: int = 30) -> tuple:
    """Requests of ever denser ``days``, of which 0.3 convert after an exponential delay."""
    time = np.sort((days * np.sqrt(random.random(size)) * DAY).astype(np.int64))
    delay = (random.exponential(1.0, size) * mean_days * DAY).astype(np.int64)
    return time, np.where(random.random(size) < 0.3, time + delay, NEVER)


def share(days: float, *, mean: float, window: float = 14) -> float:
    return float((1 - np.exp(-days / mean)) / (1 - np.exp(-window / mean)))


@given(stories(), st.integers(1, 9), st.floats(0.5, 100))
def test_the_future_changes_no_curve(story: Story, bins: int, strength: float) -> None:
    config = DelayCurves.Config(bins=bins, strength=strength, lookback_days=1)
    groups = np.stack([story.time_C % 2, story.time_C % 3], axis=1)
    asked = np.array([[0, 0], [1, 2], [1, 7], [5, 0]])
    found = [
        config.estimate(time_N=story.time_C, conversion_N=conversion, group_NG=groups, now=story.now, window=WINDOW)
        for conversion in (story.conversion_C, story.other_C)
    ]
    for window in (0, WINDOW // 3, WINDOW):
        first, second = (curves.within(asked, window) for curves in found)
        assert (first == second).all()
        assert ((first >= 0) & (first <= 1 + 1e-12)).all()
    past = story.time_C < story.now
    forgotten = config.estimate(
        time_N=story.time_C[past],
        conversion_N=story.conversion_C[past],
        group_NG=groups[past],
        now=story.now,
        window=WINDOW,
    )
    assert (forgotten.within(asked, WINDOW // 3) == found[0].within(asked, WINDOW // 3)).all()


def test_recent_requests_do_not_make_delays_look_short() -> None:
    now = 30 * DAY
    time, conversion = law(np.random.default_rng(3), 60_000, mean_days=5.0)
    curves = DelayCurves.Config().estimate(
        time_N=time, conversion_N=conversion, group_NG=np.zeros((len(time), 0), np.int64), now=now, window=14 * DAY
    )
    seen = conversion < now
    delays = (conversion - time)[seen]
    naive = (delays <= 3 * DAY).sum() / (delays <= 14 * DAY).sum()
    truth = share(3, mean=5.0)
    assert curves.within(NO_GROUPS, 3 * DAY)[0] == pytest.approx(truth, rel=0.02)
    assert naive > 1.1 * truth


def test_each_group_has_its_own_curve_and_unknown_ones_that_of_the_group_around() -> None:
    random = np.random.default_rng(4)
    mean = np.array([1.0, 6.0])
    group = random.integers(0, 2, 80_000)
    time, conversion = law(random, 80_000, mean_days=mean[group])
    names = np.array([-7, 1 << 62])[group]
    curves = DelayCurves.Config().estimate(
        time_N=time,
        conversion_N=conversion,
        group_NG=np.stack([names, np.arange(len(names)) % 3], axis=1),
        now=30 * DAY,
        window=14 * DAY,
    )
    asked = np.array([[-7, 0], [1 << 62, 2], [1 << 62, 9], [0, 0]])
    fast, slow, slow_unknown, unknown = curves.within(asked, 2 * DAY)
    assert fast == pytest.approx(share(2, mean=1.0), rel=0.02)
    assert slow == pytest.approx(share(2, mean=6.0), rel=0.05)
    assert slow_unknown == pytest.approx(share(2, mean=6.0), rel=0.04)
    assert slow < unknown < fast


def test_a_group_is_drawn_to_the_one_around_it_as_far_as_it_is_small() -> None:
    random = np.random.default_rng(5)
    group = (np.arange(40_000) % 400 == 0).astype(np.int64)  # 100 requests, about 30 conversions
    time, conversion = law(random, 40_000, mean_days=np.where(group == 1, 0.2, 5.0))
    close, between, far = (
        DelayCurves.Config(strength=strength)
        .estimate(time_N=time, conversion_N=conversion, group_NG=group[:, None], now=30 * DAY, window=14 * DAY)
        .within(np.array([[1]]), DAY)[0]
        for strength in (1e6, 30.0, 1e-3)
    )
    whole = share(1, mean=5.0)
    assert close == pytest.approx(whole, rel=0.05)
    assert close < between < far
    assert far > 0.9


@given(st.integers(0, 5), st.integers(1, 20))
def test_a_curve_without_conversions_is_a_line(requests: int, bins: int) -> None:
    curves = DelayCurves.Config(bins=bins).estimate(
        time_N=np.arange(requests) * DAY,
        conversion_N=np.full(requests, NEVER),
        group_NG=np.zeros((requests, 1), np.int64),
        now=100 * DAY,
        window=10 * DAY,
    )
    within = [curves.within(np.array([[0]]), days * DAY)[0] for days in range(11)]
    assert within[0] == 0 and within[-1] == pytest.approx(1)
    assert (np.diff(within) > 0).all()


def test_requests_before_the_lookback_do_not_count() -> None:
    random = np.random.default_rng(6)
    time, conversion = law(random, 20_000, mean_days=np.repeat([0.1, 5.0], 10_000))
    config = {
        "time_N": time,
        "conversion_N": conversion,
        "group_NG": np.zeros((20_000, 0), np.int64),
        "window": 7 * DAY,
    }
    all_of_it = DelayCurves.Config(lookback_days=60).estimate(**config, now=30 * DAY)
    recent = DelayCurves.Config(lookback_days=8).estimate(**config, now=30 * DAY)
    assert recent.within(NO_GROUPS, DAY)[0] == pytest.approx(share(1, mean=5.0, window=7), rel=0.1)
    assert all_of_it.within(NO_GROUPS, DAY)[0] > 1.5 * recent.within(NO_GROUPS, DAY)[0]


def test_buckets_are_split_at_the_window() -> None:
    time, conversion = law(np.random.default_rng(7), 5_000, mean_days=4.0)
    curves = DelayCurves.Config().estimate(
        time_N=time, conversion_N=conversion, group_NG=np.zeros((5_000, 0), np.int64), now=30 * DAY, window=14 * DAY
    )
    buckets = [(0, DAY), (DAY, 3 * DAY), (3 * DAY, 14 * DAY)]
    for window, whole in ((DAY, 1), (3 * DAY, 2), (14 * DAY, 3)):
        assert curves.split(NO_GROUPS, buckets, window)[0].tolist() == [1.0] * whole + [0.0] * (3 - whole)
    part = curves.split(NO_GROUPS, buckets, 2 * DAY)[0]
    assert part[0] == 1 and 0 < part[1] < 1 and part[2] == 0
    # What the buckets make together is what the curve says.
    mass = np.diff([curves.within(NO_GROUPS, end)[0] for end in (0, DAY, 3 * DAY, 14 * DAY)])
    assert part @ mass == pytest.approx(curves.within(NO_GROUPS, 2 * DAY)[0])
    assert curves.stretch(NO_GROUPS, 3 * DAY, 2 * DAY)[0] == 1
    assert curves.stretch(NO_GROUPS, 3 * DAY, 14 * DAY)[0] == pytest.approx(1 / mass[:2].sum())
