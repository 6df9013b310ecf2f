"""A missed candidate is given the vector of the nearest user who has one: by brute force, and as of then."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.store.adapter import fit
from hypercast.store.ladder import Lookup, Rung
from hypercast.store.neighbours import HELD, Neighbours
from hypercast.store.online import OnlineStore
from hypercast.store.status import MICROSECONDS, Status
from tests.hypercast.store.online_world import CONFIG, FIXED, ONE, T0, Make, get, get_as_of, publish, put, snapshot

FRESH_SECONDS, TTL_SECONDS = 10, 20
NEAREST = {"miss": "nearest", "codec": "float32"}

Key = tuple[int, int, int]  # surface, user, item
Row = tuple[int, int, int, float, int]  # the same, value, seconds after T0


def opened() -> OnlineStore:
    return OnlineStore.Config.model_validate({**CONFIG, **NEAREST, "engine": {"kind": "memory"}}).build()


def put_users(store: OnlineStore, points: dict[int, float], seconds: int = 0) -> None:
    time = np.full(len(points), T0 + seconds * MICROSECONDS)
    vector = np.array([[point, 0.0] for point in points.values()], np.float32)
    store.put_users(snapshot=ONE, user_id=np.array([*points]), vector=vector, computed_at=time, history_end=time)


def by_hand(rows: list[Row], points: dict[int, float], key: Key, now: int) -> tuple[int, float]:
    """The rung and the first number of the vector that are right for ``key``."""
    surface, user, item = key
    there = {(row[0], row[1], row[2]): row for row in rows if row[4] <= now}
    own = there.get(key)
    if own is not None and now - own[4] <= TTL_SECONDS:
        return (Rung.FRESH if now - own[4] <= FRESH_SECONDS else Rung.STALE), own[3]
    if user not in points:
        return Rung.ZEROS, 0.0
    others = [row for row in there.values() if (row[0], row[2]) == (surface, item) and row[1] in points]
    others = [row for row in others if row[1] != user]
    if others:
        newest = sorted(others, key=lambda row: (row[4], rows.index(row)), reverse=True)
        near = min(newest, key=lambda row: (points[row[1]] - points[user]) ** 2)
        if now - near[4] <= TTL_SECONDS:
            return Rung.NEAREST, near[3]
    return Rung.USER, points[user]


def same(one: Lookup, other: Lookup) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("vector", "status", "rung", "age"))


rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 2), st.integers(1, 99), st.integers(1, 25)),
    min_size=1,
    max_size=20,
    unique_by=lambda row: row[:3],
)
points = st.dictionaries(st.integers(0, 7), st.integers(-5, 5).map(float), max_size=8)
KEYS: list[Key] = [(surface, user, item) for surface in (0, 1) for user in range(8) for item in range(3)]


@given(rows=rows, points=points, size=st.integers(1, 20), now=st.integers(17, 30))
@settings(max_examples=60, deadline=None)
def test_the_nearest_lends_its_vector(rows: list[Row], points: dict[int, float], size: int, now: int) -> None:
    store = opened()
    in_time = sorted(rows, key=lambda row: row[4])
    for start in range(0, len(in_time), size):
        put(store, in_time[start : start + size])
    if points:
        put_users(store, points, seconds=15)
    now = max(now, in_time[-1][4])  # an earlier reader may find rows that were replaced: see the next test
    found = get(store, KEYS, now, pin=FIXED)
    wanted = [by_hand(in_time, points, key, now) for key in KEYS]
    assert found.rung.tolist() == [rung for rung, _ in wanted]
    assert found.vector[:, 0].tolist() == [value for _, value in wanted]
    counted = store.counters.to_dict()
    assert {name: counted[f"rung/{name}"] for name in found.rungs()} == found.rungs()
    assert sum(found.rungs().values()) == len(KEYS) == sum(found.counts().values())


@given(rows=rows, points=points, moved=points, size=st.integers(1, 20), then=st.integers(2, 24))
@settings(max_examples=80, deadline=None)
def test_the_future_lends_nothing(
    rows: list[Row], points: dict[int, float], moved: dict[int, float], size: int, then: int
) -> None:
    """As of a time, whatever is put later changes nothing; where lists had to go, it takes neighbours away."""
    store = opened()
    past, future = ([row for row in rows if (row[4] <= then) == is_past] for is_past in (True, False))
    if past:
        put(store, past)
    if points:
        put_users(store, points, seconds=1)
    before = get(store, KEYS, then, pin=FIXED)
    assert past or before.snapshot is None or not before.rungs()["NEAREST"]
    if moved:
        put_users(store, moved, seconds=then + 1)
    if future:
        put(store, future)  # one list more of each thing: as many as engines keep
    assert same(get_as_of(store, KEYS, then, pin=FIXED), before) and same(get(store, KEYS, then, pin=FIXED), before)
    for start in range(0, len(future), size):
        put(store, [(*row[:4], row[4] + 30) for row in future[start : start + size]])
    after = get_as_of(store, KEYS, then, pin=FIXED)
    lent = after.rung == Rung.NEAREST
    assert (before.rung[lent] == Rung.NEAREST).all() and np.array_equal(before.vector[lent], after.vector[lent])
    assert ((after.rung == before.rung) | (before.rung == Rung.NEAREST)).all()


def test_what_is_not_there_yet_is_not_lent(make: Make) -> None:
    store = make(**NEAREST)
    put_users(store, {1: 0.0, 2: 1.0, 3: 2.0})
    put(store, [(0, 3, 7, 3.0, 2)])
    store.engine.commit(ONE.name)
    put(store, [(0, 2, 7, 2.0, 4)])
    store.engine.commit(ONE.name)
    again = store if "memory" in type(store.engine).__module__ else make(**NEAREST)  # another process finds them too
    for read in (get, get_as_of):
        values = [read(again, [(0, 1, 7)], seconds, pin=FIXED).vector[0, 0] for seconds in (1, 2, 3, 4, 5)]
        assert values == [0.0, 3.0, 3.0, 2.0, 2.0]
    first, later, old = (get(again, [(0, 1, 7)], seconds, pin=FIXED) for seconds in (1, 4, 30))
    assert (first.rung[0], later.rung[0], old.rung[0]) == (Rung.USER, Rung.NEAREST, Rung.ZEROS)
    assert later.status[0] == Status.MISS and later.age[0] == 0 and later.present.all()
    counted = again.counters.to_dict()
    assert (counted["rung/NEAREST"], counted["rung/USER"], counted["rung/ZEROS"]) == (9, 3, 1)
    plain = make() if again is not store else OnlineStore(config=OnlineStore.Config(), engine=store.engine)
    assert get(plain, [(0, 1, 7)], 4, pin=FIXED).rung[0] == Rung.USER


def test_the_users_kept_of_an_item_are_the_last_ones() -> None:
    store = opened()
    everybody = 2 * HELD
    put_users(store, {user: float(user) for user in range(everybody)})
    for user in range(1, everybody):
        put(store, [(0, user, 7, float(user), 1)])
    asked = get(store, [(0, 0, 7)], 2, pin=FIXED)
    assert asked.rung[0] == Rung.NEAREST and asked.vector[0, 0] == everybody - HELD
    layout = store.engine.layout(ONE.name)
    assert layout is not None
    kept = Neighbours(engine=store.engine, freshness=store.config)
    held, _ = kept._holders(ONE.name, layout, np.array([[0, 7]]), as_of=None)
    assert held.tolist() == [list(range(everybody - 1, everybody - HELD - 1, -1))]


def test_the_own_aggregate_is_asked_for_only_where_nobody_is_near(make: Make) -> None:
    store = make(**NEAREST)
    put_users(store, {1: 5.0, 2: 1.0})
    put(store, [(0, 2, 7, 2.0, 1), (0, 1, 8, 3.0, 1)])
    found = get(store, [(0, 1, 7), (0, 1, 8), (0, 1, 9), (0, 3, 7)], 2, pin=FIXED)
    assert [Rung(rung).name for rung in found.rung] == ["NEAREST", "FRESH", "USER", "ZEROS"]
    assert found.vector[:, 0].tolist() == [2.0, 3.0, 5.0, 0.0]


def test_a_neighbours_vector_goes_through_the_adapter_too() -> None:
    store = opened()
    two = snapshot(2)
    put(store, [(0, 1, 8, 0.0, 1), (0, 2, 7, 3.0, 1)], two)
    time = np.full(2, T0)
    point = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    store.put_users(snapshot=two, user_id=np.array([1, 2]), vector=point, computed_at=time, history_end=time)
    publish(store, 2, seconds=1)
    vector_N2 = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    doubled = fit(
        source="FM@0002", target="FM@0001", source_ND=vector_N2, target_NE=2 * vector_N2, group_N=np.arange(40) // 4
    )
    store.put_adapter(doubled, at=T0)
    found = get(store, [(0, 1, 7)], 2, pin=FIXED, adapt=True)
    assert found.rung[0] == Rung.NEAREST and np.abs(found.vector - 6.0).max() < 1e-2
