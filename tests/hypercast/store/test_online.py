"""Every key gets a vector, a status and a rung of the ladder, and each rung is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypercast.errors import RegistryError, StoreError
from hypercast.pins import Pin
from hypercast.registry import Registry, Snapshot
from hypercast.store.online import Lookup, OnlineStore, Rung
from hypercast.store.status import MICROSECONDS, Status
from streaming.errors import LeakageError

T0 = 1_000 * MICROSECONDS
PIN = Pin(expert="home", lineage="FM")
CONFIG = OnlineStore.Config(fresh_for=10, ttl=20)


def publish(root: Path, watermark: int = T0, **changed: Any) -> Snapshot:
    arguments: dict[str, Any] = {
        "lineage": "FM",
        "tensors": {"weight": torch.tensor([float(watermark)])},
        "watermark": watermark,
        "schema_hash": "s",
        "dims": {"penultimate": 2},
        "dtype": "float16",
        "tasks": [],
        "metrics": {},
        "parent": None,
        "metadata": {},
    }
    return Registry(root).publish(**arguments | changed)


def put(store: OnlineStore, snapshot: Snapshot, rows: list[tuple[int, int, int, float, int]], **changed: Any) -> None:
    """Rows of (surface, user, item, value, seconds after T0 at which it was computed)."""
    columns = list(zip(*rows, strict=True))
    computed = T0 + MICROSECONDS * np.array(columns[4])
    arguments: dict[str, Any] = {
        "surface": np.array(columns[0]),
        "user_id": np.array(columns[1]),
        "item_id": np.array(columns[2]),
        "vector": np.repeat(np.array(columns[3], np.float16)[:, None], 2, axis=1),
        "computed_at": computed,
        "history_end": computed,
    }
    store.put(snapshot=snapshot, **arguments | changed)


def put_user(store: OnlineStore, snapshot: Snapshot, user: int, value: float, seconds: int) -> None:
    computed = np.array([T0 + seconds * MICROSECONDS])
    vector = torch.full((1, 2), value, dtype=torch.float16)
    store.put_users(
        snapshot=snapshot, user_id=np.array([user]), vector=vector, computed_at=computed, history_end=computed
    )


def get(store: OnlineStore, keys: list[tuple[int, int, int]], seconds: float, **changed: Any) -> Lookup:
    surface, user, item = np.array(keys).T
    now = T0 + int(seconds * MICROSECONDS)
    arguments: dict[str, Any] = {"pin": PIN, "now": now, "width": 2}
    return store.get(surface=surface, user_id=user, item_id=item, **arguments | changed)


def test_the_ladder_and_its_counters(tmp_path: Path) -> None:
    snapshot = publish(tmp_path)
    store = CONFIG.build(tmp_path)
    put(store, snapshot, [(0, 1, 10, 1.0, 25), (0, 1, 11, 2.0, 15), (0, 1, 12, 3.0, 5), (0, 2, 10, 4.0, 5)])
    put_user(store, snapshot, 1, 9.0, 20)
    put_user(store, snapshot, 2, 9.0, 5)  # expired itself
    keys = [(0, 1, 10), (0, 1, 11), (0, 1, 12), (0, 1, 13), (1, 1, 10), (0, 2, 10), (0, 3, 10)]
    found = get(store, keys, 30)
    assert [Status(value).name for value in found.status] == [
        "FRESH",
        "STALE",
        "EXPIRED",
        "MISS",
        "MISS",
        "EXPIRED",
        "MISS",
    ]
    assert [Rung(value).name for value in found.rung] == ["FRESH", "STALE", "USER", "USER", "USER", "ZEROS", "ZEROS"]
    assert found.vector[:, 0].tolist() == [1, 2, 9, 9, 9, 0, 0]
    assert (found.age // MICROSECONDS).tolist() == [5, 15, 10, 10, 10, 0, 0]
    assert found.present.tolist() == [True] * 5 + [False] * 2
    assert found.counts() == {"FRESH": 1, "STALE": 1, "EXPIRED": 2, "MISS": 3}
    assert found.rungs() == {"FRESH": 1, "STALE": 1, "USER": 3, "ZEROS": 2}
    get(store, keys[:1], 30)
    assert store.rungs == {"FRESH": 2, "STALE": 1, "USER": 3, "ZEROS": 2}


def test_expiry_is_checked_when_read(tmp_path: Path) -> None:
    store = CONFIG.build(tmp_path)
    put(store, publish(tmp_path), [(0, 1, 1, 1.0, 0)])
    names = [Status(get(store, [(0, 1, 1)], seconds).status[0]).name for seconds in (0, 10, 10.1, 20, 20.1)]
    assert names == ["FRESH", "FRESH", "STALE", "STALE", "EXPIRED"]


def test_an_empty_store_gives_zeros(tmp_path: Path) -> None:
    found = get(CONFIG.build(tmp_path), [(0, 1, 1)], 0)
    assert found.counts()["MISS"] == 1
    assert found.rungs()["ZEROS"] == 1
    assert not found.vector.any()


def test_the_vector_computed_last_holds(tmp_path: Path) -> None:
    snapshot = publish(tmp_path)
    store = CONFIG.build(tmp_path)
    put(store, snapshot, [(0, 1, 1, 1.0, 3), (0, 1, 1, 2.0, 5), (0, 1, 1, 3.0, 4)])
    put(store, snapshot, [(0, 1, 1, 4.0, 2)])
    assert get(store, [(0, 1, 1)], 5).vector[0].tolist() == [2.0, 2.0]


def test_what_was_flushed_is_there_after_reopening(tmp_path: Path) -> None:
    snapshot = publish(tmp_path)
    store = CONFIG.build(tmp_path)
    put(store, snapshot, [(0, user, 1, float(user), 0) for user in range(100)])
    put_user(store, snapshot, 500, 7.0, 0)
    assert len(store.flush()) == 2
    assert store.flush() == []
    put(store, snapshot, [(0, 3, 1, -3.0, 1)])
    assert len(store.flush()) == 1
    put(store, snapshot, [(0, 4, 1, -4.0, 1)])  # never flushed
    again = CONFIG.build(tmp_path)
    found = get(again, [(0, 2, 1), (0, 3, 1), (0, 4, 1), (0, 500, 1)], 2)
    assert found.vector[:, 0].tolist() == [2, -3, 4, 7]
    assert again.flush() == []


def test_a_kill_while_flushing_leaves_the_store_readable(tmp_path: Path) -> None:
    store = CONFIG.build(tmp_path)
    put(store, publish(tmp_path), [(0, 1, 1, 1.0, 0)])
    (file,) = store.flush()
    file.with_name(".candidates-00000002.arrow.partial").write_bytes(b"half")
    assert get(CONFIG.build(tmp_path), [(0, 1, 1)], 0).counts()["FRESH"] == 1
    file.write_bytes(b"damaged")
    with pytest.raises(StoreError, match=str(file)):
        CONFIG.build(tmp_path)


def test_pins_choose_the_snapshot_and_refuse_others(tmp_path: Path) -> None:
    first, second = publish(tmp_path), publish(tmp_path, T0 + 1)
    store = CONFIG.build(tmp_path)
    put(store, first, [(0, 1, 1, 1.0, 1)])
    put(store, second, [(0, 1, 1, 2.0, 1)])
    fixed = Registry(tmp_path).pin("home", lineage="FM", version=1)
    assert get(store, [(0, 1, 1)], 1).vector[0, 0] == 2.0
    assert get(store, [(0, 1, 1)], 1, pin=fixed).vector[0, 0] == 1.0
    assert get(store, [(0, 1, 1)], 1, pin=Pin(expert="home", lineage="Other")).counts()["MISS"] == 1
    with pytest.raises(RegistryError, match="dtype is float16, not float32"):
        get(store, [(0, 1, 1)], 1, pin=Pin(expert="home", lineage="FM", dtype="float32"))
    with pytest.raises(StoreError, match="width 2, but expert 'home' was built for 3"):
        get(store, [(0, 1, 1)], 1, width=3)


@pytest.mark.parametrize(
    "vector", [np.ones((1, 3), np.float16), np.ones((1, 2), np.float32), torch.ones(1, 2, dtype=torch.bfloat16)]
)
def test_vectors_of_another_width_or_dtype_are_refused(tmp_path: Path, vector: Any) -> None:
    store = CONFIG.build(tmp_path)
    with pytest.raises(StoreError, match=r"the snapshot declares 'penultimate' of shape \(1, 2\) and dtype float16"):
        put(store, publish(tmp_path), [(0, 1, 1, 1.0, 0)], vector=vector)


def test_times_out_of_order_are_refused(tmp_path: Path) -> None:
    snapshot = publish(tmp_path)
    store = CONFIG.build(tmp_path)
    with pytest.raises(LeakageError, match="watermark"):
        put(store, snapshot, [(0, 1, 1, 1.0, -1)])
    with pytest.raises(LeakageError, match="history_end"):
        put(store, snapshot, [(0, 1, 1, 1.0, 0)], history_end=np.array([T0 + 1]))
    put(store, snapshot, [(0, 1, 1, 1.0, 5)])
    with pytest.raises(LeakageError, match=r"key \[0, 1, 1\] was computed 1000000 us after"):
        get(store, [(0, 1, 1)], 4)
