"""Every key gets a vector, a status and a rung of the ladder, and each rung is counted; over every engine."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypercast.errors import RegistryError, StoreError
from hypercast.pins import Pin
from hypercast.store.adapter import fit
from hypercast.store.ladder import Rung
from hypercast.store.online import OnlineStore
from hypercast.store.status import MICROSECONDS, Status
from tests.hypercast.store.online_world import FIXED, ONE, T0, Make, get, get_as_of, publish, put, put_user, snapshot


def test_the_ladder_and_its_counters(store: OnlineStore) -> None:
    put(store, [(0, 1, 10, 1.0, 25), (0, 1, 11, 2.0, 15), (0, 1, 12, 3.0, 5), (0, 2, 10, 4.0, 5)])
    put_user(store, 1, 9.0, 20)
    put_user(store, 2, 9.0, 5)  # expired itself
    publish(store, 1)
    keys = [(0, 1, 10), (0, 1, 11), (0, 1, 12), (0, 1, 13), (1, 1, 10), (0, 2, 10), (0, 3, 10)]
    found = get(store, keys, 30)
    statuses = ["FRESH", "STALE", "EXPIRED", "MISS", "MISS", "EXPIRED", "MISS"]
    assert [Status(value).name for value in found.status] == statuses
    assert [Rung(value).name for value in found.rung] == ["FRESH", "STALE", "USER", "USER", "USER", "ZEROS", "ZEROS"]
    assert found.vector[:, 0].tolist() == [1, 2, 9, 9, 9, 0, 0] and found.vector.dtype == np.float32
    assert (found.age // MICROSECONDS).tolist() == [5, 15, 10, 10, 10, 0, 0]
    assert found.present.tolist() == [True] * 5 + [False] * 2
    assert found.counts() == {"FRESH": 1, "STALE": 1, "EXPIRED": 2, "MISS": 3}
    assert found.rungs() == {"FRESH": 1, "STALE": 1, "NEAREST": 0, "USER": 3, "ZEROS": 2}
    assert found.snapshot == "FM@0001"
    get(store, keys[:1], 30)
    counted = store.counters.to_dict()
    assert {name: counted[f"rung/{name}"] for name in found.rungs()} == found.rungs() | {"FRESH": 2}
    assert counted["status/FRESH"] == 2 and counted["status/MISS"] == 3 and counted["unreachable"] == 0


def test_aggregates_are_asked_for_only_where_they_are_needed(
    store: OnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, [(0, 1, 10, 1.0, 5)])
    publish(store, 1)
    get(store, [(0, 1, 10)], 5)  # since when the snapshot is published is asked once
    asked: list[list[list[int]]] = []
    real = store.engine.get

    def spy(name: str, key: np.ndarray, **changed: Any) -> Any:
        asked.append(key.tolist())
        return real(name, key, **changed)

    monkeypatch.setattr(store.engine, "get", spy)
    get(store, [(0, 1, 10)], 5)
    assert asked == [[[0, 1, 10]]]
    get(store, [(0, 1, 10), (0, 7, 1), (0, 7, 2)], 5)
    assert asked[2:] == [[[-1, 7, -1]]]


def test_expiry_is_checked_when_read(store: OnlineStore) -> None:
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    names = [Status(get(store, [(0, 1, 1)], seconds).status[0]).name for seconds in (0, 10, 10.1, 20, 20.1)]
    assert names == ["FRESH", "FRESH", "STALE", "STALE", "EXPIRED"]


def test_a_time_to_live_of_zero(make: Make) -> None:
    store = make(fresh_for=0, ttl=0)
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    assert get(store, [(0, 1, 1)], 0).counts()["FRESH"] == 1
    later = get(store, [(0, 1, 1)], 1e-6)
    assert later.counts()["EXPIRED"] == 1 and not later.vector.any() and not later.present.any()


def test_nothing_put_nothing_published_and_no_keys(store: OnlineStore) -> None:
    found = get(store, [(0, 1, 1)], 0)
    assert (found.counts()["MISS"], found.rungs()["ZEROS"], found.snapshot) == (1, 1, None)
    assert not found.vector.any()
    put(store, [(0, 1, 1, 1.0, 0)])
    assert get(store, [(0, 1, 1)], 0).snapshot is None  # put, not published
    publish(store, 1)
    for keys in ([], [(0, 1, 1)] * 3):
        found = get(store, keys, 0)
        assert found.vector.shape == (len(keys), 2) and found.counts()["FRESH"] == len(keys)
    nobody = np.zeros(0, np.int64)
    put(store, [(0, 1, 1, 1.0, 0)] * 2)  # a duplicate
    store.put(
        snapshot=ONE,
        surface=nobody,
        user_id=nobody,
        item_id=nobody,
        vector=np.zeros((0, 2), np.float32),
        computed_at=nobody,
        history_end=nobody,
    )
    assert get(store, [(0, 1, 1)], 0).vector[0].tolist() == [1.0, 1.0]


def test_the_vector_computed_last_holds(store: OnlineStore) -> None:
    put(store, [(0, 1, 1, 1.0, 3), (0, 1, 1, 2.0, 5), (0, 1, 1, 3.0, 4)])
    put(store, [(0, 1, 1, 4.0, 2)])
    publish(store, 1)
    assert get(store, [(0, 1, 1)], 5).vector[0].tolist() == [2.0, 2.0]


def test_a_clock_set_back_reads_what_there_was_then(store: OnlineStore) -> None:
    put(store, [(0, 1, 1, 1.0, 3), (0, 1, 1, 2.0, 5)])
    publish(store, 1)
    assert [get(store, [(0, 1, 1)], seconds).vector[0, 0] for seconds in (5, 4.9, 3)] == [2.0, 1.0, 1.0]
    before = get(store, [(0, 1, 1)], 2.9)
    assert before.counts()["MISS"] == 1 and not before.vector.any()
    assert store.counters.to_dict()["rung/ZEROS"] == 1


def test_as_of_is_what_would_have_been_read_then(store: OnlineStore) -> None:
    two = snapshot(2, watermark=T0 + 6 * MICROSECONDS)
    put(store, [(0, 1, 1, 1.0, 2), (0, 1, 1, 2.0, 4)])
    publish(store, 1, seconds=1)
    put(store, [(0, 1, 1, 3.0, 7)], two)
    seen = {seconds: get_as_of(store, [(0, 1, 1)], seconds) for seconds in (0, 1, 2, 5, 9)}
    publish(store, 2, 1, seconds=8)
    seen[9] = get_as_of(store, [(0, 1, 1)], 9)
    again = {seconds: get_as_of(store, [(0, 1, 1)], seconds) for seconds in seen}
    assert [(one.snapshot, one.vector[0, 0]) for one in again.values()] == [
        (None, 0.0),
        ("FM@0001", 0.0),  # published, and nothing computed yet
        ("FM@0001", 1.0),
        ("FM@0001", 2.0),
        ("FM@0002", 3.0),
    ]
    assert [one.vector[0, 0] for one in again.values()] == [one.vector[0, 0] for one in seen.values()]
    assert again[5].age.tolist() == [MICROSECONDS]
    assert get_as_of(store, [(0, 1, 1)], 9, pin=FIXED).vector[0, 0] == 2.0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.booleans()), max_size=12),
    now=st.integers(0, 80),
    fresh_for=st.integers(0, 30),
    more=st.integers(0, 30),
)
def test_the_ladder_against_a_plain_reading(
    rows: list[tuple[int, int, bool]], now: int, fresh_for: int, more: int
) -> None:
    """Rows of (user, second, aggregate or candidate's); the vector says which row it is."""
    store = OnlineStore.Config.model_validate(
        {"fresh_for": fresh_for, "ttl": fresh_for + more, "engine": {"kind": "memory"}}
    ).build()
    rows = sorted({(user, aggregate): (user, seconds, aggregate) for user, seconds, aggregate in rows}.values())
    put(store, [(5, 5, 5, 1.0, 0)])
    for value, (user, seconds, aggregate) in enumerate(rows, start=1):
        if aggregate:
            put_user(store, user, value, seconds)
        else:
            put(store, [(0, user, 3, value, seconds)])
    publish(store, 1)
    found = get(store, [(0, user, 3) for user in range(3)], now)
    for user in range(3):
        usable = {}
        for value, (owner, seconds, aggregate) in enumerate(rows, start=1):
            age = now - seconds
            if owner == user and aggregate <= age <= fresh_for + more:  # an aggregate must be older than the request
                usable[Rung.USER if aggregate else Rung.STALE if age > fresh_for else Rung.FRESH] = value, age
        rung = min(usable, default=Rung.ZEROS)
        value, age = usable.get(rung, (0, 0))
        assert (found.rung[user], found.vector[user].tolist()) == (rung, [value, value])
        assert found.age[user] == age * MICROSECONDS
    assert sum(found.rungs().values()) == 3


def test_codecs(make: Make) -> None:
    store = make(codec="int8")
    put(store, [(0, 1, 1, 1.0, 1)], vector=np.array([[-1.0, 3.0]], np.float32))
    publish(store, 1)
    layout = store.engine.layout("FM@0001")
    assert layout is not None and (layout.codec, layout.row_bytes) == ("int8", 6)
    assert get(store, [(0, 1, 1)], 1).vector == pytest.approx(np.array([[-1.0, 3.0]]), abs=0.01)
    assert not get(store, [(0, 1, 2)], 1).vector.any()
    with pytest.raises(RegistryError, match="dtype is int8, not float16"):
        get(store, [(0, 1, 1)], 1, pin=Pin(expert="home", lineage="FM", dtype="float16"))
    other = OnlineStore(config=OnlineStore.Config(codec="float32"), engine=store.engine)
    with pytest.raises(StoreError, match="A snapshot has one layout"):
        put(other, [(0, 1, 1, 1.0, 1)])
    renamed = OnlineStore(config=OnlineStore.Config(representation="sequence"), engine=store.engine)
    with pytest.raises(StoreError, match=r"FM@0001 has vectors 'penultimate', not 'sequence'"):
        get(renamed, [(0, 1, 1)], 1)
    exact = make(codec="float32", engine={"kind": "memory"})
    put(exact, [(0, 1, 1, 1.0, 1), (0, 1, 2, 2.0, 1)])
    publish(exact, 1)
    assert get(exact, [(0, 1, 1), (0, 1, 2), (0, 1, 3)], 1).vector[:, 0].tolist() == [1.0, 2.0, 0.0]


def test_a_pinned_expert_reads_a_newer_version_by_an_adapter(make: Make) -> None:
    store = make(codec="float32", adapter_error=0.2)
    random = np.random.default_rng(0)
    old_N3 = random.normal(size=(40, 3)).astype(np.float32)
    turn_33 = np.linalg.qr(random.normal(size=(3, 3)))[0]
    new_N3 = (old_N3 @ turn_33 + 1).astype(np.float32)
    keys = [(0, user, 0) for user in range(40)]
    times = [(*key, 0.0, 1) for key in keys]
    first, second = snapshot(1, width=3), snapshot(2, width=3)
    put(store, times, first, vector=old_N3)
    put(store, times, second, vector=new_N3)
    publish(store, 1)
    publish(store, 2, 1)
    asked = [*keys, (0, 99, 0)]
    with pytest.raises(StoreError, match=r"pinned to FM@0001 and asked for FM@0002, adapted: there is no adapter"):
        get(store, asked, 1, pin=FIXED, width=3, adapt=True)
    adapter = fit(
        source="FM@0002", target="FM@0001", source_ND=new_N3, target_NE=old_N3, group_N=np.arange(40, dtype=np.int64)
    )
    store.put_adapter(adapter, at=T0)
    found = get(store, asked, 1, pin=FIXED, width=3, adapt=True)
    assert found.snapshot == "FM@0002"
    np.testing.assert_allclose(found.vector[:40], old_N3, atol=1e-4)
    assert not found.vector[40].any() and not found.present[40]  # zeros stay zeros
    np.testing.assert_array_equal(get(store, keys, 1, pin=FIXED, width=3).vector, old_N3)
    np.testing.assert_array_equal(get(store, keys, 1, width=3).vector, new_N3)
    kept = store.adapter("FM@0002", "FM@0001")
    assert kept is not None and kept.to_bytes() == adapter.to_bytes() and store.adapter("FM@0002", "FM@0001") is kept
    strict = OnlineStore(config=store.config.model_copy(update={"adapter_error": 1e-12}), engine=store.engine)
    with pytest.raises(StoreError, match=r"relative error is .*, more than 1e-12"):
        get(strict, keys, 1, pin=FIXED, width=3, adapt=True)


def test_an_adapter_is_forgotten_with_the_snapshot_that_it_was_for(store: OnlineStore) -> None:
    vector_N2 = np.random.default_rng(1).normal(size=(40, 2))
    for scale in (2.0, 5.0):
        put(store, [(0, 1, 1, 1.0, 1)], snapshot(2))
        publish(store, 2)
        adapter = fit(
            source="FM@0002",
            target="FM@0001",
            source_ND=vector_N2,
            target_NE=scale * vector_N2,
            group_N=np.arange(40, dtype=np.int64),
        )
        store.put_adapter(adapter, at=T0)
        assert get(store, [(0, 1, 1)], 1, pin=FIXED, adapt=True).vector[0, 0] == pytest.approx(scale, abs=1e-4)
        store.engine.move("FM/latest", expected="FM@0002", to=None)
        store.engine.drop("FM@0002")
