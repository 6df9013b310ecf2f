"""As-of features: what they are by definition, and that nothing at a request's time or later moves them (law L5)."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.features import ACTIVITY_SCALE, POPULARITY_SCALE, RECENCY_SCALE
from streaming.importers.mapping.as_of import AsOfFeatures, Events

DAY = 86_400_000_000
ITEMS, SURFACES = 6, 2
GENRE = np.array([0, 1, 0, -1, 1, 2])
NAMES = AsOfFeatures.names(["genre"])

EVENT = st.tuples(st.integers(0, 2), st.integers(0, ITEMS - 1), st.integers(-1, SURFACES - 1), st.integers(0, 30))
EVENTS = st.lists(EVENT, max_size=25)
QUERIES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, ITEMS - 1), st.integers(0, 1), st.integers(0, 30)), max_size=8
)

Rows = list[tuple[int, int, int, int]]


def events(rows: Rows) -> Events:
    user, item, surface, day = (np.array([row[at] for row in rows], dtype=np.int64) for at in range(4))
    return Events(user=user, item=item, surface=surface, time=day * DAY)


def computed(engaged: Rows, asked: Rows, cuts: list[int]) -> dict[int, np.ndarray]:
    """Features of each query, by its index, where windows end at the days ``cuts``."""
    features = AsOfFeatures(items=ITEMS, attributes={"genre": GENRE}, surfaces=SURFACES)
    result, edges = {}, [-1, *cuts, 99]
    for start, end in pairwise(edges):
        here = [index for index, row in enumerate(asked) if start <= row[3] < end]
        past = events([row for row in engaged if start <= row[3] < end])
        dense = features.window(past, events([asked[index] for index in here]))
        assert dense.shape == (len(here), len(NAMES)) and dense.dtype == np.float32
        result |= dict(zip(here, dense, strict=True))
    return result


def defined(engaged: Rows, query: tuple[int, int, int, int]) -> list[float]:
    user, item, surface, day = query
    past = [row for row in engaged if row[3] < day]

    def decayed(rows: Rows) -> float:
        return float(np.log1p(sum(np.exp((row[3] - day) * DAY / POPULARITY_SCALE) for row in rows)))

    def recency(rows: Rows, scale: int) -> float:
        return float(np.exp((max(row[3] for row in rows) - day) * DAY / scale)) if rows else 0.0

    def alike(row: tuple[int, int, int, int]) -> bool:
        return bool(GENRE[row[1]] == GENRE[item] and GENRE[item] >= 0)

    mine = [row for row in past if row[0] == user]
    here = [row for row in mine if row[2] == surface]
    same, kind = [row for row in mine if row[1] == item], [row for row in mine if alike(row)]
    return [
        decayed(mine),
        recency(mine, ACTIVITY_SCALE),
        decayed(here),
        recency(here, ACTIVITY_SCALE),
        float(np.log1p(len(same))),
        recency(same, RECENCY_SCALE),
        float(np.log1p(len(kind))),
        recency(kind, RECENCY_SCALE),
        decayed([row for row in past if row[1] == item]),
        decayed([row for row in past if alike(row)]),
        decayed([row for row in past if row[1] == item and row[2] == surface]),
    ]


def test_names_say_what_there_is() -> None:
    assert NAMES == [
        "user_count",
        "user_recency",
        "user_surface_count",
        "user_surface_recency",
        "user_item_count",
        "user_item_recency",
        "user_genre_count",
        "user_genre_recency",
        "item_popularity",
        "genre_popularity",
        "surface_item_popularity",
    ]


@settings(deadline=None, max_examples=50)
@given(EVENTS, QUERIES, st.lists(st.integers(1, 29), max_size=3, unique=True).map(sorted))
def test_features_are_their_definition_however_time_is_cut(engaged: Rows, asked: Rows, cuts: list[int]) -> None:
    found = computed(engaged, asked, cuts)
    for index, query in enumerate(asked):
        np.testing.assert_allclose(found[index], defined(engaged, query), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(EVENTS, EVENTS, QUERIES, st.integers(0, 30))
def test_what_comes_at_a_time_or_later_moves_no_bit(kept: Rows, other: Rows, asked: Rows, day: int) -> None:
    asked = [row for row in asked if row[3] <= day]
    past = [row for row in kept if row[3] < day]
    one = computed(kept, asked, [10, 20])
    another = computed(past + [row for row in other if row[3] >= day], asked, [10, 20])
    for index in one:
        assert one[index].tobytes() == another[index].tobytes()
