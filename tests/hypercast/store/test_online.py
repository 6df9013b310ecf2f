"""Every key gets a vector, a status and a rung of the ladder, and each rung is counted; over every engine."""

import itertools
import logging
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypercast.errors import RegistryError, StoreError
from hypercast.pins import Pin, snapshot_name
from hypercast.snapshot import Snapshot
from hypercast.store.adapter import fit
from hypercast.store.engine import ConflictError, UnreachableError
from hypercast.store.ladder import Lookup, Rung
from hypercast.store.online import OnlineStore
from hypercast.store.status import MICROSECONDS, Status
from streaming import config as configuration
from streaming.errors import ConfigError, LeakageError
from tests.hypercast.store.valkey_server import ValkeyServer

T0 = 1_000 * MICROSECONDS
PIN = Pin(expert="home", lineage="FM")
FIXED = Pin(expert="home", lineage="FM", version=1)
CONFIG: dict[str, Any] = {"fresh_for": 10, "ttl": 20}

Make = Callable[..., OnlineStore]
_numbers = itertools.count()


@pytest.fixture(params=["memory", "local", "valkey"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens a store over the engine; of all but ``memory`` the same one again."""
    engine: dict[str, Any] = {"kind": request.param}
    if request.param == "local":
        engine["path"] = str(tmp_path / "store")
    elif request.param == "valkey":
        server = request.getfixturevalue("valkey_server")
        engine |= {"urls": [server.url], "prefix": f"online-{next(_numbers)}"}

    def build(**changed: Any) -> OnlineStore:
        return OnlineStore.Config.model_validate({**CONFIG, "engine": engine, **changed}).build()

    return build


@pytest.fixture
def store(make: Make) -> OnlineStore:
    return make()


def snapshot(
    version: int = 1, *, watermark: int = T0, width: int = 2, dtype: str = "float16", model: str = "ab12"
) -> Snapshot:
    manifest = {"dims": {"penultimate": width}, "dtype": dtype, "tasks": [], "weights_digest": model}
    name = snapshot_name("FM", version)
    return Snapshot(
        name=name, lineage="FM", version=version, watermark=watermark, path=Path("nowhere"), manifest=manifest
    )


ONE = snapshot()


def put(store: OnlineStore, rows: list[tuple[int, int, int, float, int]], of: Snapshot = ONE, **changed: Any) -> None:
    """Rows of (surface, user, item, value, seconds after T0 at which it was computed)."""
    columns = list(zip(*rows, strict=True))
    computed = T0 + MICROSECONDS * np.array(columns[4])
    arguments: dict[str, Any] = {
        "surface": np.array(columns[0]),
        "user_id": np.array(columns[1]),
        "item_id": np.array(columns[2]),
        "vector": np.repeat(np.array(columns[3], np.float16)[:, None], of.dims["penultimate"], axis=1),
        "computed_at": computed,
        "history_end": computed,
    }
    store.put(snapshot=of, **arguments | changed)


def put_user(store: OnlineStore, user: int, value: float, seconds: int, of: Snapshot = ONE) -> None:
    computed = np.array([T0 + seconds * MICROSECONDS])
    vector = np.full((1, 2), value, np.float32)
    store.put_users(snapshot=of, user_id=np.array([user]), vector=vector, computed_at=computed, history_end=computed)


def arguments_of(keys: list[tuple[int, int, int]], **changed: Any) -> dict[str, Any]:
    surface, user, item = np.array(keys, np.int64).reshape(-1, 3).T
    return {"pin": PIN, "surface": surface, "user_id": user, "item_id": item, "width": 2} | changed


def get(store: OnlineStore, keys: list[tuple[int, int, int]], seconds: float, **changed: Any) -> Lookup:
    return store.get(now=T0 + int(seconds * MICROSECONDS), **arguments_of(keys, **changed))


def get_as_of(store: OnlineStore, keys: list[tuple[int, int, int]], seconds: float, **changed: Any) -> Lookup:
    return store.get_as_of(T0 + int(seconds * MICROSECONDS), **arguments_of(keys, **changed))


def publish(store: OnlineStore, version: int, before: int | None = None, seconds: int = 0, **changed: Any) -> None:
    expected = before and snapshot_name("FM", before)
    at = T0 + seconds * MICROSECONDS
    store.publish(snapshot_name("FM", version), expected=expected or None, at=at, **changed)


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
    assert found.rungs() == {"FRESH": 1, "STALE": 1, "USER": 3, "ZEROS": 2}
    assert found.snapshot == "FM@0001"
    get(store, keys[:1], 30)
    counted = store.counters.to_dict()
    assert {name: counted[f"rung/{name}"] for name in found.rungs()} == {"FRESH": 2, "STALE": 1, "USER": 3, "ZEROS": 2}
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
                usable[Rung.USER if aggregate else Rung(age > fresh_for)] = value, age
        rung = min(usable, default=Rung.ZEROS)
        value, age = usable.get(rung, (0, 0))
        assert (found.rung[user], found.vector[user].tolist()) == (rung, [value, value])
        assert found.age[user] == age * MICROSECONDS
    assert sum(found.rungs().values()) == 3


@pytest.mark.parametrize("make", ["local", "valkey"], indirect=True)
def test_what_was_published_is_there_for_others(make: Make) -> None:
    store = make()
    put(store, [(0, user, 1, float(user), 0) for user in range(100)])
    publish(store, 1)
    again = get(make(), [(0, 2, 1), (0, 4, 1)], 2)
    assert again.vector[:, 0].tolist() == [2, 4]
    store.close()


def test_readers_follow_the_channel_and_pins_do_not(store: OnlineStore) -> None:
    two = snapshot(2, watermark=T0 + 1)
    put(store, [(0, 1, 1, 1.0, 1)])
    publish(store, 1)
    put(store, [(0, 1, 1, 2.0, 1)], two)
    assert get(store, [(0, 1, 1)], 1).vector[0, 0] == 1.0  # half-published: nobody reads it
    publish(store, 1, channel="stable")
    publish(store, 2, 1)
    assert store.current("FM") == "FM@0002" and store.current("FM", channel="stable") == "FM@0001"
    assert get(store, [(0, 1, 1)], 1).vector[0, 0] == 2.0
    assert get(store, [(0, 1, 1)], 1, channel="stable").vector[0, 0] == 1.0
    assert get(store, [(0, 1, 1)], 1, pin=FIXED).vector[0, 0] == 1.0
    assert get(store, [(0, 1, 1)], 1, pin=Pin(expert="home", lineage="Other")).counts()["MISS"] == 1


def test_one_publisher_wins_and_the_way_back_is_one_step(store: OnlineStore) -> None:
    for version in (1, 2, 3):
        put(store, [(0, 1, 1, float(version), 1)], snapshot(version))
    publish(store, 1)
    with pytest.raises(StoreError, match="not known what it named before"):
        store.rollback("FM")
    publish(store, 2, 1)
    with pytest.raises(ConflictError, match=r"FM/latest points to FM@0002, not to FM@0001"):
        publish(store, 3, 1)
    publish(store, 2, 1)  # once more, after a kill
    assert store.rollback("FM") == "FM@0001"
    assert get(store, [(0, 1, 1)], 1).vector[0, 0] == 1.0
    with pytest.raises(StoreError, match="not known what it named before"):
        store.rollback("FM")
    with pytest.raises(StoreError, match="FM@0009 has no rows"):
        publish(store, 9, 1)
    for channel in ("latest-before", "latest-left", "../x", ""):
        with pytest.raises((StoreError, RegistryError)):
            publish(store, 3, 1, channel=channel)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("steps", range(8))
def test_a_publisher_that_is_killed_between_its_steps(again: bool, steps: int, store: OnlineStore) -> None:
    """The way back is known after each of them, and publishing again completes what was begun."""
    for version in (1, 2, 3):
        put(store, [(0, 1, 1, float(version), 1)], snapshot(version))
    publish(store, 1)
    publish(store, 2, 1, seconds=2)
    left = iter(range(steps))

    def stepping(real: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: Any, **named: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(*arguments, **named)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "commit", "move"):
            patch.setattr(store.engine, name, stepping(getattr(store.engine, name)))
        if steps < 7:
            with pytest.raises(KeyboardInterrupt):
                publish(store, 3, 2, seconds=4)
        else:
            publish(store, 3, 2, seconds=4)
            assert next(left, None) is None
    named, before = ("FM@0003", "FM@0002") if steps > 2 else ("FM@0002", "FM@0001")
    assert store.current("FM") == named
    store.drop({"FM@0001": "ab12", "FM@0002": "ab12"})
    if again:
        store.publish("FM@0003", expected=named, at=T0 + 4 * MICROSECONDS)
        assert store.channels.reached("FM", "latest") == "FM@0003"
        assert get_as_of(store, [(0, 1, 1)], 5).snapshot == "FM@0003"
        assert store.engine.pointers() == {"FM/latest": "FM@0003", "FM/latest-before": "FM@0002"}
    else:
        assert store.rollback("FM") == before
        assert store.engine.pointers() == {"FM/latest": before}


def test_what_a_channel_has_reached_outlives_a_rollback(store: OnlineStore) -> None:
    assert store.channels.reached("FM", "latest") is None
    for version in (1, 2, 3):
        put(store, [(0, 1, 1, float(version), 1)], snapshot(version))
    publish(store, 1)
    publish(store, 2, 1)
    assert store.rollback("FM") == "FM@0001"
    assert (store.current("FM"), store.channels.reached("FM", "latest")) == ("FM@0001", "FM@0002")
    assert store.channels.reached("FM", "stable") is None


def test_dropping(store: OnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (1, 2, 3, 4, 5):
        put(store, [(0, 1, 1, float(version), 1)], snapshot(version, model=f"model{version}"))
    for version in (3, 4):
        publish(store, version, version - 1 if version > 3 else None)
    models = {snapshot_name("FM", version): f"model{version}" for version in (2, 3, 4, 5, 6)} | {"FM@0001": "other"}
    drop = store.engine.drop

    def beaten(name: str) -> None:
        drop(name)
        if name == "FM@0005":
            drop(name)  # somebody else was first

    monkeypatch.setattr(store.engine, "drop", beaten)
    assert store.drop(models) == ["FM@0002"]  # 1 is of another model, 3 is the way back, 4 is read
    assert store.engine.snapshots() == ["FM@0001", "FM@0003", "FM@0004"]
    assert get(store, [(0, 1, 1)], 1, pin=Pin(expert="home", lineage="FM", version=2)).counts()["MISS"] == 1


def test_two_models_of_one_name_do_not_mix(store: OnlineStore) -> None:
    put(store, [(0, 1, 1, 1.0, 1), (0, 1, 2, 1.0, 1)])
    publish(store, 1)
    other = snapshot(1, model="cd34")
    for attempt in (lambda: put(store, [(0, 1, 2, 9.0, 2)], other), lambda: store.check_model(other)):
        with pytest.raises(StoreError, match=r"FM@0001 were computed by other weights \(ab12\) than .* \(cd34\)"):
            attempt()
    store.check_model(ONE)
    store.check_model(snapshot(2, model="cd34"))
    assert get(store, [(0, 1, 1), (0, 1, 2)], 3).vector[:, 0].tolist() == [1.0, 1.0]


def test_an_aggregate_is_not_read_by_the_request_that_made_it(store: OnlineStore) -> None:
    put(store, [(0, 1, 1, 1.0, 5)])
    put_user(store, 1, 9.0, 5)
    publish(store, 1)
    found = get(store, [(0, 1, 1), (0, 1, 2)], 5)
    assert found.vector[:, 0].tolist() == [1.0, 0.0] and found.rungs() == {
        "FRESH": 1,
        "STALE": 0,
        "USER": 0,
        "ZEROS": 1,
    }
    assert get(store, [(0, 1, 2)], 5.000001).vector[0, 0] == 9.0


def test_a_reader_before_the_publication_reads_what_was_published_then(make: Make) -> None:
    for store in (make(), make(believed_for=1000)):
        if store.current("FM") is None:
            put(store, [(0, 1, 1, 1.0, 1)])
            put(store, [(0, 1, 1, 2.0, 2)], snapshot(2))
            publish(store, 1, seconds=1)
            publish(store, 2, 1, seconds=5)
        for seconds, name in ((6, "FM@0002"), (5, "FM@0002"), (4, "FM@0001"), (0, None), (6, "FM@0002")):
            assert get(store, [(0, 1, 1)], seconds).snapshot == name
            assert get_as_of(store, [(0, 1, 1)], seconds).snapshot == name


def test_what_was_believed_of_a_dropped_snapshot_is_forgotten(make: Make) -> None:
    """Reader and writer on one engine; the reader believes its pointer for good."""
    writer = make(codec="float16")
    reader = OnlineStore(config=writer.config.model_copy(update={"believed_for": 1000.0}), engine=writer.engine)
    for version in (1, 2, 3):
        put(writer, [(0, 1, 1, float(version), 1)], snapshot(version))
        publish(writer, version, version - 1 or None)
        assert get(reader, [(0, 1, 1)], 1).vector[0, 0] == 1.0
    assert writer.drop({"FM@0001": "ab12"}) == ["FM@0001"]
    assert get(reader, [(0, 1, 1)], 1).vector[0, 0] == 3.0  # believed to be in FM@0001, which is gone
    for pointer, name in writer.engine.pointers().items():
        writer.engine.move(pointer, expected=name, to=None)
    writer.drop({"FM@0003": "ab12"})
    other = OnlineStore(config=writer.config.model_copy(update={"codec": "bfloat16"}), engine=writer.engine)
    put(other, [(0, 1, 1, 1.5, 1)], snapshot(3, model="cd34"))
    assert get(reader, [(0, 1, 1)], 1).vector[0, 0] == 1.5


def test_a_snapshot_that_is_dropped_while_it_is_read(store: OnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, [(0, 1, 1, 1.0, 1)])
    put(store, [(0, 1, 1, 2.0, 1)], snapshot(2, width=2))
    publish(store, 1)
    get(store, [(0, 1, 1)], 1)
    real = store.engine.get

    def dropping(name: str, *arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(store.engine, "get", real)
        store.channels.publish("FM@0002", "latest", expected="FM@0001", at=T0)
        store.engine.move("FM/latest-before", expected="FM@0001", to=None)
        store.engine.drop("FM@0001")
        return real(name, *arguments, **named)

    monkeypatch.setattr(store.engine, "get", dropping)
    assert get(store, [(0, 1, 1)], 1).vector[0, 0] == 2.0


def test_marks_of_names_with_one_checksum_differ(store: OnlineStore) -> None:
    """CRC-32 takes these two for one."""
    put(store, [(0, 1, 1, 1.0, 1)])
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    store.channels.mark("FM@0001", "plumless", at=T0)
    assert store.channels.marked("FM@0001", "plumless") == T0
    assert store.channels.marked("FM@0001", "buckeroo") is None


@pytest.mark.parametrize(
    ("pin", "width", "error", "message"),
    [
        (Pin(expert="home", lineage="FM", dtype="float32"), 2, RegistryError, "dtype is float16, not float32"),
        (Pin(expert="home", lineage="FM", dims={"penultimate": 3}), 2, RegistryError, "width is 2, not 3"),
        (Pin(expert="home", lineage="FM", dims={"other": 2}), 2, RegistryError, "pinned to representations"),
        (PIN, 3, StoreError, "width 2, but expert 'home' was built for 3"),
    ],
)
def test_pins_refuse(store: OnlineStore, pin: Pin, width: int, error: type, message: str) -> None:
    put(store, [(0, 1, 1, 1.0, 1)])
    publish(store, 1)
    with pytest.raises(error, match=message):
        get(store, [(0, 1, 1)], 1, pin=pin, width=width)


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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"vector": np.ones((1, 3), np.float16)},
            r"with width 2, so that they must be \(1, 2\)",
        ),
        ({"vector": np.full((1, 2), np.nan)}, "not finite"),
        ({"vector": np.full((1, 2), 1e6)}, "ends at 65504"),
        ({"vector": np.ones((1, 2), np.int64)}, "must be floats"),
        ({"computed_at": np.array([T0, T0])}, "shapes"),
        ({"item_id": np.array([1, 2])}, "item_id has shape"),
        ({"surface": np.array([0.5])}, "surface has shape .* dtype float64"),
        ({"surface": np.array([-1])}, r"key 0 is \[-1, 1, 1\]; surface and item must not be negative"),
        ({"item_id": np.array([-3])}, "must not be negative"),
        (
            {"user_id": np.array([2**64 - 1], np.uint64)},
            r"user_id has shape .* dtype uint64; needed are integers \[N\]",
        ),
        ({"computed_at": np.array([T0 + 0.9])}, "have dtypes float64 and int64; needed are integers"),
        ({"history_end": np.array([np.nan])}, "have dtypes int64 and float64; needed are integers"),
        ({"computed_at": np.array([2**63], np.uint64)}, "have dtypes uint64 and int64"),
    ],
)
def test_bad_rows_are_refused(changed: dict[str, Any], message: str) -> None:
    store = OnlineStore.Config.model_validate({"engine": {"kind": "memory"}}).build()
    with pytest.raises(StoreError, match=message):
        put(store, [(0, 1, 1, 1.0, 0)], **changed)
    assert store.engine.snapshots() == []


def test_the_stores_own_rows_cannot_be_asked_for(store: OnlineStore) -> None:
    with pytest.raises(StoreError, match="must not be negative"):
        get(store, [(-1, 1, -1)], 0)


@pytest.mark.parametrize("now", [2**63, -(2**63), 1.5, float("nan"), "now", None])
def test_times_that_are_none(store: OnlineStore, now: Any) -> None:
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    for read in (
        lambda: store.get(now=now, **arguments_of([(0, 1, 1)])),
        lambda: store.get_as_of(now, **arguments_of([])),
    ):
        with pytest.raises(StoreError, match=r"online store: read as of .*; needed is an integer"):
            read()
    for last in (2**63 - 1, -(2**63) + 1):
        assert len(store.get(now=last, **arguments_of([(0, 1, 1), (0, 1, 2)])).status) == 2


def test_times_out_of_order_are_refused(store: OnlineStore) -> None:
    with pytest.raises(LeakageError, match="watermark"):
        put(store, [(0, 1, 1, 1.0, -1)])
    with pytest.raises(LeakageError, match="history_end"):
        put(store, [(0, 1, 1, 1.0, 0)], history_end=np.array([T0 + 1]))


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


def test_an_engine_out_of_reach(make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    store = make(unreachable="ladder", ask_again=0)
    patient = OnlineStore(config=store.config.model_copy(update={"unreachable": "wait"}), engine=store.engine)
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    real = store.engine.get

    def gone(*arguments: Any, **named: Any) -> Any:
        raise UnreachableError("127.0.0.1:6379 does not answer")

    monkeypatch.setattr(store.engine, "get", gone)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = get(store, [(0, 1, 1), (0, 1, 2)], 0)
            assert found.rungs()["ZEROS"] == 2 and not found.vector.any()
        with pytest.raises(UnreachableError):
            get(patient, [(0, 1, 1)], 0)
        monkeypatch.setattr(store.engine, "get", real)
        for _ in range(2):
            assert get(store, [(0, 1, 1)], 0).counts()["FRESH"] == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "does not answer" in said[0] and "the engine answers again" in said[1]
    assert store.counters.to_dict()["unreachable"] == 6


def test_an_engine_out_of_reach_is_not_asked_by_every_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(unreachable="ladder", ask_again=1000)
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    asked: list[int] = []

    def gone(*arguments: Any, **named: Any) -> Any:
        asked.append(1)
        raise UnreachableError("127.0.0.1:6379 does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(store.engine, "get", gone)
        for _ in range(3):
            assert get(store, [(0, 1, 1)], 0).rungs()["ZEROS"] == 1
    assert len(asked) == 1 and store.counters.to_dict()["unreachable"] == 3
    monkeypatch.setattr("hypercast.store.outage.time.monotonic", lambda: 1e12)
    assert get(store, [(0, 1, 1)], 0).counts()["FRESH"] == 1


def test_a_server_that_goes_and_comes_back(valkey_server: ValkeyServer, caplog: pytest.LogCaptureFixture) -> None:
    engine = {"kind": "valkey", "urls": [valkey_server.url], "prefix": "gone", "timeout": 0.2, "patience": 0.2}
    store = OnlineStore.Config.model_validate(
        {**CONFIG, "engine": engine, "unreachable": "ladder", "ask_again": 0}
    ).build()
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    assert get(store, [(0, 1, 1)], 0).counts()["FRESH"] == 1
    valkey_server.tell(signal.SIGSTOP)
    try:
        with caplog.at_level(logging.WARNING):
            assert get(store, [(0, 1, 1)], 0).rungs()["ZEROS"] == 1
    finally:
        valkey_server.tell(signal.SIGCONT)
    assert "zeros are read until the engine answers again" in caplog.text
    assert get(store, [(0, 1, 1)], 0).vector[0, 0] == 1.0
    assert store.counters.to_dict()["unreachable"] == 1


def test_a_pointer_that_is_believed_is_not_asked_for_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(believed_for=1000)
    put(store, [(0, 1, 1, 1.0, 0)])
    assert get(store, [(0, 1, 1)], 0).snapshot is None
    publish(store, 1)
    calls = []
    real = store.engine.pointers
    monkeypatch.setattr(store.engine, "pointers", lambda: calls.append(1) or real())
    for _ in range(3):
        assert get(store, [(0, 1, 1)], 0).snapshot == "FM@0001"
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{kind: cassandra}", "an engine has a kind, one of memory, local, valkey"),
        ("{path: x}", "an engine has a kind"),
        ("7", "an engine has a kind"),
        ("{kind: local, paht: x}", "engine local, key '(path|paht)'.*allowed keys are kind, path"),
        ("{kind: valkey, urls: [http://x]}", r"engine valkey, key '.*': .*a url is valkey://HOST:PORT"),
    ],
)
def test_a_mistake_in_the_engines_configuration(tmp_path: Path, engine: str, message: str) -> None:
    (tmp_path / "online.yaml").write_text(f"engine: {engine}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"(?s)key 'engine'.*{message}"):
        configuration.load(tmp_path / "online.yaml", OnlineStore.Config)


@pytest.mark.parametrize("engine", ["{kind: memory}", "{kind: local, path: x}", "{kind: valkey}", "null"])
def test_a_configuration_is_written_as_it_is_read(tmp_path: Path, engine: str) -> None:
    (tmp_path / "online.yaml").write_text(f"codec: int4\nengine: {engine}\n", encoding="utf-8")
    read = configuration.load(tmp_path / "online.yaml", OnlineStore.Config)
    (tmp_path / "again.yaml").write_text(configuration.dump(read), encoding="utf-8")
    assert configuration.load(tmp_path / "again.yaml", OnlineStore.Config) == read
    assert OnlineStore.Config(codec="int4", engine=read.engine) == read


def test_without_an_engine_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no engine is given"):
        OnlineStore.Config().build()
    store = OnlineStore.Config().build(tmp_path / "here")
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    assert (tmp_path / "here").is_dir()


def test_a_reader_needs_neither_torch_nor_a_server_client() -> None:
    code = (
        "import sys; from hypercast.store.online import OnlineStore; "
        "OnlineStore.Config.model_validate({'engine': {'kind': 'memory'}}).build(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'valkey')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
