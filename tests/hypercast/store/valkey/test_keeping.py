"""What a server has lost before it was committed is told of."""

import threading
from typing import Any

import pytest

from hypercast.errors import StoreError
from hypercast.store.engine import UnreachableError
from hypercast.store.valkey import keeping
from tests.hypercast.store.valkey.cases import FM, OLD, Start, check, engine_on, keys, put
from tests.hypercast.store.valkey_server import ValkeyServer

LOST = "has lost rows"


def save(server: ValkeyServer) -> None:
    """A server that is killed comes back with what it has now."""
    with server.client() as client:
        client.save()


def marks(server: ValkeyServer) -> list[int]:
    """How many each set holds."""
    with server.client() as client:
        return [client.scard(name) for name in client.scan_iter(match="hypercast:mark:*")]


def test_what_was_committed_outlives_the_server(start: Start) -> None:
    server = start(appendonly="yes", appendfsync="everysec")
    engine = engine_on(server)
    put(engine, range(100))
    engine.commit(FM)
    server.restart()
    check(engine_on(server).get(FM, keys(range(100))), range(100))
    engine.commit(FM)


@pytest.mark.parametrize("puts_after", [0, 1, 2])
def test_commit_tells_of_rows_that_the_server_has_lost(start: Start, puts_after: int) -> None:
    server = start()
    engine = engine_on(server)
    put(engine, range(100))
    put(engine, range(100, 200))
    server.restart()
    for _ in range(puts_after):
        put(engine, range(100, 200))
    with pytest.raises(StoreError, match="has lost rows"):
        engine.commit(FM)
    put(engine, range(200))
    engine.commit(FM)
    server.restart()
    engine.commit(FM)  # nothing was put since


def test_commit_waits_for_replicas(start: Start) -> None:
    server = start(repl_diskless_sync_delay="0")
    engine = engine_on(server, replicas=1, timeout=1.0, patience=0.1)
    put(engine, range(10))
    with pytest.raises(UnreachableError, match="replicas that have it: 0 of 1"):
        engine.commit(FM)
    start(replicaof=f"127.0.0.1 {server.port}")
    engine = engine_on(server, replicas=1)
    put(engine, range(10))
    engine.commit(FM)


@pytest.mark.parametrize("puts_before", [0, 1])
@pytest.mark.parametrize("sent", [1, 2, 3])
def test_rows_lost_between_the_batches_of_a_put(
    start: Start, monkeypatch: pytest.MonkeyPatch, sent: int, puts_before: int
) -> None:
    """Of a put that ends well, and that no other put before the commit need have preceded."""
    server = start()
    engine = engine_on(server, batch=2)
    put(engine, range(100, 102))
    engine.commit(FM)
    for _ in range(puts_before):
        put(engine, range(200, 202))
    save(server)
    send, batches = engine._link.send, [0]

    def restarting(*arguments: Any, **named: Any) -> list[Any]:
        replies = send(*arguments, **named)
        batches[0] += 1
        if batches[0] == sent:
            server.restart()
        return replies

    monkeypatch.setattr(engine._link, "send", restarting)
    put(engine, range(6))
    assert not engine.get(FM, keys(range(6))).found[: 2 * sent].any()
    with pytest.raises(StoreError, match=LOST):
        engine.commit(FM)
    put(engine, range(6))
    engine.commit(FM)
    check(engine.get(FM, keys(range(6))), range(6))


def test_a_commit_that_heard_nothing_tells_when_it_is_repeated(start: Start) -> None:
    server = start()
    engine = engine_on(server, patience=0.1)
    put(engine, range(10))
    server.kill()
    for _ in range(2):
        with pytest.raises(UnreachableError):
            engine.commit(FM)
    server.start()
    with pytest.raises(StoreError, match=LOST):
        engine.commit(FM)
    engine.commit(FM)  # who was told puts again, or not


def test_a_commit_that_heard_nothing_ends_well_if_all_is_there(start: Start) -> None:
    server = start(appendonly="yes", appendfsync="always")
    engine = engine_on(server, patience=0.1)
    put(engine, range(10))
    server.kill()
    with pytest.raises(UnreachableError):
        engine.commit(FM)
    server.start()
    engine.commit(FM)
    check(engine.get(FM, keys(range(10))), range(10))


def test_rows_lost_while_commit_waits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    engine = engine_on(server)
    put(engine, range(10))
    on_each = engine._link.on_each

    def restarting(command: Any) -> Any:
        server.restart()
        return on_each(command)

    monkeypatch.setattr(engine._link, "on_each", restarting)
    with pytest.raises(StoreError, match=LOST):
        engine.commit(FM)


def test_metadata_lost_after_the_rows(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are there belong to nobody if what says whose they are is gone."""
    server = start()
    engine = engine_on(server)
    write = engine._write

    def saved(*arguments: Any) -> int:
        added = write(*arguments)
        save(server)
        return added

    monkeypatch.setattr(engine, "_write", saved)
    put(engine, range(10))
    server.restart()
    assert not engine.snapshots()
    with pytest.raises(StoreError, match=LOST):
        engine.commit(FM)


def test_each_snapshot_is_told_of_its_own(start: Start) -> None:
    server = start()
    engine = engine_on(server)
    put(engine, range(10), snapshot=OLD)
    engine.commit(OLD)
    put(engine, range(10))
    put(engine, range(10), snapshot=OLD)
    save(server)
    put(engine, range(10, 20))
    server.restart()
    engine.commit(OLD)
    with pytest.raises(StoreError, match=f"{LOST} of {FM}"):
        engine.commit(FM)


@pytest.mark.parametrize("lost", [False, True])
def test_one_number_stands_for_many(start: Start, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    """However long nobody commits, nothing piles up on the server; and what was lost early is not forgotten."""
    monkeypatch.setattr(keeping, "MOST_MARKS", 5)
    server = start()
    engine = engine_on(server)
    for at in range(1, 40):
        put(engine, range(3), at=at)
        assert max(marks(server)) <= 2 * 5  # a server that comes back may have some again
        if lost and at == 7:
            save(server)
        if lost and at == 9:
            server.restart()
    if lost:
        with pytest.raises(StoreError, match=LOST):
            engine.commit(FM)
    else:
        engine.commit(FM)
        assert sum(marks(server)) == 0


def test_threads_that_put_and_commit_are_told_of_no_loss(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MOST_MARKS", 5)
    server = start(appendonly="yes", appendfsync="always")
    engine, failures = engine_on(server, batch=16), list[BaseException]()

    def work(thread: int) -> None:
        try:
            for turn in range(15):
                put(engine, range(100 * thread, 100 * thread + 50), at=1 + turn)
                if turn % 3 == thread % 3:
                    engine.commit(FM)
            engine.commit(FM)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    server.restart()
    for thread in threads:
        thread.join()
    assert not failures
    for number in range(4):
        check(engine.get(FM, keys(range(100 * number, 100 * number + 50))), range(100 * number, 100 * number + 50))
