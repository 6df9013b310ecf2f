"""Label rates against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.labels.rates import LabelRates, key_names, keys_of, pair_code
from streaming.workspace import Workspace

LABELLED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=12)


@given(windows=st.lists(LABELLED, min_size=1, max_size=5), decay=st.sampled_from([0.5, 0.9, 1.0]))
def test_rates_are_decayed_counts_with_a_prior(windows: list[list[tuple[int, bool]]], decay: float) -> None:
    rates = LabelRates(keys=1, decay=decay, strength=3.0)
    shown: dict[int, float] = {}
    positive: dict[int, float] = {}
    for rows in windows:
        shown = {value: count * decay for value, count in shown.items()}
        positive = {value: count * decay for value, count in positive.items()}
        for value, label in rows:
            shown[value] = shown.get(value, 0.0) + 1
            positive[value] = positive.get(value, 0.0) + label
        rates.learn(np.array([value for value, _ in rows], dtype=np.int64)[:, None], np.array([y for _, y in rows]))
    asked = np.arange(-4, 5)
    rate_C1, count_C1 = rates.at(asked[:, None])
    everything = sum(shown.values())
    prior = (sum(positive.values()) + 1) / (everything + 2) if everything else 0.5
    assert rates.prior == pytest.approx(prior)
    for value, rate, count in zip(asked.tolist(), rate_C1[:, 0], count_C1[:, 0], strict=True):
        seen = shown.get(value, 0.0)
        assert count == pytest.approx(np.log1p(seen), rel=1e-6)
        assert rate == pytest.approx((positive.get(value, 0.0) + 3 * prior) / (seen + 3), rel=1e-6)


def test_keys_are_apart() -> None:
    rates = LabelRates(keys=2, decay=1.0, strength=1.0)
    rates.learn(np.array([[1, 7], [1, 8]]), np.array([1.0, 0.0]))
    _, count_CK = rates.at(np.array([[1, 1], [7, 7]]))
    assert np.expm1(count_CK).round(6).tolist() == [[2.0, 0.0], [0.0, 1.0]]


def test_pair_codes_tell_pairs_apart() -> None:
    left, right = (part.ravel() for part in np.meshgrid(np.arange(-40, 40), np.arange(-40, 40)))
    assert len(np.unique(pair_code(left, right))) == 6400
    assert not (pair_code(left, right) == pair_code(right, left))[left != right].any()
    assert (pair_code(left, right) == pair_code(left.copy(), right.copy())).all()


def test_keys_of_requests_are_of_what_their_candidates_are(workspace: Workspace) -> None:
    requests = workspace.requests(2)
    catalogue = {row.pop("item_id"): row for row in workspace.dataset.items().to_pylist()}
    names = key_names(workspace.dataset.config.item_attributes)
    key_CK = keys_of(requests, workspace.items)
    users = requests.user_id[requests.owner].tolist()
    candidates = list(zip(requests.item_id.tolist(), users, requests.surface.tolist(), strict=True))
    told = {
        "item": [item for item, _, _ in candidates],
        "user_surface": [(user, surface) for _, user, surface in candidates],
        "user_item": [(user, item) for item, user, _ in candidates],
        "brand": [catalogue[item]["brand"] for item, _, _ in candidates],
        "user_brand": [(user, catalogue[item]["brand"]) for item, user, _ in candidates],
    }
    for name, values in told.items():
        codes = key_CK[:, names.index(name)].tolist()
        assert len(set(zip(values, codes, strict=True))) == len(set(values)) == len(set(codes)) > 1
