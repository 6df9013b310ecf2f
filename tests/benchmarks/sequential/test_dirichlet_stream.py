import dataclasses

import numpy as np
import pytest

from benchmarks.sequential import dirichlet_stream
from benchmarks.sequential.dirichlet_stream import Stream

RECORDS, LENGTH = 4000, 40


@pytest.fixture(scope="module", params=["item", "category"])
def drawn(request):
    return Stream(repeats=request.param).draw(RECORDS, length=LENGTH, seed=0)


def items_of(drawn):
    return drawn[0].item_E.reshape(RECORDS, LENGTH)


def test_ids_become_available_evenly(drawn):
    item_RL = items_of(drawn)
    assert (item_RL.max(axis=1) < 20_000 * np.linspace(0.4, 1.0, RECORDS)).all()
    assert item_RL[:100].max() > 0.39 * 20_000
    assert item_RL[-100:].max() > 0.99 * 20_000
    # All available ids are equally likely, of whatever age.
    assert np.mean(item_RL[-1000:] < 10_000) == pytest.approx(0.5 / 0.925, abs=0.03)


def test_a_record_has_up_to_five_of_its_own_categories(drawn):
    category_RL = drawn[1].category_I[items_of(drawn)]
    assert all(set(row) <= set(own) for row, own in zip(category_RL, drawn[1].own_RK, strict=True))
    counts = [len(set(row)) for row in category_RL]
    assert (min(counts), max(counts)) == (1, 5)


def test_streams_repeat_by_seed():
    (data, last), (again, same) = (Stream().draw(RECORDS, length=LENGTH, seed=0) for _ in range(2))
    assert np.array_equal(again.item_E, data.item_E)
    assert np.array_equal(last.chance_RK, same.chance_RK)
    assert not np.array_equal(Stream().draw(RECORDS, length=LENGTH, seed=1)[0].item_E, again.item_E)


def test_small_concentration_makes_records_of_one_source():
    random = np.random.default_rng(0)
    few, many = (dirichlet_stream._sources(np.full(2000, alpha), length=30, random=random) for alpha in (0.01, 1e6))
    assert np.mean([len(np.unique(row)) == 1 for row in few]) > 0.9
    assert np.mean(many == np.arange(30)) > 0.99


def test_items_come_back_only_where_they_may():
    item, category = (
        Stream(repeats=repeats).draw(RECORDS, length=LENGTH, seed=0)[0].item_E.reshape(RECORDS, LENGTH)
        for repeats in ("item", "category")
    )
    distinct = [np.mean([len(np.unique(row)) for row in item_RL]) for item_RL in (item, category)]
    assert distinct[0] + 2 < distinct[1]


def test_expected_hit_rate_is_that_of_the_items_drawn(drawn):
    last, item_RL = drawn[1], items_of(drawn)
    np.testing.assert_allclose(last.chance_RK.sum(axis=1) + last.again_R * (LENGTH - 1), 1.0)
    # The 50 first ids of a category that the record may have (later ones do not exist yet for early records), and what
    # it had last.
    of_category = np.stack([np.flatnonzero(last.category_I == category)[:50] for category in range(100)])
    fresh_RN = of_category[last.own_RK[np.arange(RECORDS), last.chance_RK.argmax(axis=1)]]
    for item_RN in (fresh_RN, item_RL[:, -2:-1]):
        drawn_rate = np.mean((item_RN == item_RL[:, -1:]).any(axis=1))
        assert last.hit_rate(item_RN) == pytest.approx(drawn_rate, abs=0.025)
    assert last.hit_rate(fresh_RN) > 0.1


@pytest.mark.parametrize("at", [1, 10, 50])
def test_ceiling_is_the_best_of_all_lists(drawn, at):
    last, some = drawn[1], np.arange(0, RECORDS, 200)
    chance_RI = np.stack([last._chance_N(record, np.arange(20_000)) for record in some])
    np.testing.assert_allclose(chance_RI.sum(axis=1), 1.0)
    best_RN = (-chance_RI).argsort(axis=1)[:, :at]
    fields = ("own_RK", "count_RK", "chance_RK", "limit_R", "earlier_RL", "again_R")
    picked = dataclasses.replace(last, **{name: getattr(last, name)[some] for name in fields})
    assert picked.ceiling(at) == pytest.approx(picked.hit_rate(best_RN))


def test_after_leaves_the_first_records_out(drawn):
    item_RN = np.random.default_rng(0).permuted(np.tile(np.arange(10_000), (RECORDS, 1)), axis=1)[:, :10]
    last = drawn[1]
    fields = ("own_RK", "count_RK", "chance_RK", "limit_R", "earlier_RL", "again_R")
    first = dataclasses.replace(last, **{name: getattr(last, name)[:1000] for name in fields})
    whole = 0.25 * first.hit_rate(item_RN[:1000]) + 0.75 * last.after(1000).hit_rate(item_RN[1000:])
    assert last.hit_rate(item_RN) == pytest.approx(whole)
