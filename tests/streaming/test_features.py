import math

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.features import DAY, DENSE, POPULARITY_SCALE, DenseFeatures, Engagements, ItemGroups, codes

ITEMS, USERS, SURFACES = 6, 4, 2
GROUPS = ItemGroups(
    category=np.array([0, 0, 1, 1, -1, 2]),
    type=np.array([0, 1, 1, -1, -1, 2]),
    department=np.array([0, 0, 0, 1, 1, -1]),
)
Event = tuple[int, int, int, int]  # user, item, surface, time
times = st.integers(0, 60 * 4).map(lambda quarter_days: quarter_days * DAY // 4)
users, items = st.integers(0, USERS - 1), st.integers(0, ITEMS - 1)
events = st.lists(st.tuples(users, items, st.integers(-1, SURFACES - 1), times), max_size=40)
asked = st.lists(st.tuples(users, items, st.integers(0, SURFACES - 1), times), max_size=40)


def vectorised(log: list[Event], queries: list[Event], stores: list[int] | None = None) -> np.ndarray:
    user, item, surface, time = np.array(log, dtype=np.int64).reshape(-1, 4).T
    past = Engagements(user=user, item=item, surface=surface, time=time)
    features = DenseFeatures(engagements=past, groups=GROUPS)
    user, item, surface, time = np.array(queries, dtype=np.int64).reshape(-1, 4).T
    promoting = np.array(stores if stores is not None else [0] * len(queries), dtype=np.int64)
    return features.at(user=user, item=item, surface=surface, time=time, stores_promoting=promoting)


def naive(log: list[Event], query: Event) -> list[float]:
    """The same, one engagement at a time."""
    user, item, surface, time = query
    past = [event for event in log if event[3] < time]
    keys = {"item": np.arange(ITEMS), "category": GROUPS.category, "type": GROUPS.type, "department": GROUPS.department}
    values: dict[str, float] = {"stores_promoting": 0.0}
    of_user = [event for event in past if event[0] == user]
    for name, alike in (("user", of_user), ("user_surface", [event for event in of_user if event[2] == surface])):
        ages = [(time - event[3]) for event in alike]
        values[f"{name}_count"] = math.log1p(sum(math.exp(-age / POPULARITY_SCALE) for age in ages))
        values[f"{name}_recency"] = math.exp(-min(ages) / DAY / 7) if ages else 0.0
    for name, key in keys.items():
        alike = [event for event in past if key[event[1]] == key[item] and key[item] >= 0]
        own = [event[3] for event in alike if event[0] == user]
        values[f"user_{name}_count"] = math.log1p(len(own))
        values[f"user_{name}_recency"] = math.exp(-(time - max(own)) / DAY / 30) if own else 0.0
        values[f"{name}_popularity"] = math.log1p(
            sum(math.exp(-(time - event[3]) / POPULARITY_SCALE) for event in alike)
        )
    return [values[name] for name in DENSE]


@given(log=events, queries=asked)
@settings(max_examples=200, deadline=None)
def test_agrees_with_a_loop(log: list[Event], queries: list[Event]) -> None:
    expected = np.array([naive(log, query) for query in queries]).reshape(-1, len(DENSE))
    np.testing.assert_allclose(vectorised(log, queries), expected, rtol=1e-5, atol=1e-6)


@given(log=events, queries=asked, moved=events, now=times)
@settings(max_examples=200, deadline=None)
def test_the_present_and_the_future_change_nothing(
    log: list[Event], queries: list[Event], moved: list[Event], now: int
) -> None:
    past = [query for query in queries if query[3] <= now]
    changed = [event for event in log if event[3] < now] + [(u, i, s, now + t) for u, i, s, t in moved]
    np.testing.assert_array_equal(vectorised(log, past), vectorised(changed, past))


@given(log=events, queries=asked, seed=st.integers(0, 9))
@settings(deadline=None)
def test_the_order_of_the_log_does_not_matter(log: list[Event], queries: list[Event], seed: int) -> None:
    shuffled = [log[index] for index in np.random.default_rng(seed).permutation(len(log))]
    np.testing.assert_array_equal(vectorised(log, queries), vectorised(shuffled, queries))


def test_a_basket_does_not_see_itself() -> None:
    log = [(0, 0, 0, 10 * DAY), (0, 1, 0, 10 * DAY)]
    assert not vectorised(log, [(0, 0, 0, 10 * DAY)]).any()
    assert vectorised(log, [(0, 0, 0, 10 * DAY + 1)])[0, DENSE.index("user_item_count")] == np.float32(math.log(2))


def test_a_surface_that_nobody_used_yet_has_no_past() -> None:
    log = [(0, 0, -1, 0), (0, 1, 0, 0)]
    values = vectorised(log, [(0, 0, 0, DAY), (0, 0, 1, DAY)])
    assert (values[:, DENSE.index("user_count")] > 0).all()
    assert (values[:, DENSE.index("user_surface_count")] > 0).tolist() == [True, False]


def test_old_popularity_neither_overflows_nor_drowns_the_new() -> None:
    century = 36_500 * DAY
    log = [(0, 0, 0, 0)] * 1000 + [(1, 0, 0, century)]
    popularity = vectorised(log, [(2, 0, 0, century + 1)])[0, DENSE.index("item_popularity")]
    np.testing.assert_allclose(popularity, math.log(2), rtol=1e-6)


def test_stores_promoting_is_on_a_log_scale() -> None:
    values = vectorised([], [(0, 0, 0, 0), (0, 1, 0, 0)], stores=[0, 7])[:, DENSE.index("stores_promoting")]
    np.testing.assert_allclose(values, [0, math.log(8)], rtol=1e-6)


def test_codes() -> None:
    column = pa.chunked_array([["a", None], ["b", "a"]])
    assert codes(column).tolist() == [0, -1, 1, 0]
