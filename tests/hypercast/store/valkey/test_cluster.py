"""Three primaries that share the slots."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import valkey

from hypercast.errors import StoreError
from hypercast.store.engine import ConflictError, UnreachableError
from hypercast.store.valkey.engine import ValkeyEngine
from tests.hypercast.store.valkey.cases import FM, OLD, check, keys, put
from tests.hypercast.store.valkey_server import ValkeyServer, start_cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ValkeyServer]]:
    servers = start_cluster(tmp_path_factory.mktemp("cluster"), appendonly="yes", appendfsync="always")
    yield servers
    for server in servers:
        server.kill()


def engine_on(cluster: list[ValkeyServer], prefix: str, **settings: object) -> ValkeyEngine:
    values = {"urls": [cluster[0].url], "cluster": True, "prefix": prefix, "patience": 20.0, "batch": 256, **settings}
    return ValkeyEngine.Config.model_validate(values).build()


def test_rows_spread_and_come_back(cluster: list[ValkeyServer]) -> None:
    engine = engine_on(cluster, "spread")
    for at in (1, 2, 3):
        put(engine, range(3000), at=at)
    engine.commit(FM)
    for server in cluster:
        with server.client() as client:
            assert client.dbsize() > 500
    reader = engine_on(cluster, "spread")
    users = np.random.default_rng(0).integers(0, 3000, 700)
    key = keys(range(3000))[users]
    rows = reader.get(FM, key, as_of=2)
    assert rows.found.all() and (rows.computed_at == 2).all()
    np.testing.assert_array_equal(rows.payload, reader.get(FM, keys(range(3000)), as_of=2).payload[users])
    assert reader.stats(FM).rows == 2 * 3000 and reader.verify() == []
    missing = reader.get(FM, keys(range(2999, 3002)))
    assert missing.found.tolist() == [True, False, False]


def test_pointers_drop_and_collect(cluster: list[ValkeyServer]) -> None:
    engine = engine_on(cluster, "metadata")
    for snapshot in (OLD, FM):
        put(engine, range(500), snapshot=snapshot)
    engine.move("FM/latest", expected=None, to=FM)
    with pytest.raises(ConflictError, match="points to FM@0002"):
        engine.move("FM/latest", expected=None, to=OLD)
    with pytest.raises(StoreError, match="FM/latest points to it"):
        engine.drop(FM)
    engine.drop(OLD)
    assert engine.snapshots() == [FM]
    assert engine.collect() == 500 * 56 and engine.collect() == 0
    check(engine.get(FM, keys(range(500))), range(500))


def test_damage_on_any_node_is_found(cluster: list[ValkeyServer]) -> None:
    engine = engine_on(cluster, "damage")
    put(engine, range(100))
    for server in cluster:
        with server.client() as client:
            name = next(client.scan_iter(match="damage{}*", count=10_000))
            client.set(name, bytes(client.strlen(name)))
    assert len(engine.verify()) == 3
    with pytest.raises(StoreError, match="2 more of these keys"):
        engine.get(FM, keys(range(100)))


def test_a_slot_that_moves_takes_its_rows_along(cluster: list[ValkeyServer]) -> None:
    """Half of one primary's slots go to the next, while rows are read and written."""
    engine, other = engine_on(cluster, "moving"), engine_on(cluster, "moving")
    put(engine, range(300))
    check(other.get(FM, keys(range(300))), range(300))
    with cluster[0].client() as source, cluster[1].client() as target:
        target_id = target.execute_command("CLUSTER", "MYID").decode()
        source.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", 0, 2000, "NODE", target_id)
        for at in range(101, 140):
            put(engine, range(300), at=at)
            check(other.get(FM, keys(range(300))), range(300), at=at)
        while _port_of_slot_0(source) != cluster[1].port:
            check(other.get(FM, keys(range(300))), range(300))
    put(engine, range(300), at=200)
    check(other.get(FM, keys(range(300))), range(300), at=200)
    assert other.verify() == []


def _port_of_slot_0(client: valkey.Valkey) -> int:
    spans: Any = client.execute_command("CLUSTER", "SLOTS")
    return next(int(node[1]) for first, _, node, *_ in spans if first == 0)


def test_a_primary_that_was_killed_comes_back(cluster: list[ValkeyServer]) -> None:
    engine, failures = engine_on(cluster, "killed"), list[BaseException]()
    put(engine, range(100))

    def work() -> None:
        try:
            for first in range(100, 6000, 100):
                put(engine, range(first, first + 100))
                check(engine.get(FM, keys(range(first + 100))), range(first + 100))
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    for server in cluster:  # the one in the engine's urls too
        server.kill()
        worker.join(0.3)
        server.start()
        worker.join(0.3)
    worker.join()
    assert not failures
    check(engine_on(cluster, "killed").get(FM, keys(range(6000))), range(6000))


def test_a_cluster_that_is_gone(cluster: list[ValkeyServer]) -> None:
    engine = engine_on(cluster, "gone", patience=0.5)
    put(engine, range(10))
    for server in cluster:
        server.kill()
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{cluster[0].port}"):
        engine.get(FM, keys(range(10)))
    for server in cluster:
        server.start()
    check(engine_on(cluster, "gone").get(FM, keys(range(10))), range(10))
