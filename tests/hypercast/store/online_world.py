"""What tests of the online store put into it and ask of it; times in seconds after T0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hypercast.pins import Pin, snapshot_name
from hypercast.snapshot import Snapshot
from hypercast.store.ladder import Lookup
from hypercast.store.online import OnlineStore
from hypercast.store.status import MICROSECONDS

T0 = 1_000 * MICROSECONDS
PIN = Pin(expert="home", lineage="FM")
FIXED = Pin(expert="home", lineage="FM", version=1)
CONFIG: dict[str, Any] = {"fresh_for": 10, "ttl": 20}

Make = Callable[..., OnlineStore]


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
