"""A missed candidate is given the vector of the nearest user who has one: by brute force, and as of then."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.pins import Pin
from hypercast.serving.speculation import neighbours
from hypercast.serving.speculation.neighbours import HELD, NEAREST, NearestStore
from hypercast.snapshot import Snapshot
from hypercast.store.engine import UnreachableError
from hypercast.store.ladder import Lookup, Rung
from hypercast.store.status import MICROSECONDS, Status

T0 = 1_000 * MICROSECONDS
FRESH_SECONDS, TTL_SECONDS = 10, 20
PIN = Pin(expert="home", lineage="FM", version=1, dims={"penultimate": 2})
ONE = Snapshot(
    name="FM@0001",
    lineage="FM",
    version=1,
    watermark=T0,
    path=Path("nowhere"),
    manifest={"dims": {"penultimate": 2}, "dtype": "float32", "tasks": [], "weights_digest": "ab12"},
)

Row = tuple[int, int, int, float, int]  # surface, user, item, value, seconds after T0


def opened(kind: str = "memory", **engine: Any) -> NearestStore:
    config = {"engine": {"kind": kind, **engine}, "fresh_for": FRESH_SECONDS, "ttl": TTL_SECONDS}
    store = NearestStore.Config.model_validate(config).build()
    return NearestStore(config=store.config, engine=store.engine)


def put(store: NearestStore, rows: list[Row]) -> None:
    surface, user, item, value, seconds = (np.array(column) for column in zip(*rows, strict=True))
    time = T0 + seconds * MICROSECONDS
    store.put(
        snapshot=ONE,
        surface=surface,
        user_id=user,
        item_id=item,
        vector=np.stack([value, -value], axis=1).astype(np.float32),
        computed_at=time,
        history_end=time,
    )


def put_users(store: NearestStore, points: dict[int, float], seconds: int = 0) -> None:
    time = np.full(len(points), T0 + seconds * MICROSECONDS)
    vector = np.array([[point, 0.0] for point in points.values()], np.float32)
    store.put_users(snapshot=ONE, user_id=np.array([*points]), vector=vector, computed_at=time, history_end=time)


def get(store: NearestStore, keys: list[tuple[int, int, int]], seconds: float) -> Lookup:
    surface, user, item = np.array(keys, np.int64).reshape(-1, 3).T
    now = T0 + round(seconds * MICROSECONDS)
    return store.get(pin=PIN, surface=surface, user_id=user, item_id=item, now=now, width=2)


def by_hand(rows: list[Row], points: dict[int, float], key: tuple[int, int, int], now: int) -> tuple[int, float]:
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
            return int(NEAREST), near[3]
    return Rung.USER, points[user]


rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 2), st.integers(1, 99), st.integers(1, 25)),
    min_size=1,
    max_size=20,
    unique_by=lambda row: row[:3],
)
points = st.dictionaries(st.integers(0, 7), st.integers(-5, 5).map(float), max_size=8)


@given(rows=rows, points=points, size=st.integers(1, 20), now=st.integers(17, 30))
@settings(max_examples=60)
def test_the_nearest_lends_its_vector(rows: list[Row], points: dict[int, float], size: int, now: int) -> None:
    store = opened()
    in_time = sorted(rows, key=lambda row: row[4])
    for start in range(0, len(in_time), size):
        put(store, in_time[start : start + size])
    if points:
        put_users(store, points, seconds=15)
    keys = [(surface, user, item) for surface in (0, 1) for user in range(8) for item in range(3)]
    now = max(now, in_time[-1][4])  # an earlier reader may find rows that were replaced: see the test of times
    found = get(store, keys, now)
    wanted = [by_hand(in_time, points, key, now) for key in keys]
    assert found.rung.tolist() == [rung for rung, _ in wanted]
    assert found.vector[:, 0].tolist() == [value for _, value in wanted]


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_what_is_not_there_yet_is_not_lent(kind: str, tmp_path: Path) -> None:
    engine = {"path": str(tmp_path)} if kind == "local" else {}
    store = opened(kind, **engine)
    put_users(store, {1: 0.0, 2: 1.0, 3: 2.0})
    put(store, [(0, 3, 7, 3.0, 2)])
    store.engine.commit(ONE.name)
    put(store, [(0, 2, 7, 2.0, 4)])
    store.engine.commit(ONE.name)
    again = opened(kind, **engine) if kind == "local" else store  # another process finds them too
    values = [get(again, [(0, 1, 7)], seconds).vector[0, 0] for seconds in (1, 2, 3, 4, 5)]
    assert values == [0.0, 3.0, 3.0, 2.0, 2.0]
    first, later, old = (get(again, [(0, 1, 7)], seconds) for seconds in (1, 4, 30))
    assert first.rung[0] == Rung.USER and later.rung[0] == NEAREST and old.rung[0] == Rung.ZEROS
    assert later.status[0] == Status.MISS and later.age[0] == 0 and later.present.all()
    again.close()


def test_the_users_kept_of_an_item_are_the_last_ones() -> None:
    store = opened()
    everybody = 2 * HELD
    put_users(store, {user: float(user) for user in range(everybody)})
    for user in range(1, everybody):
        put(store, [(0, user, 7, float(user), 1)])
    asked = get(store, [(0, 0, 7)], 2)
    assert asked.rung[0] == NEAREST and asked.vector[0, 0] == everybody - HELD
    layout = store.engine.layout(ONE.name)
    assert layout is not None
    held, _ = store._holders(ONE.name, layout, np.array([[0, 7]]), as_of=None)
    assert held.tolist() == [list(range(everybody - 1, everybody - HELD - 1, -1))]


def test_a_server_that_goes_away_in_between_leaves_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    put_users(store, {1: 5.0, 2: 1.0})
    put(store, [(0, 2, 7, 2.0, 1)])
    assert get(store, [(0, 1, 7)], 2).rung[0] == NEAREST

    def away(*_: Any, **__: Any) -> Any:
        raise UnreachableError("gone")

    monkeypatch.setattr(neighbours.NearestStore, "_holders", away)
    assert get(store, [(0, 1, 7)], 2).rung[0] == Rung.USER
