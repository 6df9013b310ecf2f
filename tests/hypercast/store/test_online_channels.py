"""What is published is what readers of a channel get, whoever is killed, dropped or late; over every engine."""

import zlib
from collections.abc import Callable
from typing import Any

import pytest

from hypercast.errors import RegistryError, StoreError
from hypercast.pins import Pin, snapshot_name
from hypercast.store.engine import ConflictError
from hypercast.store.online import OnlineStore
from hypercast.store.status import MICROSECONDS
from tests.hypercast.store.online_world import FIXED, ONE, T0, Make, get, get_as_of, publish, put, put_user, snapshot


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
        "NEAREST": 0,
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
