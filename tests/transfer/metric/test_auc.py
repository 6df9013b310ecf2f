import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transfer.metric.auc import BINS, BinnedAuc, auc, auc_by_stratum, bin_of, grouped_auc


def by_pairs(p: np.ndarray, y: np.ndarray) -> float:
    """The definition: every positive against every negative."""
    positive, negative = p[y == 1][:, None], p[y == 0][None, :]
    return float(((positive > negative) + 0.5 * (positive == negative)).mean())


ROWS = st.integers(2, 40)


def draw_rows(data: st.DataObject, rows: int) -> tuple[np.ndarray, np.ndarray]:
    # Few distinct values, so that ties are common.
    p = data.draw(hnp.arrays(np.float32, rows, elements=st.sampled_from([0.0, 0.1, 0.1001, 0.25, 0.5, 0.99, 1.0])))
    y = data.draw(hnp.arrays(np.float32, rows, elements=st.sampled_from([0.0, 1.0])))
    y[:2] = [0.0, 1.0]
    return p, y


@given(data=st.data(), rows=ROWS)
def test_equals_counting_pairs(data: st.DataObject, rows: int) -> None:
    p, y = draw_rows(data, rows)
    assert auc(p, y) == pytest.approx(by_pairs(p, y))


@given(data=st.data(), rows=ROWS)
def test_binned_stays_within_its_bound(data: st.DataObject, rows: int) -> None:
    p, y = draw_rows(data, rows)
    binned = BinnedAuc().update(p[:5], y[:5]).merge(BinnedAuc().update(p[5:], y[5:]))
    assert abs(binned.value() - auc(p, y)) <= binned.error_bound() + 1e-12


def test_binned_is_close_on_smooth_scores() -> None:
    random = np.random.default_rng(0)
    logit = random.normal(-2, 1, 50_000)
    y = (random.random(50_000) < 1 / (1 + np.exp(-logit))).astype(float)
    p = 1 / (1 + np.exp(-(logit + random.normal(0, 0.5, 50_000))))
    assert BinnedAuc().update(p, y).value() == pytest.approx(auc(p, y), abs=1e-4)


@given(st.lists(st.floats(0, 1, width=32), min_size=2))
def test_bins_keep_the_order(values: list[float]) -> None:
    bins = bin_of(np.sort(np.array(values, dtype=np.float32)))
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < BINS


def test_unknown_labels_are_skipped() -> None:
    assert auc([0.1, 0.9, 0.5], [0, 1, np.nan]) == 1.0
    assert BinnedAuc().update([0.1, 0.9, 0.5], [0, 1, np.nan]).value() == 1.0


@pytest.mark.parametrize("label", [[], [1, 1], [0.0, np.nan]])
def test_not_defined(label: list[float]) -> None:
    assert math.isnan(auc(np.full(len(label), 0.5), label))
    assert math.isnan(BinnedAuc().update(np.full(len(label), 0.5), label).value())


def test_grouped_weighs_users_by_rows_and_skips_those_of_one_class() -> None:
    user = np.array([1, 1, 2, 2, 2, 3])
    y = np.array([1, 0, 1, 0, 0, 1])
    p = np.array([0.9, 0.1, 0.2, 0.5, 0.1, 0.3])
    assert grouped_auc(p, y, user) == pytest.approx((2 * 1.0 + 3 * 0.5) / 5)


def test_stratum_of_negatives_is_judged_against_all_positives() -> None:
    stratum = np.array([0, 0, 1, 1, 2])
    y = np.array([1, 1, 0, 0, 0])
    p = np.array([0.6, 0.4, 0.5, 0.1, 0.9])
    assert auc_by_stratum(p, y, stratum) == {1: 0.75, 2: 0.0}


def test_stratum_of_both_classes_is_judged_alone() -> None:
    assert auc_by_stratum([0.9, 0.1, 0.2, 0.8], [1, 0, 1, 0], [0, 0, 1, 1]) == {0: 1.0, 1: 0.0}
