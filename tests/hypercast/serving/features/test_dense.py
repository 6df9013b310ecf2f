"""Sums that grow by the event are those of the whole past, whenever they are settled."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.serving.features.dense import DerivedColumns, Groups, OwnPast, Popularity
from streaming.catalogue import UNKNOWN, Catalogue
from streaming.features import DAY, DENSE, POPULARITY_SCALE, derived
from streaming.history import Events
from streaming.importers.mapping.as_of import AsOfFeatures
from streaming.importers.mapping.as_of import Events as ImporterEvents

SURFACES = 2
ITEMS = Catalogue(
    features=["item_id", "genre"],
    ids=np.array([10, 11, 12, 13]),
    code=np.array([[1, 7], [2, 7], [3, UNKNOWN], [4, 9], [UNKNOWN, UNKNOWN]]),
)
GROUPS = Groups(items=ITEMS, attributes=["genre"])
NAMES = ["item", "genre", "surface_item"]
Event = tuple[int, int, int]  # row of the item, surface, day

# Two years, so that what is summed is moved on to a later moment many times.
days = st.integers(0, 700)
listed = st.tuples(st.integers(0, 3), st.integers(-1, SURFACES - 1), days)
event = st.tuples(st.integers(0, 4), st.integers(-1, SURFACES - 1), days)


def events_of(log: list[Event]) -> Events:
    item, surface, day = np.array(log, dtype=np.int64).reshape(-1, 3).T
    return Events(item=item, surface=surface, action=np.zeros_like(item), time=day * DAY)


def defined(log: list[Event], row: int, surface: int, day: int) -> list[float]:
    genre = GROUPS.code["genre"]
    alike = [
        lambda event: event[0] == row and row < 4,
        lambda event: genre[event[0]] == genre[row] and genre[row] >= 0,
        lambda event: event[0] == row and row < 4 and event[1] == surface,
    ]
    return [
        sum(np.exp((one[2] - day) * DAY / POPULARITY_SCALE) for one in log if one[2] < day and f(one)) for f in alike
    ]


@given(
    batches=st.lists(st.lists(event, max_size=6), max_size=8),
    lateness=st.sampled_from([0, 3, 1000]),
    most=st.sampled_from([2, 5, 1000]),
)
@settings(max_examples=80)
def test_popularity_is_that_of_the_whole_past(batches: list[list[Event]], lateness: int, most: int) -> None:
    popularity = Popularity(groups=GROUPS, surfaces=SURFACES, names=NAMES, as_of=0, lateness=lateness * DAY, most=most)
    log: list[Event] = []
    for batch in batches:
        popularity.add(events_of(batch))
        log += batch
        assert popularity.unsettled <= max(most, len(log))
        day = max(-(-popularity.settled // DAY), max((one[2] for one in log), default=0) - 2)
        popularity.asked_at(day * DAY)
        for surface in range(SURFACES):
            found = popularity.before(np.arange(5), surface, day * DAY, NAMES)
            for row in range(5):
                said = [found[name][row] for name in NAMES]
                np.testing.assert_allclose(said, defined(log, row, surface, day), rtol=1e-9, atol=1e-12)


def test_what_is_kept_one_by_one_is_bounded() -> None:
    popularity = Popularity(groups=GROUPS, surfaces=SURFACES, names=NAMES, as_of=0, lateness=10**6 * DAY, most=10)
    for day in range(100):
        popularity.add(events_of([(0, 0, day)]))
        assert popularity.unsettled <= 10
    found = popularity.before(np.array([0]), 0, 100 * DAY, NAMES)
    np.testing.assert_allclose(found["item"], defined([(0, 0, day) for day in range(100)], 0, 0, 100)[0])


@given(log=st.lists(listed, max_size=20), asked=st.lists(st.integers(0, 3), max_size=6), surface=st.integers(0, 1))
@settings(max_examples=100)
def test_every_column_is_an_importers(log: list[Event], asked: list[int], surface: int) -> None:
    log, item, time = sorted(log, key=lambda one: one[2]), np.array(asked, dtype=np.int64), 701 * DAY
    columns = DerivedColumns.of([*derived(["genre"])], ["genre"], given=[])
    own = OwnPast(groups=GROUPS, names=columns.own)
    popularity = Popularity(groups=GROUPS, surfaces=SURFACES, names=NAMES, as_of=0, lateness=0, most=100)
    popularity.add(events_of(log))
    everybody = popularity.before(item, surface, time, columns.all)
    own.before(events_of(log), np.arange(5), surface, time)  # of which nothing may be left over
    values = columns.values(own.before(events_of(log), item, surface, time), everybody, time)
    importer = AsOfFeatures(items=4, attributes={"genre": GROUPS.code["genre"][:4]}, surfaces=SURFACES)
    expected = importer.window(of_one_user(log), of_one_user([(row, surface, 701) for row in asked]))
    for index, name in enumerate(columns.columns):
        np.testing.assert_array_max_ulp(values[name].astype(np.float32), expected[:, index], maxulp=1)


def of_one_user(log: list[Event]) -> ImporterEvents:
    events = events_of(log)
    return ImporterEvents(user=np.zeros_like(events.item), item=events.item, surface=events.surface, time=events.time)


def test_columns_that_are_given_are_not_made() -> None:
    columns = DerivedColumns.of(DENSE, ["category", "type", "department"], given=["item_popularity"])
    assert set(DENSE) - set(columns.columns) == {"item_popularity", "stores_promoting"}
    assert columns.all == ["category", "type"]
    assert columns.own == [None, "surface", "item", "category", "type", "department"]
