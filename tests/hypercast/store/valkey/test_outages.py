"""Servers that end, hang, cut connections, forget, or are full."""

import logging
import signal
import threading
from collections.abc import Callable

import pytest
import valkey

from hypercast.errors import StoreError
from hypercast.store.engine import UnreachableError
from hypercast.store.valkey import wire
from tests.hypercast.store.valkey.cases import FM, Start, check, engine_on, keys, put
from tests.hypercast.store.valkey_place import ValkeyPlace
from tests.hypercast.store.valkey_server import ValkeyServer, free_port

LOGGER = "hypercast.store.valkey.link"


def test_reader_and_writer_outlive_a_killed_server(start: Start) -> None:
    server = start(appendonly="yes", appendfsync="always")
    written, stop, failures = [0], threading.Event(), list[BaseException]()

    def write() -> None:
        engine = engine_on(server)
        while not stop.is_set():
            put(engine, range(written[0], written[0] + 200))
            written[0] += 200
            engine.commit(FM)

    def read() -> None:
        engine = engine_on(server)
        while not stop.is_set():
            users = range(max(0, written[0] - 500), written[0])
            check(engine.get(FM, keys(users)), users)

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    jobs = [threading.Thread(target=guarded, args=(job,)) for job in (write, read, read)]
    for job in jobs:
        job.start()
    for _ in range(4):
        goal = written[0] + 1000
        while written[0] < goal and not failures:
            stop.wait(0.005)
        server.kill()
        stop.wait(0.1)
        server.start()
    goal = written[0] + 1000
    while written[0] < goal and not failures:
        stop.wait(0.005)
    stop.set()
    for job in jobs:
        job.join()
    assert not failures
    engine = engine_on(server)
    check(engine.get(FM, keys(range(written[0]))), range(written[0]))
    assert engine.verify() == []


def test_connections_cut_in_mid_reply_lose_and_mix_nothing(request: pytest.FixtureRequest) -> None:
    place = ValkeyPlace(request)
    engine, stop = place.open(batch=64), threading.Event()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        with place.server.client() as client:
            while not stop.wait(0.002):
                cuts += int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        for at in range(1, 9):
            put(engine, range(500), at=at)
            check(engine.get(FM, keys(range(500))), range(500), at=at)
    finally:
        stop.set()
        cutter.join()
    assert cuts > 10
    assert engine.stats(FM).rows >= 2 * 500


def test_a_server_that_is_gone_is_waited_for_then_named(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start(appendonly="yes", appendfsync="always")
    engine = engine_on(server, patience=0.4)
    put(engine, range(10))
    server.kill()
    with caplog.at_level(logging.INFO, LOGGER):
        for call in (
            lambda: engine.get(FM, keys(range(10))),
            lambda: put(engine, range(10)),
            lambda: engine.move("FM/latest", expected=None, to=FM),
            engine.verify,
        ):
            with pytest.raises(UnreachableError, match=rf"127\.0\.0\.1:{server.port}: no answer in 0\.4 s"):
                call()
        server.start()
        check(engine.get(FM, keys(range(10))), range(10))
        engine.move("FM/latest", expected=None, to=FM)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "no answer" in caplog.messages[0] and "answers again" in caplog.messages[1]


def test_a_restart_between_calls_is_not_worth_a_word(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start(appendonly="yes", appendfsync="always")
    engine = engine_on(server)
    put(engine, range(10))
    server.restart()
    with caplog.at_level(logging.INFO, LOGGER):
        check(engine.get(FM, keys(range(10))), range(10))
    assert not caplog.records


@pytest.mark.parametrize(
    ("failures", "expected"), [(0, []), (1, []), (2, ["WARNING", "INFO"]), (3, ["WARNING", "INFO"])]
)
def test_one_lost_connection_is_not_worth_a_word(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, failures: int, expected: list[str]
) -> None:
    engine, left = ValkeyPlace(request).open(), [failures]

    def attempt(_: object) -> str:
        if left[0]:
            left[0] -= 1
            raise valkey.ConnectionError("closed")
        return "done"

    with caplog.at_level(logging.INFO, LOGGER):
        assert engine._link._patiently(attempt) == "done"
    assert [record.levelname for record in caplog.records] == expected


def test_replies_that_nobody_waited_for_answer_nobody(valkey_server: ValkeyServer) -> None:
    """Of two nodes one is gone while the other still thinks: its late reply is not taken for that to what came next."""
    with valkey_server.client() as alive, valkey.Valkey(port=free_port()) as gone:
        alive.set("late", "right")
        ask = wire.one(b"GET", b"late")
        with pytest.raises(valkey.ConnectionError):
            wire.exchange([(alive, wire.one(b"BLPOP", b"nothing", b"0.1"), 1), (gone, ask, 1)])
        assert wire.exchange([(alive, ask, 1)]) == [[b"right"]]


def test_a_server_that_hangs_is_not_waited_for_for_ever(start: Start) -> None:
    server = start()
    engine = engine_on(server, timeout=0.1, patience=0.3)
    put(engine, range(10))
    server.tell(signal.SIGSTOP)
    try:
        with pytest.raises(UnreachableError, match="no answer"):
            engine.get(FM, keys(range(10)))
    finally:
        server.tell(signal.SIGCONT)
    check(engine.get(FM, keys(range(10))), range(10))


def test_memory_full(start: Start) -> None:
    server = start(maxmemory="4mb", maxmemory_policy="noeviction")
    engine = engine_on(server)
    put(engine, range(10))
    with pytest.raises(StoreError, match="memory is full"):
        put(engine, range(10, 60_000))
    check(engine.get(FM, keys(range(10))), range(10))
    with server.client() as client:
        client.config_set("maxmemory", 0)
    put(engine, range(10, 2000))
    check(engine.get(FM, keys(range(2000))), range(2000))
    assert engine.stats(FM).rows >= 2000
