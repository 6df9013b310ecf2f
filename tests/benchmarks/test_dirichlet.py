import numpy as np
import pytest

from benchmarks import dirichlet
from benchmarks.dirichlet import Stream
from benchmarks.options import Options

RECORDS = 4000


@pytest.fixture(scope="module")
def drawn():
    return Stream().draw(RECORDS, length=40, seed=0)


def test_ids_become_available_evenly(drawn):
    item_RL = drawn[0].item_E.reshape(RECORDS, 40)
    limit_R = 20_000 * np.linspace(0.4, 1.0, RECORDS)
    assert (item_RL.max(axis=1) < limit_R).all()
    assert item_RL[:100].max() > 0.39 * 20_000
    assert item_RL[-100:].max() > 0.99 * 20_000
    # All available ids are equally likely, of whatever age.
    late = item_RL[-1000:].ravel()
    assert np.mean(late < 10_000) == pytest.approx(0.5 / 0.925, abs=0.02)


def test_a_record_has_at_most_five_categories_and_early_ones_come_again(drawn):
    item_RL = drawn[0].item_E.reshape(RECORDS, 40)
    seed = dirichlet.stream_seed(0, "dirichlet")
    category_of = np.random.default_rng(seed).integers(100, size=20_000)
    counts = np.array([len(np.unique(category_of[row])) for row in item_RL])
    assert counts.min() == 1
    assert counts.max() == 5


def test_streams_repeat_by_seed(drawn):
    again, ceiling = Stream().draw(RECORDS, length=40, seed=0)
    assert np.array_equal(again.item_E, drawn[0].item_E)
    assert np.array_equal(ceiling[10], drawn[1][10])
    assert not np.array_equal(Stream().draw(RECORDS, length=40, seed=1)[0].item_E, again.item_E)


def test_small_concentration_makes_records_of_one_category():
    random = np.random.default_rng(0)
    prior_RK = np.full((2000, 5), 0.2)
    few, many = (
        dirichlet._categories(prior_RK, np.full(2000, alpha), length=30, random=random) for alpha in (0.01, 1e6)
    )
    assert np.mean([len(np.unique(row)) == 1 for row in few]) > 0.9
    assert np.mean([len(np.unique(row)) == 5 for row in many]) > 0.9


def test_ceiling_fills_places_from_the_likeliest_items():
    # One record: chances 0.6 and 0.4 of categories with 5 and 40 items; ten places hold all five and five of the forty.
    ceiling = dirichlet._ceilings(
        np.array([[0.6, 0.4]]), np.array([1e9]), np.zeros((1, 8), dtype=np.int64), count_RK=np.array([[5, 40]])
    )
    assert ceiling[10] == pytest.approx([0.6 + 0.4 * 5 / 40], abs=1e-6)
    assert ceiling[50] == pytest.approx([1.0], abs=1e-6)


def test_measures_all_models_over_seeds(monkeypatch):
    monkeypatch.setattr(dirichlet, "RECORDS", 60)
    monkeypatch.setattr(dirichlet, "LENGTH", 12)
    values = dirichlet.measure(Options())
    for model in ("transformer", "softmax", "pointwise", "ceiling"):
        for key in (f"hr10_{model}", f"hr50_{model}"):
            assert 0.0 <= values[f"{key}_min"] <= values[key] <= values[f"{key}_max"] <= 1.0
