import dataclasses

import numpy as np
import pytest

from benchmarks.sequential import dirichlet_stream
from benchmarks.sequential.dirichlet_stream import LastItems, Stream

RECORDS, LENGTH = 4000, 40


@pytest.fixture(scope="module")
def drawn():
    return Stream().draw(RECORDS, length=LENGTH, seed=0)


def items_of(drawn):
    return drawn[0].item_E.reshape(RECORDS, LENGTH)


def test_ids_become_available_evenly(drawn):
    item_RL = items_of(drawn)
    assert (item_RL.max(axis=1) < 20_000 * np.linspace(0.4, 1.0, RECORDS)).all()
    assert item_RL[:100].max() > 0.39 * 20_000
    assert item_RL[-100:].max() > 0.99 * 20_000
    # All available ids are equally likely, of whatever age.
    assert np.mean(item_RL[-1000:] < 10_000) == pytest.approx(0.5 / 0.925, abs=0.02)


def test_a_record_has_up_to_five_of_its_own_categories(drawn):
    category_RL = drawn[1].category_I[items_of(drawn)]
    assert all(set(row) <= set(own) for row, own in zip(category_RL, drawn[1].own_RK, strict=True))
    counts = [len(set(row)) for row in category_RL]
    assert (min(counts), max(counts)) == (1, 5)


def test_streams_repeat_by_seed(drawn):
    again, last = Stream().draw(RECORDS, length=LENGTH, seed=0)
    assert np.array_equal(again.item_E, drawn[0].item_E)
    assert np.array_equal(last.chance_RK, drawn[1].chance_RK)
    assert not np.array_equal(Stream().draw(RECORDS, length=LENGTH, seed=1)[0].item_E, again.item_E)


def test_small_concentration_makes_records_of_one_category():
    random = np.random.default_rng(0)
    prior_RK = np.full((2000, 5), 0.2)
    few, many = (
        dirichlet_stream._categories(prior_RK, np.full(2000, alpha), length=30, random=random) for alpha in (0.01, 1e6)
    )
    assert np.mean([len(np.unique(row)) == 1 for row in few]) > 0.9
    assert np.mean([len(np.unique(row)) == 5 for row in many]) > 0.9


def test_expected_hit_rate_is_that_of_the_items_drawn(drawn):
    last = drawn[1]
    np.testing.assert_allclose(last.chance_RK.sum(axis=1), 1.0)
    # The 50 first ids of the likeliest category; later ones do not exist yet for early records.
    of_category = np.stack([np.flatnonzero(last.category_I == category)[:50] for category in range(100)])
    item_RN = of_category[last.own_RK[np.arange(RECORDS), last.chance_RK.argmax(axis=1)]]
    drawn_rate = np.mean((item_RN == items_of(drawn)[:, -1:]).any(axis=1))
    assert last.hit_rate(item_RN) > 0.1
    assert last.hit_rate(item_RN) == pytest.approx(drawn_rate, abs=0.025)


def test_ceiling_fills_places_from_the_likeliest_items():
    # Chances 0.6 and 0.4 of categories with 5 and 40 items: ten places hold all five and five of the forty.
    last = LastItems(
        category_I=np.repeat([0, 1, 2], [5, 40, 55]),
        own_RK=np.array([[1, 0]]),
        count_RK=np.array([[40, 5]]),
        chance_RK=np.array([[0.4, 0.6]]),
        limit_R=np.array([45]),
    )
    assert last.ceiling(10) == pytest.approx(0.6 + 0.4 * 5 / 40)
    assert last.ceiling(50) == pytest.approx(1.0)
    assert last.hit_rate(np.arange(10)[None]) == pytest.approx(last.ceiling(10))
    assert last.hit_rate(np.arange(50, 60)[None]) == 0.0
    assert dataclasses.replace(last, limit_R=np.array([5])).hit_rate(np.arange(10)[None]) == pytest.approx(0.6)


def test_after_leaves_the_first_records_out(drawn):
    item_RN = items_of(drawn)[:, :10]
    last = drawn[1]
    fields = ("own_RK", "count_RK", "chance_RK", "limit_R")
    first = dataclasses.replace(last, **{name: getattr(last, name)[:1000] for name in fields})
    whole = 0.25 * first.hit_rate(item_RN[:1000]) + 0.75 * last.after(1000).hit_rate(item_RN[1000:])
    assert last.hit_rate(item_RN) == pytest.approx(whole)
