"""The contrast of two cohorts, its error and its bound, against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.contrast import contrasts, student_quantile

GROUPS = 64


def counted(rates: list[float], *, seed: int, each: int = 50, scatter: float = 0.0) -> np.ndarray:
    """``each`` rows in every group; ``scatter`` moves a whole group's rate."""
    random = np.random.default_rng(seed)
    moved = np.clip(np.array(rates)[:, None] + scatter * random.standard_normal((len(rates), GROUPS)), 0.001, 0.999)
    return np.stack([np.full(moved.shape, each), random.binomial(each, moved)], axis=2).astype(float)


def test_effect_is_cohens_h() -> None:
    sums = np.zeros((2, GROUPS, 2))
    sums[:, :, 0] = 100
    sums[0, :, 1], sums[1, :, 1] = 50, 25
    (found,) = contrasts(sums, least_rows=1, least_positives=1)
    assert (found.low, found.high) == (1, 0)
    assert found.effect == pytest.approx(math.pi / 2 - math.pi / 3)  # 2 asin sqrt(1/2) - 2 asin sqrt(1/4)
    assert found.error == pytest.approx(0.0, abs=1e-12)  # all groups agree


def test_error_of_independent_rows_is_that_of_the_binomial() -> None:
    errors = [contrasts(counted([0.3, 0.2], seed=s), least_rows=1, least_positives=1)[0].error for s in range(30)]
    assert np.mean(errors) == pytest.approx(math.sqrt(2 / (50 * GROUPS)), rel=0.1)


def test_users_that_differ_widen_the_error() -> None:
    """Ten rows of one user are not ten users."""
    plain = contrasts(counted([0.3, 0.2], seed=0), least_rows=1, least_positives=1)[0]
    scattered = contrasts(counted([0.3, 0.2], seed=0, scatter=0.15), least_rows=1, least_positives=1)[0]
    assert scattered.error > 2 * plain.error


@pytest.mark.parametrize(
    ("rows", "positives", "groups", "enough"),
    [(100, 30, 64, True), (99, 30, 64, False), (100, 9, 64, False), (100, 91, 64, False), (100, 30, 15, False)],
)
def test_support(rows: int, positives: int, groups: int, enough: bool) -> None:
    sums = np.zeros((2, GROUPS, 2))
    sums[0] = [100, 20]
    sums[1, :groups] = [rows / groups, positives / groups]
    assert bool(contrasts(sums, least_rows=100 - 1e-9, least_positives=10 - 1e-9)) == enough


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.integers(0, 99))
def test_every_pair_once_whatever_the_order(values: int, seed: int) -> None:
    sums = counted(list(np.linspace(0.1, 0.6, values)), seed=seed)
    found = contrasts(sums, least_rows=1, least_positives=1)
    assert len({frozenset((each.low, each.high)) for each in found}) == len(found) == values * (values - 1) // 2
    assert all(each.effect >= 0 for each in found)
    turned = contrasts(sums[::-1], least_rows=1, least_positives=1)
    assert sorted(each.effect for each in turned) == pytest.approx(sorted(each.effect for each in found))


@pytest.mark.parametrize(
    ("tail", "degrees", "expected"),
    [(0.025, 15, 2.131), (0.025, 63, 1.998), (0.0005, 30, 3.646), (0.00005, 20, 4.837), (0.005, 15, 2.947)],
)
def test_student_quantiles_of_the_table(tail: float, degrees: int, expected: float) -> None:
    assert student_quantile(tail, degrees) == pytest.approx(expected, rel=0.01)


def test_more_comparisons_need_more() -> None:
    (found,) = contrasts(counted([0.3, 0.2], seed=0), least_rows=1, least_positives=1)
    assert found.effect > found.bound(0.95, 1) > found.bound(0.95, 1000)
    assert found.bound(0.95, 1) > found.bound(0.99, 1)
